"""Commands that this package adds to ``hskd``: those that end in a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hskd.cli.progress import display


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for table and figure (default: results/demo, with --quick apart).")
    ] = Path("results/demo"),
    work: Annotated[
        Path, typer.Option(help="Folder for teacher, stores and trials, which a second run reuses.")
    ] = Path("work"),
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each kind; two or more give intervals.")] = 1,
    quick: Annotated[bool, typer.Option(help="A shrunken run to see that all works; its scores mean nothing.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; their number changes the bits.")] = None,
) -> None:
    """From nothing to a marginal-utility figure: a real teacher, real sentences, one store, a handful of students.

    Takes some minutes on two cores the first time, seconds the second.
    """
    from analysis.marginal_utility import marginal_utility_figure, read_trials
    from hskd.demo import DemoPlan, run_demo

    with display() as shown:
        table_path = run_demo(DemoPlan.quick() if quick else DemoPlan(), seeds, work, out, shown, threads)
    trials = read_trials(table_path)
    figure = marginal_utility_figure(trials, out / "marginal_utility.png")
    table = Table(title=f"{trials['task'].iloc[0]}: score on test, per cent")
    for column in ("arm", "spec", "share of full HSK", "bytes an example", *(f"seed {seed}" for seed in range(seeds))):
        table.add_column(column, justify="left" if column in ("arm", "spec") else "right")
    for (arm, spec), group in trials.groupby(["arm", "spec"], sort=False):
        first = group.iloc[0]
        scores = [f"{100 * score:.1f}" for score in group.sort_values("seed")["score"]]
        kept = (
            [f"{100 * first['fraction']:.2g} %", f"{first['bytes_per_example']:,.0f}"]
            if first["fraction"]
            else ["0", ""]
        )
        table.add_row(str(arm), str(spec), *kept, *scores)
    table.add_row("teacher", "", "", "", *[f"{100 * trials['teacher_score'].iloc[0]:.1f}"] * seeds)
    Console().print(table)
    print(f"table:  {table_path}")
    print(f"figure: {figure}")
