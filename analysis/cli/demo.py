"""``hskd demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from hskd.cli.progress import display, tables

if TYPE_CHECKING:
    from hskd.analysis.table import Study


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

    Takes about five minutes on two cores the first time, and a second the next time. It is the grid preset demo.
    """
    from hskd.analysis.finished import FinishedDemo

    name = "demo-quick" if quick else "demo"
    folder = out or Path("results") / name
    finished = FinishedDemo.of(folder, name, seeds)
    if (summary := finished.summary()) is not None:
        print(summary)
        return

    from hskd.analysis.figures import style
    from hskd.analysis.figures.marginal_utility import TITLE, marginal_utility_figure
    from hskd.analysis.stats.sufficiency import minimum_sufficient
    from hskd.analysis.table import studies
    from hskd.grid.executors import InProcess, Workers
    from hskd.grid.run import run_grid
    from hskd.grid.spec import load_grid
    from hskd.results import TABLE_FILE
    from hskd.trials.config import Machine

    grid = load_grid(name).model_copy(update={"seeds": seeds})
    executor = Workers(workers) if workers > 1 else InProcess()
    with display() as progress:
        _, status = run_grid(grid, grid.trials(Machine.here()), folder, work, executor, progress)
    [study] = studies(folder)
    drawn = marginal_utility_figure(study, minimum=minimum_sufficient(study), title=TITLE)
    figure = style.save(drawn, folder / "marginal_utility.png")
    console = tables()
    with console.capture() as captured:
        console.print(_table(study))
    summary = f"{captured.get()}table:  {folder / TABLE_FILE}\nfigure: {figure}"
    print(summary)
    if status.failed:
        raise typer.Exit(1)
    finished.write(summary)


def _table(study: Study) -> Table:
    """A line for every arm and spec: share of full HSK, bytes an example, scores, and what it gains over *none*."""
    from hskd.analysis.stats.curves import points

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
        seed_scores = [by_seed.get(seed) for seed in seeds] if len(seeds) <= 3 else [by_seed.mean()]
        share = f"{100 * first['fraction']:.2g}" if first["fraction"] < 0.995 else "100"
        gain = [f"{100 * value:.1f}" for value in gains.get(name, {}).values()]
        table.add_row(
            str(name),
            share,
            f"{first['bytes_per_example']:,.0f}",
            *["" if score is None else f"{100 * score:.1f}" for score in seed_scores],
            *(["{} ({} to {})".format(*gain)] if gain else []),
        )
    table.add_row("teacher", "", "", *[f"{100 * study.teacher_score:.1f}"] * len(scores))
    return table
