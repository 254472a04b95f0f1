"""The strip below a curve: the span of amounts in which the least sufficient amount lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import Look, scaled
from hskd.analysis.stats.sufficiency import Sufficiency

LONGEST_NAME = 26
"""Most characters of a strategy's name that is written beside its row."""
_SPAN = "_minimum"
"""Label of the shading, which no legend lists."""


def draw_minimum(
    axes: Axes, minimum: Sequence[Sufficiency], table: pd.DataFrame, x: str, look: Mapping[str, Look]
) -> None:
    """Draw a row per strategy, from the largest insufficient amount (open marker) to the least sufficient one (filled).

    If there is only one row, its span is shaded in every panel of the figure.

    Args:
        axes: the strip, whose limits along x are set.
        minimum: the answers.
        table: the points of the study, as :func:`hskd.analysis.stats.curves.points` returns them.
        x: the column of ``table`` along x.
        look: the look of each strategy.
    """
    amounts = scaled(table.set_index("name")[x], x)
    left, right = axes.get_xlim()
    axes.set_ylim(len(minimum) - 0.5, -0.5)
    names = [one.strategy or "minimum" for one in minimum]
    # Long names would take space from the curve. Markers stand for them, which the legend explains.
    named = max(map(len, names)) <= LONGEST_NAME
    axes.set_yticks(range(len(minimum)), names if named else [""] * len(names))
    axes.tick_params(axis="both", which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, one in enumerate(minimum):
        seen = look.get(one.strategy, Look(style.CURVE, "o", "-", 0.0))
        if not named:
            place = axes.get_yaxis_transform()
            axes.plot(-0.02, row, marker=seen.marker, color=seen.colour, ls="", transform=place, clip_on=False)
        known = bool(one.above) and amounts.get(one.above, 0) > 0
        start = float(amounts[one.above]) if known else left
        end = float(amounts[one.name]) if one.verdict == "sufficient" else right
        if known:
            axes.plot(start, row, marker=seen.marker, mfc="white", color=seen.colour, ls="", zorder=3)
        if one.verdict == "undetermined":
            axes.plot([start, end], [row, row], color=seen.colour, lw=0.8, ls=(0, (1, 2)), zorder=1)
            _beside(axes, start, row, "undetermined")
            continue
        axes.plot([start, end], [row, row], color=seen.colour, lw=3, alpha=0.35, solid_capstyle="butt")
        if one.verdict == "sufficient":
            axes.plot(end, row, marker=seen.marker, color=seen.colour, ls="")
            _beside(axes, end, row, one.name.split(",")[0])
        if len(minimum) == 1:
            for other in axes.figure.axes:
                other.axvspan(start, end, color=seen.colour, alpha=0.08, lw=0, zorder=0, label=_SPAN)


def clear_minimum(axes: Axes) -> None:
    """Take what :func:`draw_minimum` drew out of the strip, and its shading out of every panel."""
    spans = [patch for panel in axes.figure.axes for patch in panel.patches if patch.get_label() == _SPAN]
    for artist in [*spans, *axes.lines, *axes.texts]:
        artist.remove()


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Write a text to the right of a place, or to its left near the right end of the axes."""
    at_left = axes.transLimits.transform((np.log10(x), 0))[0] > 0.8
    axes.annotate(
        text,
        (x, y),
        xytext=(-6 if at_left else 6, 0),
        textcoords="offset points",
        ha="right" if at_left else "left",
        va="center",
        fontsize=style.SMALL,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
