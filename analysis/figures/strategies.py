"""The forest plot of strategies compared in pairs: each difference with its interval."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import MINUS, difference_row, p_value_text, row_names
from hskd.errors import HskdError


def strategies_figure(comparison: pd.DataFrame) -> Figure:
    """Draw a row per pair of :func:`hskd.analysis.stats.strategies.compare_strategies`, in points of score.

    Raises:
        HskdError: the table has no pair.
    """
    if comparison.empty:
        raise HskdError("strategies: only one per dimension, so there is nothing to compare.")
    groups = list(comparison.groupby("dimension", sort=False))
    size = (style.FULL, 0.2 * (len(comparison) + 1.3 * len(groups)) + 0.5)
    with style.canvas(size) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=style.INK, lw=0.8, zorder=1)
        names: list[tuple[float, str]] = []
        y = 0.0
        for index, (dimension, rows) in enumerate(groups):
            names.append((y, f"{dimension}:"))
            for row in rows.to_dict("records"):
                y += 1
                names.append((y, f"{row['a']} {MINUS} {row['b']}"))
                difference_row(axes, y, row, p_value_text(row["p_holm"]), style.COLOURS[index], style.MARKERS[index])
            y += 1.3
        row_names(axes, names)
        axes.margins(x=0.06)
        axes.set_xlabel(f"difference in score, first {MINUS} second (points)")
        style.settle(figure)
        return figure


def caption(comparison: pd.DataFrame, confidence: float) -> str:
    """Return the caption of the figure."""
    low, high = int(comparison["n"].min()), int(comparison["n"].max())
    seeds = f"{low} seed{'' if low == 1 else 's'}" if low == high else f"{low} to {high} seeds"
    text = (
        "Strategies compared at equal amounts: differences paired by seed, mean over the settings in which both were "
        f"tried ({seeds})."
    )
    if high < 2:
        return f"{text} One seed gives no interval and no test."
    return (
        f"{text} Bars: {100 * confidence:g} % t-interval of each pair alone. Filled: significant after Holm's "
        "correction over the pairs of the dimension; open: undetermined."
    )
