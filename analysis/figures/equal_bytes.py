"""The figure of specs that take about the same bytes: their scores, from the best mean down."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hskd.analysis.figures import hover, style
from hskd.analysis.figures.axes import MINUS, legend_columns, p_value_text, row_names
from hskd.analysis.stats.equal_bytes import BEHIND, BEST_MEAN, span
from hskd.analysis.table import Study
from hskd.errors import HskdError


def equal_bytes_figure(study: Study, compared: pd.DataFrame) -> Figure:
    """Draw a row per spec of :func:`hskd.analysis.stats.equal_bytes.equal_bytes`, with lines for *none* and *full*.

    Args:
        study: the trials.
        compared: its table.

    Raises:
        HskdError: no two specs take about the same bytes.
    """
    if compared.empty:
        raise HskdError("joint: no two specs take about the same bytes.")
    groups = [rows for _, rows in compared.groupby("group", sort=False)]
    with style.canvas((style.FULL, 0.165 * (len(compared) + 1.3 * len(groups)) + 0.75)) as figure:
        axes = figure.subplots()
        names: list[tuple[float, str]] = []
        y = 0.0
        for rows in groups:
            names.append((y, f"{span(rows)}:"))
            for row in rows.to_dict("records"):
                y += 1
                names.append((y, str(row["name"])))
                _draw_row(axes, y, row)
            y += 1.3
        row_names(axes, names)
        axes.margins(x=0.06)
        _arm_lines(axes, study)
        axes.set_xlabel(f"score ({study.unit})")
        style.settle(figure)
        return figure


def caption(compared: pd.DataFrame, confidence: float) -> str:
    """Return the caption of the figure."""
    text = "Scores of specs that take about the same bytes an example (within half a doubling), the best mean first."
    if compared["n"].max() < 2:
        return f"{text} One seed gives no interval and no test."
    return (
        f"{text} Bars: {100 * confidence:g} % t-intervals over seeds. Right: difference to the best mean, paired by "
        "seed. Filled: shown to be behind it (Holm over all pairs of the group); open: undetermined."
    )


def _draw_row(axes: Axes, y: float, row: dict[Hashable, Any]) -> None:
    mean, low, high = (100 * row[name] for name in ("mean", "low", "high"))
    is_best, is_behind = row["verdict"] == BEST_MEAN, row["verdict"] == BEHIND
    colour = style.COLOURS[2 if is_best else 0]
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [y, y], color=colour, lw=2.0 if is_best else 1.0, zorder=2)
    marker, fill = ("D" if is_best else "o"), (colour if is_best or is_behind else "white")
    [point] = axes.plot(mean, y, marker=marker, ms=4.5, color=colour, mfc=fill, zorder=3)
    hover.explain(point, "point", [str(row["name"])])
    if is_best or not np.isfinite(row["behind"]):
        return
    text = f"{MINUS}{100 * row['behind']:.2f}" if row["behind"] > 0 else f"+{-100 * row['behind']:.2f}"
    text += p_value_text(row["p_holm"])
    weight = "bold" if is_behind else "normal"
    axes.text(1.01, y, text, fontsize=style.SMALL, weight=weight, va="center", transform=axes.get_yaxis_transform())


def _arm_lines(axes: Axes, study: Study) -> None:
    """Draw a vertical line at the mean of *none*, and of each *full* that specs are compared with."""
    references = study.points.loc[study.points["arm"] == "spec", "reference"].unique()
    arms = [name for name in ("none", *references) if name in study.scores]
    for name in arms:
        level = 100 * float(study.scores[name].mean())
        axes.axvline(level, color=style.INK, ls=style.DASHES[name.split(",")[0]], lw=0.8, zorder=1, label=name)
    if arms:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=legend_columns(arms))
