"""Elements that several figures share: axes of amounts, looks of strategies, named rows and horizontal lines."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hskd.analysis.figures import hover, style
from hskd.analysis.stats.strategies import UNDETERMINED
from hskd.analysis.table import Study

MINUS = "\N{MINUS SIGN}"

AXIS_LABELS = {
    "bytes_per_example": "bytes per example on disk (log scale)",
    "fraction": "fraction of full HSK's values (%, log scale)",
    "kept_per_example": "values kept per example (log scale)",
}
"""Columns that may lie along x, with the labels of their axes."""


CROWDED = 6
"""Most strategies that a figure draws in full.

With more, intervals are faint, trials are left out, and the strip leaves out undetermined strategies.
"""


class Look(NamedTuple):
    """Colour, marker and line of a strategy.

    Up to ten strategies have different markers and colours. Of more, no two share both.
    """

    colour: str
    marker: str
    dashes: Any
    shift: float
    """Share of the axis by which its points are shifted, so that strategies do not cover each other."""
    faint: bool = False
    """Whether intervals are pale and trials are left out, because there are too many strategies."""


def looks(strategies: Sequence[str]) -> dict[str, Look]:
    """Return a look for each strategy, in their order."""
    dashes = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))
    middle = (len(strategies) - 1) / 2
    return {
        strategy: Look(
            style.COLOURS[index % len(style.COLOURS)],
            style.MARKERS[(index + index // len(style.COLOURS)) % len(style.MARKERS)],
            dashes[index % len(dashes)],
            (index - middle) * min(0.017, 0.07 / len(strategies)),
            len(strategies) > CROWDED,
        )
        for index, strategy in enumerate(strategies)
    }


def legend_columns(names: Sequence[str], most: int = 5) -> int:
    """Return how many legend columns with these names fit a figure of full width, at most ``most``."""
    width = 0.5 + 0.047 * max(map(len, names), default=0)  # inches of a handle and of the longest name
    return max(1, min(most, len(names), int(style.FULL / width)))


def scaled(amounts: Any, x: str) -> Any:
    """Return amounts in the unit of the axis: fractions in per cent, others unchanged."""
    return amounts * (100 if x == "fraction" else 1)


def amount_axis(axes: Axes, x: str, amounts: np.ndarray) -> None:
    """Make x a logarithmic axis that covers ``amounts`` (already :func:`scaled`), labelled with plain numbers."""
    low, high = float(amounts.min()), float(amounts.max())
    room = max((high / low) ** 0.07, 1.1)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs, numticks=12))
    if decades < 0.7:  # in so short a span the regular ticks may miss: put ticks at the amounts themselves
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in np.unique(amounts) if low <= tick <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXIS_LABELS[x])


def plain(value: float) -> str:
    """Return a number as text without an exponent: 0.003, 25, 20,000."""
    return (
        f"{value:,.0f}" if value >= 100 else np.format_float_positional(value, precision=3, trim="-", fractional=False)
    )


def aside(axes: Axes, amounts: np.ndarray, shift: float) -> np.ndarray:
    """Return amounts moved by ``shift`` (a share of the axis) along a logarithmic axis whose limits are set."""
    low, high = np.log10(axes.get_xlim())
    return amounts * 10 ** (shift * (high - low))


def amount_names(axes: Axes, study: Study, points: pd.DataFrame, x: str) -> bool:
    """Name the amounts along the top axis if only one dimension varies. Return whether it did."""
    amount_columns = {"depth": ("n", "layers kept"), "length": ("k", "tokens kept"), "width": ("w", "neurons kept (%)")}
    if study.dimension not in amount_columns:
        return False
    column, title = amount_columns[study.dimension]
    amounts = study.points[column].astype(str).rename("amount")
    specs = points[points["arm"] == "spec"].join(amounts, on="name")
    groups = specs.groupby("amount")[x]
    if (groups.max() > 1.1 * groups.min()).any():  # one amount lies at several places, so no tick fits them all
        return False
    places = {str(name): scaled(float(place), x) for name, place in groups.mean().items()}
    if study.dimension == "width":
        places = {plain(100 * float(name)): place for name, place in places.items()}
    top = axes.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator(list(places.values())))
    top.xaxis.set_minor_locator(NullLocator())
    labels = dict(zip(places.values(), places, strict=True))
    top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "")))
    top.set_xlabel(title)
    return True


def row_names(axes: Axes, names: Sequence[tuple[float, str]]) -> None:
    """Name rows ``(y, text)`` on the left, the first on top. A text that ends in a colon is the heading of a group."""
    heights = [at for at, _ in names]
    axes.set_ylim(max(heights) + 0.6, min(heights) - 0.6)
    axes.set_yticks(heights, [name for _, name in names])
    for label in axes.get_yticklabels():
        if label.get_text().endswith(":"):
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def difference_row(axes: Axes, y: float, row: Mapping[Hashable, Any], note: str, colour: str, marker: str) -> None:
    """Draw a difference with its interval at height ``y``, in points. Significant ones are filled and heavy.

    Args:
        axes: of a figure of differences.
        y: the row's height.
        row: difference, low, high (shares; the bounds may be NaN) and verdict.
        note: text after the difference's number, at the row's right end.
        colour: of the row.
        marker: of the row.
    """
    difference, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    is_significant = row["verdict"] != UNDETERMINED
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [y, y], color=colour, lw=2.0 if is_significant else 0.9, zorder=2)
    axes.plot(difference, y, marker=marker, ms=5, color=colour, mfc=colour if is_significant else "white", zorder=3)
    text = f"{difference:+.2f}".replace("-", MINUS) + note
    weight = "bold" if is_significant else "normal"
    axes.text(1.01, y, text, fontsize=style.SMALL, weight=weight, va="center", transform=axes.get_yaxis_transform())


def p_value_text(p: float) -> str:
    """Return a p-value as the end of a note, such as ``, p 0.012``; empty for NaN."""
    if not math.isfinite(p):
        return ""
    return f", p {'< 0.001' if p < 0.001 else format(p, '.2g')}"


def fill_last_row(panels: Sequence[Axes], used: int, columns: int) -> None:
    """Hide the panels after the first ``used``, and show tick labels below the last visible panel of each column."""
    for panel in panels[used:]:
        panel.set_visible(False)
    for panel in panels[max(used - columns, 0) : used]:
        panel.tick_params(labelbottom=True)


def level_lines(axes: Axes, levels: Sequence[tuple[str, float]], numbers: bool = True) -> None:
    """Draw a horizontal line for each arm and level, with names in the right margin that do not overlap.

    The vertical axis is linear. Its limits and the height of ``axes`` must be final.
    """
    height = axes.get_window_extent().height / style.pixels_per_point(axes)  # points
    level_heights = [float(axes.transLimits.transform((0, level))[1]) for _, level in levels]
    line = 1.25 * style.SMALL / height
    placed = style.spread(level_heights, line, line / 2, 1 - line / 2)
    for (arm, level), at, moved in zip(levels, level_heights, placed, strict=True):
        axes.axhline(level, color=style.INK, ls=style.DASHES.get(arm, "--"), lw=0.8, zorder=1, label=arm)
        tie = [1.0, 1.012, 1.03], [at, moved, moved]
        axes.plot(*tie, color=style.INK, lw=0.6, transform=axes.transAxes, clip_on=False)
        text = f"{arm} {level:.1f}" if numbers else arm
        label = axes.text(1.037, moved, text, fontsize=style.SMALL, va="center", transform=axes.transAxes)
        hover.explain(label, "point", [arm])
