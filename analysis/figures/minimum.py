"""The figure of a search: losses against full HSK by bytes, screened and confirmed, and the allowed loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hskd.analysis.figures import hover, style
from hskd.analysis.figures.axes import AXIS_LABELS, amount_axis

LOOK = {
    "enough": (style.COLOURS[0], "o", style.COLOURS[0]),
    "too little": (style.COLOURS[3], "s", style.COLOURS[3]),
    "not resolved": (style.PALE, "D", "white"),
}
"""Colour, marker and filling of each verdict on fresh seeds."""

_CROWDED, _NARROW = 6, 5.0
"""More amounts than this, within less than this factor, have no room for a tick each."""


def minimum_figure(tests: pd.DataFrame, screened: pd.DataFrame, limit: float, gap: float) -> Figure:
    """Draw a search.

    Args:
        tests: columns name, bytes_per_example, loss, low, high, verdict: of candidates on fresh seeds.
        screened: columns name, bytes_per_example, loss (of the trials), expected, spread: of candidates on search
            seeds.
        limit: the allowed loss (a share of 1).
        gap: full - none (a share of 1).
    """
    with style.canvas((style.FULL, 3.2)) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=style.INK, ls=style.DASHES["full"], lw=0.8)
        axes.axhline(100 * limit, color=style.COLOURS[3], lw=0.8)
        axes.axhline(100 * gap, color=style.INK, ls=style.DASHES["none"], lw=0.8)
        for y, text in ((0.0, "full"), (100 * limit, "what may be lost"), (100 * gap, "none")):
            axes.annotate(
                text,
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=style.SMALL,
            )
        if not screened.empty:
            [crosses] = axes.plot(
                screened["bytes_per_example"],
                100 * screened["loss"],
                ls="none",
                marker="x",
                color=style.PALE,
                label="screened: one or two search seeds",
            )
            hover.explain(crosses, "screened", screened["name"])
        for verdict, (colour, marker, fill) in LOOK.items():
            rows = tests[tests["verdict"] == verdict]
            if rows.empty:
                continue
            finite = rows[np.isfinite(rows["low"]) & np.isfinite(rows["high"])]
            axes.vlines(finite["bytes_per_example"], 100 * finite["low"], 100 * finite["high"], color=colour, lw=1.2)
            [means] = axes.plot(
                rows["bytes_per_example"],
                100 * rows["loss"],
                ls="none",
                marker=marker,
                color=colour,
                mfc=fill,
                label=f"{verdict}, on fresh seeds",
            )
            hover.explain(means, "tested", rows["name"])
        stored = np.concatenate([tests["bytes_per_example"], screened["bytes_per_example"]]).astype(np.float64)
        axes.set_xlabel(AXIS_LABELS["bytes_per_example"])
        if len(stored):
            amount_axis(axes, "bytes_per_example", stored)
        if len(np.unique(stored)) > _CROWDED and stored.max() < _NARROW * stored.min():
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axes.set_ylabel("loss against full HSK (points)")
        if not (tests.empty and screened.empty):
            figure.legend(loc="outside upper left", ncols=3)
        style.settle(figure)
        return figure


def caption(confidence: float) -> str:
    """Return the caption of the figure."""
    return (
        f"Mean loss against full HSK by bytes. Bars: one-sided {100 * confidence:g} % bounds that hold over all looks. "
        "A candidate is enough if its bar ends below the line of what may be lost."
    )
