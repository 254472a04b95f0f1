"""The command ``hskd demo``."""

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
        Path | None,
        typer.Option(help="Folder for the table and the figure (default: results/demo, or results/demo-quick)."),
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for the teacher, the stores and the trials. A second run reuses them.")
    ] = Path("work"),
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each spec and arm; two or more give intervals.")] = 1,
    quick: Annotated[
        bool, typer.Option(help="Run a tiny version that only checks the installation; its scores mean nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time, each on one thread.")] = min(
        2, os.cpu_count() or 1
    ),
) -> None:
    """Run a small study end to end: a teacher, a store of its hidden states, some students, and their figure.

    The first run takes about four minutes on two cores; a second run takes a second. It runs the grid preset demo.
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
    """Return a line per arm and spec: share of full HSK, bytes an example, scores, and gain over *none*."""
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
