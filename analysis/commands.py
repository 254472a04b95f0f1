"""Commands that this package adds to ``hskd``: those that end in a figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hskd.cli.progress import display


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
    from analysis.marginal_utility import marginal_utility_figure, read_trials
    from hskd.grid.config import Machine
    from hskd.grid.executors import InProcess, Workers
    from hskd.grid.run import run_grid
    from hskd.grid.spec import load_grid

    grid = load_grid("demo-quick" if quick else "demo").model_copy(update={"seeds": seeds})
    folder = out or Path("results") / grid.name
    executor = Workers(workers) if workers > 1 else InProcess()
    with display() as shown:
        _, progress = run_grid(grid, grid.trials(Machine.here()), folder, work, executor, shown)
    trials = read_trials(folder / "trials.csv")
    figure = marginal_utility_figure(trials, folder / "marginal_utility.png")
    Console().print(_table(trials))
    print(f"table:  {folder / 'trials.csv'}")
    print(f"figure: {figure}")
    if progress.failed:
        raise typer.Exit(1)


def _table(trials: pd.DataFrame) -> Table:
    """A line for every arm and spec: share of full HSK, bytes an example, scores, and what it gains over *none*."""
    from analysis.paired import above

    seeds = sorted(trials["seed"].unique())
    gains = {(gain["arm"], gain["spec"]): gain for gain in above(trials).to_dict("records")}
    table = Table(title=f"{trials['task'].iloc[0]}: score on {trials['score_split'].iloc[0]}, per cent", box=SIMPLE)
    scores = [f"seed {seed}" for seed in seeds] if len(seeds) <= 3 else [f"mean of {len(seeds)}"]
    for column in ("spec or arm", "HSK %", "bytes", *scores, *(["above none, 95 %"] if gains else [])):
        table.add_column(column, justify="left" if column == "spec or arm" else "right", no_wrap=True)
    for (arm, spec), group in trials.sort_values("fraction", kind="stable").groupby(["arm", "spec"], sort=False):
        first = group.iloc[0]
        by_seed = group.set_index("seed")["score"]
        shown = [by_seed.get(seed) for seed in seeds] if len(seeds) <= 3 else [by_seed.mean()]
        share = f"{100 * first['fraction']:.2g}" if first["fraction"] < 0.995 else "100"
        gain = gains.get((arm, spec))
        table.add_row(
            str(spec if arm == "spec" else arm),
            share,
            f"{first['bytes_per_example']:,.0f}",
            *["" if score is None else f"{100 * score:.1f}" for score in shown],
            *([f"{100 * gain['mean']:.1f} ({100 * gain['low']:.1f} to {100 * gain['high']:.1f})"] if gain else []),
        )
    table.add_row("teacher", "", "", *[f"{100 * trials['teacher_score'].iloc[0]:.1f}"] * len(scores))
    return table
