"""The Pareto figure: score against bytes, with the points that no other point beats joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hskd.analysis.figures import hover, style
from hskd.analysis.figures.axes import Look, amount_axis, legend_columns, level_lines, looks
from hskd.analysis.table import Study
from hskd.errors import HskdError

_X = "bytes_per_example"


def pareto_figure(study: Study, pareto: pd.DataFrame) -> Figure:
    """Draw score against bytes an example, from the table of :func:`hskd.analysis.stats.joint.pareto`.

    A line joins the points of the front. Where there are several strategies, each has its own colour and marker, filled
    on the front.

    Raises:
        HskdError: no point of the front takes any bytes.
    """
    table = pareto[pareto["arm"].isin(("spec", "full"))]
    front = table[table["front"]].sort_values(_X, kind="stable")
    rest = table[~table["front"]]
    if front.empty:
        raise HskdError("joint: nothing that takes bytes beats none, so there is no front to draw.")
    none = pareto[pareto["arm"] == "none"]
    levels = [(str(name), 100 * float(mean)) for name, mean in zip(none["name"], none["mean"], strict=True)]
    several = len(study.strategies) > 1
    names = [strategy or "others" for strategy in study.strategies] + ["full"] if several else []
    rows = -(-len(names) // legend_columns(names)) if several else 1
    with style.canvas((style.FULL, 3.05 + 0.15 * rows)) as figure:
        axes = figure.subplots()
        amount_axis(axes, _X, table[_X].to_numpy(dtype=np.float64))
        mean = 100 * front["mean"]
        line = style.PALE if several else style.CURVE
        axes.plot(front[_X], mean, drawstyle="steps-post", color=line, lw=1, zorder=3)
        bars = 100 * np.stack([front["mean"] - front["low"], front["high"] - front["mean"]])
        if np.isfinite(bars).any():
            axes.errorbar(front[_X], mean, bars, fmt="none", ecolor=line, elinewidth=0.8, capsize=1.8, alpha=0.8)
        if several:
            _draw_strategies(axes, study, table)
        else:
            [best] = axes.plot(front[_X], mean, "o", color=style.CURVE, zorder=5, label="on the front")
            pale: dict[str, Any] = {"ms": 3, "color": style.PALE, "alpha": 0.7, "zorder": 2, "label": "beaten"}
            [beaten] = axes.plot(rest[_X], 100 * rest["mean"], "s", **pale)
            hover.explain(best, "point", front["name"])
            hover.explain(beaten, "point", rest["name"])
        axes.set_ylabel(f"{study.score_split} score on {study.task} ({study.unit})")
        axes.update_datalim([(axes.get_xlim()[0], level) for _, level in levels], updatex=False)
        axes.margins(y=0.08)
        axes.autoscale_view(scalex=False)
        figure.legend(loc="outside upper left", ncols=legend_columns(names) if several else 2)
        figure.draw_without_rendering()
        level_lines(axes, levels)
        style.settle(figure)
        # With several strategies, the colour stands for the rest of a name.
        texts = front["name"].str.split(",").str[0] if several else front["name"]
        labels = list(zip(front[_X], mean, texts, strict=True))
        markers = np.stack([rest[_X], 100 * rest["mean"]], axis=1)
        # Repeated, because a marker covers as much as several points of a line.
        style.label_points(axes, labels, np.concatenate([style.drawn(axes), *[markers] * 5]))
        return figure


def _draw_strategies(axes: Axes, study: Study, table: pd.DataFrame) -> None:
    """Draw the points of each strategy and of *full*: filled on the front, hollow and small off it."""
    look: dict[str | None, Look] = dict(looks(study.strategies).items())
    look[None] = Look(style.INK, "o", "-", 0.0)
    for strategy, seen in look.items():
        own = table[table["arm"] == "full"] if strategy is None else table[table["strategy"] == strategy]
        own = own if strategy is None else own[own["arm"] == "spec"]
        name = "full" if strategy is None else strategy or "others"
        axes.plot([], [], ls="", color=seen.colour, marker=seen.marker, label=name)
        best = own[own["front"]]
        rest = own[~own["front"]]
        [filled] = axes.plot(best[_X], 100 * best["mean"], ls="", color=seen.colour, marker=seen.marker, ms=5, zorder=5)
        hover.explain(filled, "point", best["name"])
        face: dict[str, Any] = {"mfc": "white", "mec": seen.colour, "mew": 0.8, "alpha": 0.8}
        [hollow] = axes.plot(rest[_X], 100 * rest["mean"], ls="", marker=seen.marker, ms=3.5, zorder=2, **face)
        hover.explain(hollow, "point", rest["name"])


def caption(pareto: pd.DataFrame, confidence: float) -> str:
    """Return the caption of the figure."""
    bars = f" Bars: {100 * confidence:g} % t-intervals." if pareto["n"].max() > 1 else ""
    return (
        "Score against bytes an example on disk. A point is on the front if no other point scores as much with fewer "
        "bytes; points off the front are hollow or pale. This is the front of the measured means, so chance lifts some "
        f"points onto it.{bars}"
    )
