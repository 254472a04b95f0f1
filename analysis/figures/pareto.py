"""The Pareto front: the points of a study that no other beats at its price in bytes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import amount_axis, level_lines
from hskd.analysis.table import Study
from hskd.errors import HskdError

_X = "bytes_per_example"


def pareto_figure(study: Study, pareto: pd.DataFrame) -> Figure:
    """Draw score against bytes an example for a table of :func:`hskd.analysis.stats.joint.pareto`, its front joined.

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
    with style.canvas((style.FULL, 3.2)) as figure:
        axes = figure.subplots()
        amount_axis(axes, _X, table[_X].to_numpy(dtype=np.float64))
        mean = 100 * front["mean"]
        axes.plot(front[_X], mean, drawstyle="steps-post", color=style.CURVE, lw=1, zorder=3)
        axes.plot(front[_X], mean, "o", color=style.CURVE, zorder=5, label="on the front")
        bars = 100 * np.stack([front["mean"] - front["low"], front["high"] - front["mean"]])
        if np.isfinite(bars).any():
            axes.errorbar(front[_X], mean, bars, fmt="none", ecolor=style.CURVE, elinewidth=0.8, capsize=1.8, alpha=0.8)
        axes.plot(rest[_X], 100 * rest["mean"], "s", ms=3, color=style.PALE, alpha=0.7, zorder=2, label="beaten")
        axes.set_ylabel(f"{study.score_split} score on {study.task} ({study.unit})")
        axes.update_datalim([(axes.get_xlim()[0], level) for _, level in levels], updatex=False)
        axes.margins(y=0.08)
        axes.autoscale_view(scalex=False)
        figure.legend(loc="outside upper left", ncols=2)
        figure.draw_without_rendering()
        level_lines(axes, levels)
        style.settle(figure)
        labels = list(zip(front[_X], mean, front["name"], strict=True))
        beaten = np.stack([rest[_X], 100 * rest["mean"]], axis=1)
        # A marker takes the room of several points of a line.
        style.label_points(axes, labels, np.concatenate([style.drawn(axes), *[beaten] * 5]))
        return figure


def caption(pareto: pd.DataFrame, confidence: float) -> str:
    """What the figure shows, in sentences."""
    bars = f" Bars: {100 * confidence:g} % t-intervals." if pareto["n"].max() > 1 else ""
    return (
        "Score against bytes an example on disk. On the front is what no other point beats by scoring as much for "
        f"less. It is the front of the means that were measured: chance lifts points onto it.{bars}"
    )
