"""The figure of two studies paired by seed: the difference at each point, with its interval."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import MINUS, difference_row, row_names


def pairing_figure(pairs: pd.DataFrame, first: str, second: str, above_none: bool = False) -> Figure:
    """Draw a row per point of the table of :func:`hskd.analysis.stats.pairing.pair`, in points of score.

    Significant differences are filled.

    Args:
        pairs: the table, with at least one row.
        first: name of the first results.
        second: name of the second results.
        above_none: whether gains over *none* were compared; only the axis label depends on it.
    """
    with style.canvas((style.FULL, 0.2 * len(pairs) + 0.8)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=style.INK, lw=0.8, zorder=1)
        for y, row in enumerate(pairs.to_dict("records")):
            difference_row(axes, y, row, f", {row['n']} seed{'' if row['n'] == 1 else 's'}", style.CURVE, "o")
        row_names(axes, [(float(y), str(name)) for y, name in enumerate(pairs["name"])])
        axes.margins(x=0.06)
        what = "what is gained over none" if above_none else "score"
        axes.set_xlabel(f"difference in {what}, {second} {MINUS} {first} (points)")
        style.settle(figure)
        return figure
