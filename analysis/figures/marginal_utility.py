"""The marginal-utility figure: score against amount of HSK, the gain of each doubling, and how much is enough."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hskd.analysis.figures import hover, style
from hskd.analysis.figures.axes import (
    AXIS_LABELS,
    CROWDED,
    Look,
    amount_axis,
    amount_names,
    aside,
    legend_columns,
    level_lines,
    looks,
    scaled,
)
from hskd.analysis.figures.minimum_strip import clear_minimum, draw_minimum
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.sufficiency import Sufficiency
from hskd.analysis.table import AMOUNT_COLUMNS, Study
from hskd.errors import HskdError
from hskd.statistics import CONFIDENCE

TITLE = "How much of the teacher's hidden-state knowledge is enough?"
LABELLED = 10
"""Most points that a figure names. More names would cover each other."""


def marginal_utility_figure(
    study: Study,
    x: str = AMOUNT_COLUMNS[0],
    relative: bool = False,
    minimum: Sequence[Sufficiency] = (),
    title: str = "",
    confidence: float = CONFIDENCE,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw score against amount of HSK, and below it the gain from each doubling of the amount.

    Args:
        study: the trials; with one seed the figure has no intervals.
        x: the quantity along x: ``bytes_per_example``, ``fraction`` or ``kept_per_example``.
        relative: draw the share of the gap from *none* to *full* that is closed, instead of the score.
        minimum: the minimum sufficient amounts, one per strategy, drawn as a strip.
        title: a headline for a figure that stands alone. The figure then contains its own caption.
        confidence: of the intervals.
        table: the points of the study with these intervals, where you have them.

    Raises:
        HskdError: ``x`` is unknown or missing from the table; no trial is of the arm *spec*; or *none* or *full* is
            missing while ``relative`` is set.
    """
    table = _checked(points(study, confidence) if table is None else table, x, relative)
    gains = _gains(study, table, x, confidence)
    look = looks(study.strategies)
    minimum = _rows_of_strip(look, minimum)
    column = "relative" if relative else "mean"
    rows = {"curve": 2.3, "minimum": 0.17 * len(minimum) + 0.02, "gain": 1.05}
    heights = {
        name: inches
        for name, inches in rows.items()
        if name == "curve" or (name == "minimum" and minimum) or (name == "gain" and not gains.empty)
    }
    legend = -(-len(look) // legend_columns(list(look))) if len(look) > 1 else 0
    size = (style.FULL, sum(heights.values()) + 0.75 + 0.75 * bool(title) + 0.15 * legend)
    with style.canvas(size) as figure:
        figure.get_layout_engine().set(h_pad=0.03, hspace=0.02)  # type: ignore[union-attr,call-arg]
        parts: dict[str, Axes] = figure.subplot_mosaic(
            [[name] for name in heights], height_ratios=list(heights.values()), sharex=True
        )
        amount_axis(parts["curve"], x, _positive(table[table["arm"].isin(("spec", "full"))], x))
        _draw_curve(parts["curve"], study, table, x, column, look)
        if "minimum" in parts:
            draw_minimum(parts["minimum"], minimum, table, x, look)
        if "gain" in parts:
            _draw_gains(parts["gain"], gains, x, look)
        for part in [*parts.values()][:-1]:
            part.set_xlabel("")
            part.tick_params(labelbottom=False)
        [*parts.values()][-1].set_xlabel(AXIS_LABELS[x])
        _head(figure, parts["curve"], study, look, title)
        if title:
            about = caption(study, relative, minimum, confidence).partition(". ")[2]
            figure.supxlabel(textwrap.fill(about, 124), x=0.01, ha="left", fontsize=style.SMALL)
        named = amount_names(parts["curve"], study, table, x)
        figure.draw_without_rendering()
        level_lines(parts["curve"], _levels(study, table, column), numbers=not relative)
        style.settle(figure)
        if not named:
            _name_points(parts["curve"], table, x, column)
        return figure


def move_minimum(
    figure: Figure, study: Study, minimum: Sequence[Sufficiency], table: pd.DataFrame, x: str = AMOUNT_COLUMNS[0]
) -> bool:
    """Draw other minimum amounts into a figure that :func:`marginal_utility_figure` drew of the study: it is quicker.

    Returns:
        Whether it was done. If not, the strip has another number of rows: draw the figure anew.
    """
    look = looks(study.strategies)
    minimum = _rows_of_strip(look, minimum)
    strips = [axes for axes in figure.axes if axes.get_label() == "minimum"]
    if not minimum or not strips or len(strips[0].get_yticks()) != len(minimum):
        return False
    with style.again():
        clear_minimum(strips[0])
        draw_minimum(strips[0], minimum, table, x, look)
    return True


def _rows_of_strip(look: Mapping[str, Look], minimum: Sequence[Sufficiency]) -> list[Sufficiency]:
    return [one for one in minimum if len(look) <= CROWDED or one.verdict != "undetermined"]


def caption(
    study: Study,
    relative: bool = False,
    minimum: Sequence[Sufficiency] = (),
    confidence: float = CONFIDENCE,
    table: pd.DataFrame | None = None,
) -> str:
    """Return the caption of the figure. It explains dots and bars according to the number of seeds."""
    table = points(study, confidence) if table is None else table
    seeds = f"{table['n'].min()}" if table["n"].nunique() == 1 else f"{table['n'].min()} to {table['n'].max()}"
    quantity = "Share of the gap from none to full that is closed" if relative else f"Score on {study.score_split}"
    sentences = [f"{quantity}, against the amount of HSK that is distilled."]
    if table["n"].max() == 1:
        sentences.append("1 seed: each point is a single trial and carries no interval.")
    elif relative:
        sentences.append(f"Means over {seeds} seeds with Fieller's {100 * confidence:g} % intervals.")
        if table.loc[table["arm"] == "spec", "relative_low"].isna().all():
            sentences.append("No intervals: the gap is not shown to differ from 0, so no share of it is bounded.")
    else:
        dots = "; pale dots are trials" if len(study.strategies) <= CROWDED else ", drawn faintly and cut off"
        sentences.append(f"Means over {seeds} seeds with {100 * confidence:g} % t-intervals{dots}.")
        if table["n"].min() == 1:
            sentences.append("Where there is 1 seed there is no interval.")
    if minimum:
        sentences.append(
            f"Strip: at a margin of {minimum[0].margin}, the open marker is shown not to be enough, the filled one "
            "to be enough; the least that is enough lies between."
        )
    if len(study.strategies) > 1:
        sentences.append("Strategies are set aside a little along x, so that none covers another.")
    if len(study.points[study.points["arm"] == "full"]) > 1 and len({*study.points["reference"]} - {""}) == 1:
        sentences.append("Full is that of most bits; hollow circles, if any, are full HSK in fewer bits.")
    return " ".join(sentences)


def _checked(table: pd.DataFrame, x: str, relative: bool) -> pd.DataFrame:
    if x not in AXIS_LABELS:
        raise HskdError(f"x: {x!r} is no column of amounts; expected one of {', '.join(AXIS_LABELS)}.")
    specs = table[table["arm"] == "spec"]
    if specs.empty:
        raise HskdError("column arm: no trial of the arm spec, so there is no curve. Run the grid until one is done.")
    if specs[x].isna().any():
        raise HskdError(f"column {x}: missing, so it cannot lie along x. Choose another, such as bytes_per_example.")
    if relative and specs["relative"].isna().all():
        if {"none", "full"} <= set(table["arm"]):
            raise HskdError("full does not score above none, so there is no gap to take a share of.")
        raise HskdError("column arm: none or full is missing, so there is no gap to take a share of. Run these arms.")
    return table


def _gains(study: Study, table: pd.DataFrame, x: str, confidence: float) -> pd.DataFrame:
    if x != "kept_per_example":
        return marginal_utility(study, confidence, x)
    # Values kept are proportional to the fraction, so the doublings are the same.
    full_values = float((table[x] / table["fraction"]).median())
    gains = marginal_utility(study, confidence, "fraction")
    return gains.assign(**{column: gains[column] * full_values for column in ("low_x", "high_x", "at")})


def _positive(table: pd.DataFrame, x: str) -> np.ndarray:
    return np.asarray(scaled(table.loc[table[x] > 0, x], x), dtype=np.float64)


def _draw_curve(axes: Axes, study: Study, table: pd.DataFrame, x: str, column: str, look: Mapping[str, Look]) -> None:
    by_name = table.set_index("name")
    ladders = {strategy: study.ladder(strategy, x if x in AMOUNT_COLUMNS else "fraction") for strategy in look}
    fulls = [full for _, full in ladders.values() if full]
    shared = fulls[0] if len(fulls) > 1 and len(set(fulls)) == 1 else ""
    on_a_line = {name for names, full in ladders.values() for name in (*names, full)}
    rest = by_name[(by_name["arm"] == "full") & ~by_name.index.isin(on_a_line)]
    if len(rest):
        at = scaled(rest[x], x)
        _draw_points(axes, study, by_name, at, column, Look("white", "o", "-", 0.0), "full in fewer bits")
    for strategy, seen in look.items():
        names, full = ladders[strategy]
        line = by_name.loc[[*names, *([full] if full else [])]].sort_values(x, kind="stable")
        at = pd.Series(aside(axes, _positive(line, x), seen.shift), index=line.index)
        if shared:  # one point, where all lines end
            at[shared] = scaled(line.loc[shared, x], x)
        # Where several dimensions vary, neighbouring specs are not steps of one quantity: the line only guides the eye.
        guide: dict[str, Any] = (
            {"alpha": 0.35, "lw": 0.8} if study.dimension == "joint" and len(names) > LABELLED else {}
        )
        axes.plot(at, 100 * line[column], color=seen.colour, ls=seen.dashes, zorder=3, **guide)
        _draw_points(axes, study, line, at.drop(shared, errors="ignore"), column, seen, strategy or "mean per spec")
    if shared:
        at = pd.Series({shared: scaled(by_name.loc[shared, x], x)})
        _draw_points(axes, study, by_name, at, column, Look(style.INK, "o", "-", 0.0), "full")
    if column == "mean":
        axes.set_ylabel(f"{study.score_split} score on {study.task} ({study.unit})")
        none = table[(table["arm"] == "none") & table["low"].notna()]
        for low, high in zip(100 * none["low"], 100 * none["high"], strict=True):
            axes.axhspan(low, high, color=style.PALE, alpha=0.15, lw=0, zorder=0)
    else:
        axes.set_ylabel("gap none to full closed (%)")
    levels = [level for _, level in _levels(study, table, column)]
    axes.update_datalim([(axes.get_xlim()[0], level) for level in levels], updatex=False)
    axes.margins(y=0.06)
    axes.autoscale_view(scalex=False)
    if len(look) > CROWDED:  # scale to the means, so that they can be told apart; intervals are cut off
        heights = [*levels, *(100 * table[column].dropna())]
        room = 0.15 * (max(heights) - min(heights) or 1.0)
        axes.set_ylim(min(heights) - room, max(heights) + room)
    if column != "mean":  # Fieller's intervals may be very wide, and would flatten everything else
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -150), min(high, 300))


