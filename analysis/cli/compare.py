"""The command ``hskd compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import tables

if TYPE_CHECKING:
    import pandas as pd


@plugin_option
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a grid's results, or its table as CSV.")],
    second: Annotated[
        Path, typer.Argument(help="Results to compare with them. Both must share some specs or arms, and seeds.")
    ],
    above_none: Annotated[
        bool, typer.Option(help="Compare the gains over each grid's own none arm instead of scores.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figure and the table (default: comparisons, in the second results folder)."),
    ] = None,
) -> None:
    """Pair two grids by seed and test whether their difference matters, such as a switch, the teacher or more data.

    Every spec and arm that both grids have gets its difference, second - first, with a 95 % t-interval. The p-values
    are adjusted (Holm).
    """
    from hskd.analysis.figures import style
    from hskd.analysis.figures.pairing import pairing_figure
    from hskd.analysis.stats.pairing import grid_differences, pair
    from hskd.analysis.table import only_study
    from hskd.results import spreadsheet

    pairs = pair(only_study(first), only_study(second), above_none)
    first_name, second_name = _name(first), _name(second)
    folder = out or (second if second.is_dir() else second.parent) / "comparisons"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{first_name}-{second_name}" + ("-above-none" if above_none else "")
    spreadsheet.write(pairs, folder / f"{stem}.csv")
    figure = style.save(pairing_figure(pairs, first_name, second_name, above_none), folder / f"{stem}.png")
    console = tables()
    console.print(_table(pairs, first_name, second_name, above_none))
    for text in grid_differences(first, second):
        console.print(f"apart: {text}", soft_wrap=True)
    print(f"table:  {folder / f'{stem}.csv'}")
    print(f"figure: {figure}")


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _table(pairs: pd.DataFrame, first: str, second: str, above_none: bool) -> Table:
    import pandas as pd

    from hskd.analysis.stats.strategies import UNDETERMINED

    what = "gained over none" if above_none else "score"
    title = f"{what}, points: {second} - {first}, paired by seed"
    table = Table(title=title, box=SIMPLE, caption="* significant: p (Holm) is below 0.05; n: seeds")
    table.add_column("spec or arm", no_wrap=True)
    for column in ("first", "second", "difference, 95 %", "p (Holm)", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in pairs.to_dict("records"):
        interval = "" if pd.isna(row["low"]) else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        table.add_row(
            str(row["name"]),
            f"{100 * row['first']:.1f}",
            f"{100 * row['second']:.1f}",
            f"{100 * row['difference']:.1f}{interval}" + ("  " if row["verdict"] == UNDETERMINED else " *"),
            "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
            str(row["n"]),
        )
    return table
