"""Commands that this package adds to ``hskd``: those that end in a figure, a report or a recommendation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hskd.cli.progress import display
from hskd.errors import HskdError

if TYPE_CHECKING:
    from analysis.table import Study


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for table and figure (default: results/demo, or results/demo-quick).")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for teacher, stores and trials, which a second run reuses.")
    ] = Path("work"),
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each kind; two or more give intervals.")] = 1,
    quick: Annotated[bool, typer.Option(help="A shrunken run to see that all works; its scores mean nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time, each on one thread.")] = min(
        2, os.cpu_count() or 1
    ),
) -> None:
    """From nothing to a marginal-utility figure: a real teacher, real sentences, one store, a handful of students.

    Takes some minutes on two cores the first time, seconds the second. It is the grid preset demo.
    """
    from analysis import style
    from analysis.figures.marginal_utility import TITLE, marginal_utility_figure
    from analysis.sufficiency import minimum_sufficient
    from analysis.table import studies
    from hskd.grid.config import Machine
    from hskd.grid.executors import InProcess, Workers
    from hskd.grid.run import run_grid
    from hskd.grid.spec import load_grid

    grid = load_grid("demo-quick" if quick else "demo").model_copy(update={"seeds": seeds})
    folder = out or Path("results") / grid.name
    executor = Workers(workers) if workers > 1 else InProcess()
    with display() as shown:
        _, progress = run_grid(grid, grid.trials(Machine.here()), folder, work, executor, shown)
    [study] = studies(folder)
    drawn = marginal_utility_figure(study, minimum=minimum_sufficient(study), title=TITLE)
    figure = style.save(drawn, folder / "marginal_utility.png")
    Console().print(_table(study))
    print(f"table:  {folder / 'trials.csv'}")
    print(f"figure: {figure}")
    if progress.failed:
        raise typer.Exit(1)


def report(
    results: Annotated[Path, typer.Argument(help="Folder of a grid's results, or its table as CSV.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report (default: report, in the results).")] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="Points of score that may be lost against full HSK and still be enough.")
    ] = 0.5,
) -> None:
    """Write one page that says how little HSK is enough, with figures (PNG, SVG) and tables (CSV, LaTeX) beside it.

    The page needs no other file and no network. What the results cannot show, it says.
    """
    from analysis.report import report as write

    print(f"report: {write(results, out, margin / 100)}")


def recommend(
    results: Annotated[Path, typer.Argument(help="Folder of a grid's results, or its table as CSV.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Points of score that may be lost against full HSK (default: 0.5).")
    ] = None,
    margin_share: Annotated[
        float | None, typer.Option(help="Instead: share of the gap from none to full that may be lost, such as 0.1.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Instead: what the store may take, such as 50MB.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Training examples in the store (default: as in the trials).")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Only this student of the table.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task of the table.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the claim.")] = 0.95,
    new_examples: Annotated[
        bool, typer.Option(help="Claim it for new test examples too, from the answers kept beside the trials.")
    ] = False,
) -> None:
    """Say which spec to distil: the cheapest shown to be as good as full HSK, or the best that fits a budget.

    One recommendation for each task, student and training set of the table, with its evidence and a command to paste.
    """
    from analysis.command_line import parse_bytes
    from analysis.examples import Answers
    from analysis.recommendation import recommend as recommended
    from analysis.table import studies

    found = studies(results)
    chosen = [study for study in found if student in (None, study.student) and task in (None, study.task)]
    if not chosen:
        there = ", ".join(sorted({f"--task {study.task} --student {study.student}" for study in found}))
        raise HskdError(f"{results}: no trials of that task and student; there are: {there}.")
    size = parse_bytes(budget, "--budget") if budget is not None else None
    console = Console()
    for study in chosen:
        answers = Answers.read(study.folder, study) if new_examples else None
        if new_examples and answers is None:
            raise HskdError(f"{results}: the trials' answers or their labels are not kept; leave out --new-examples.")
        made = recommended(study, tolerance, size, examples, margin_share, confidence, answers)
        console.print(f"[bold]{escape(study.title)}[/bold]\n")
        for sentence in made.evidence:
            console.print(sentence, markup=False, highlight=False)
        console.print(_evidence(made.table, confidence))
        print("The command; runs/student and runs/superset stand for your student and your store of these examples:\n")
        print(made.command + "\n")


def _evidence(points: pd.DataFrame, confidence: float) -> Table:
    """A line for every point: bytes, score, and intervals of the paired differences with full and none."""
    caption = f"Scores in per cent. Below full, above none: paired {100 * confidence:g} % intervals, each by itself."
    table = Table(box=SIMPLE, caption=caption)
    for column in ("spec or arm", "bytes", "score", "below full", "above none", "remark"):
        table.add_column(column, justify="left" if column in ("spec or arm", "remark") else "right", overflow="fold")
    percent = points.assign(**100 * points.filter(regex="mean|low|high"))
    for row in percent.to_dict("records"):
        intervals = [(row[f"{column}_low"], row[f"{column}_high"]) for column in ("below_full", "above_none")]
        table.add_row(
            escape(row["name"]),
            f"{row['bytes_per_example']:,.0f}",
            f"{row['mean']:.1f}",
            *["" if pd.isna(low) else f"{low:.1f} to {high:.1f}" for low, high in intervals],
            row["remark"],
        )
    return table


def _table(study: Study) -> Table:
    """A line for every arm and spec: share of full HSK, bytes an example, scores, and what it gains over *none*."""
    from analysis.curves import points

    seeds = sorted(study.trials["seed"].unique())
    above = points(study).query("arm != 'none'").set_index("name").filter(like="above_none").dropna()
    gains = above.to_dict("index")
    table = Table(title=f"{study.task}: score on {study.score_split}, per cent", box=SIMPLE)
    scores = [f"seed {seed}" for seed in seeds] if len(seeds) <= 3 else [f"mean of {len(seeds)}"]
    for column in ("spec or arm", "HSK %", "bytes", *scores, *(["above none, 95 %"] if gains else [])):
        table.add_column(column, justify="left" if column == "spec or arm" else "right", no_wrap=True)
    for name, group in study.trials.sort_values("fraction", kind="stable").groupby("name", sort=False):
        first = group.iloc[0]
        by_seed = group.set_index("seed")["score"]
        shown = [by_seed.get(seed) for seed in seeds] if len(seeds) <= 3 else [by_seed.mean()]
        share = f"{100 * first['fraction']:.2g}" if first["fraction"] < 0.995 else "100"
        gain = [f"{100 * value:.1f}" for value in gains.get(name, {}).values()]
        table.add_row(
            str(name),
            share,
            f"{first['bytes_per_example']:,.0f}",
            *["" if score is None else f"{100 * score:.1f}" for score in shown],
            *(["{} ({} to {})".format(*gain)] if gain else []),
        )
    table.add_row("teacher", "", "", *[f"{100 * study.teacher_score:.1f}"] * len(scores))
    return table