def _draw_points(
    axes: Axes,
    study: Study,
    table: pd.DataFrame,
    at: pd.Series[float],
    column: str,
    look: Look,
    label: str,
) -> None:
    """Draw the means of points with their intervals and trials; ``at`` holds their places along x, by name."""
    low, high = ("low", "high") if column == "mean" else ("relative_low", "relative_high")
    mean = 100 * table.loc[at.index, column].to_numpy()
    edge = style.INK if look.colour == "white" else look.colour
    [means] = axes.plot(at, mean, ls="", mfc=look.colour, mec=edge, marker=look.marker, zorder=5, label=label)
    hover.explain(means, "point", at.index)
    bars = np.stack([mean - 100 * table.loc[at.index, low], 100 * table.loc[at.index, high] - mean])
    if np.isfinite(bars).any():
        faint: dict[str, Any] = {"alpha": 0.3, "capsize": 0.0} if look.faint else {"capsize": 1.8}
        axes.errorbar(at, mean, bars, fmt="none", ecolor=edge, elinewidth=0.8, zorder=4, **faint)
    if column == "mean" and not look.faint:
        own = study.trials[study.trials["name"].isin(at.index)]
        beside = aside(axes, own["name"].map(at).to_numpy(), 0.006)
        axes.scatter(beside, 100 * own["score"], s=7, color=edge, alpha=0.3, linewidths=0, zorder=2, label="trial")


