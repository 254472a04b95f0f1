"""The figure of the best next step: the gain from a little more of each dimension, at each Pareto-front point."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import row_names
from hskd.analysis.stats.joint import BEST
from hskd.analysis.table import Study
from hskd.errors import HskdError
from hskd.spec import DIMENSIONS

_LOOK = dict(zip(DIMENSIONS, zip(style.COLOURS, ("", "//", "\\\\", "xx", ".."), strict=False), strict=True))
"""Colour and hatch of each dimension's bars."""


def next_byte_figure(study: Study, steps: pd.DataFrame) -> Figure:
    """Draw the score gained per doubling of bytes, from the table of :func:`hskd.analysis.stats.joint.next_byte`.

    Raises:
        HskdError: no point of the front has a neighbour with more bytes.
    """
    known = steps[steps["gain_per_doubling"].notna()]
    if known.empty:
        raise HskdError("joint: no point of the front has a neighbour with a little more of one dimension.")
    groups = list(known.groupby("from_name", sort=False))
    with style.canvas((style.FULL, 0.165 * (len(known) + 1.25 * len(groups)) + 0.5)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=style.INK, lw=0.8, zorder=3)
        names: list[tuple[float, str]] = []
        y = 0.0
        for start, rows in groups:
            names.append((y, f"from {start}:"))
            stored = study.points["bytes_per_example"].loc[start]
            for row in rows.to_dict("records"):
                y += 1
                names.append((y, f"{row['dimension']} → {row['to_name']}"))
                _draw_bar(axes, y, row, float(np.log2(1 + row["extra_bytes"] / stored)))
            y += 1.25
        row_names(axes, names)
        axes.set_xlabel("score gained per doubling of bytes (points)")
        style.settle(figure)
        return figure


def caption(steps: pd.DataFrame, confidence: float) -> str:
    """Return the caption of the figure."""
    text = (
        "From each point of the Pareto front to its neighbour with the next larger amount of one dimension: score "
        "gained for each doubling of the bytes."
    )
    if steps["n"].max() < 2:
        return f"{text} One seed gives no interval."
    text += f" Bars: {100 * confidence:g} % t-intervals, each alone."
    best = int((steps["verdict"] == BEST).sum())
    if not best:
        return f"{text} At no point is one dimension shown to be the best buy."
    return f"{text} Dark: shown to be the best buy from there (Holm over all contrasts)."


def _draw_bar(axes: Axes, y: float, row: dict[Hashable, Any], doublings: float) -> None:
    rate, low, high = (100 * row[name] / doublings for name in ("gain", "low", "high"))
    best = row["verdict"] == BEST
    colour, hatch = _LOOK[row["dimension"]]
    edge = style.INK if best else "white"
    axes.barh(y, rate, 0.72, color=colour, alpha=0.9 if best else 0.4, hatch=hatch, edgecolor=edge, lw=0.6, zorder=2)
    if np.isfinite([low, high]).all():
        ends = [[rate - low], [high - rate]]
        axes.errorbar(rate, y, xerr=ends, fmt="none", ecolor=style.INK, elinewidth=0.7, capsize=1.5, zorder=4)
    if best:
        place = axes.get_yaxis_transform()
        axes.text(1.01, y, BEST, fontsize=style.SMALL, weight="bold", va="center", transform=place)