def _levels(study: Study, table: pd.DataFrame, column: str) -> list[tuple[str, float]]:
    """Return the arms that are drawn as horizontal lines, with their heights.

    *full* is among them only where all specs are compared with the same *full* point.
    """
    others = table[~table["arm"].isin(("spec", "full"))]
    references = set(study.points.loc[study.points["arm"] != "none", "reference"]) - {""}
    full = table[table["name"].isin(references)] if len(references) == 1 else table.iloc[:0]
    level_arms = pd.concat([others, full])
    names = level_arms["name"].mask(level_arms["arm"] == "full", "full")
    levels = [(str(name), 100 * float(level)) for name, level in zip(names, level_arms[column], strict=True)]
    if column == "mean":
        return [("teacher", 100 * study.teacher_score), *levels]
    return [(name, level) for name, level in levels if np.isfinite(level)]


def _draw_gains(axes: Axes, gains: pd.DataFrame, x: str, look: Mapping[str, Look]) -> None:
    axes.axhline(0, color=style.INK, lw=0.8, zorder=1)
    for strategy, rows in gains.groupby("strategy", sort=False):
        seen = look[str(strategy)]
        at = aside(axes, scaled(rows["at"].to_numpy(), x), seen.shift)
        gain, low, high = (100 * rows[name].to_numpy() for name in ("gain", "low", "high"))
        if len(look) == 1:
            steps = scaled(rows["low_x"], x), scaled(rows["high_x"], x)
            axes.hlines(gain, *steps, color=seen.colour, lw=2.5, alpha=0.25, zorder=2)
        [means] = axes.plot(at, gain, ls="", color=seen.colour, marker=seen.marker, ms=3.5, zorder=4)
        hover.explain(means, "gain", rows.index)
        bars = np.stack([gain - low, high - gain])
        if np.isfinite(bars).any() and len(look) <= CROWDED:
            axes.errorbar(at, gain, bars, fmt="none", ecolor=seen.colour, elinewidth=0.8, capsize=1.8, zorder=3)
    axes.margins(y=0.1)
    axes.autoscale_view(scalex=False)
    axes.set_ylabel("gain per\ndoubling (points)")


def _head(figure: Figure, axes: Axes, study: Study, look: Mapping[str, Look], title: str) -> None:
    """Draw the headline, and a legend of the strategies."""
    if title:
        axes.set_title(study.title, loc="left", fontsize=style.SMALL)
    if len(look) > 1:
        handles = [
            Line2D([], [], color=seen.colour, marker=seen.marker, ls=seen.dashes, label=strategy or "others")
            for strategy, seen in look.items()
        ]
        columns = legend_columns(list(look))
        # The headline is the legend's title: a separate headline would overlap the legend.
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3, title=title)
        legend.set_alignment("left")
        legend.get_title().set(fontsize=10, fontweight="bold")
    elif title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")


def _name_points(axes: Axes, table: pd.DataFrame, x: str, column: str) -> None:
    """Write the specs' names where they cover nothing. Too many specs get no names."""
    specs = table[(table["arm"] == "spec") & table[column].notna()]
    if len(specs) > LABELLED:
        return
    labels = list(zip(scaled(specs[x], x), 100 * specs[column], specs["name"], strict=True))
    style.label_points(axes, labels, style.drawn(axes))
