"""The overview figure: several grids of one student in one picture, to compare the dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import amount_axis, aside, level_lines, looks, scaled
from hskd.analysis.stats.curves import NONE, points
from hskd.analysis.table import AMOUNT_COLUMNS, KEYS, Study
from hskd.errors import HskdError
from hskd.statistics import CONFIDENCE


class Line(NamedTuple):
    """One strategy of a study, as a line."""

    study: Study
    strategy: str

    @property
    def label(self) -> str:
        """The dimension that varies, and the strategy where it has a name."""
        return self.study.dimension_of([self.strategy]) + (f", {self.strategy}" if self.strategy else "")


def overview_figure(lines: Sequence[Line], x: str = AMOUNT_COLUMNS[0], confidence: float = CONFIDENCE) -> Figure:
    """Draw score against amount of HSK, with a line per strategy. Each line ends in the full HSK of its mapping.

    Args:
        lines: strategies of studies that differ only in their specs. The levels of *none*, *full* and the teacher are
            those of the first.
        x: ``bytes_per_example`` or ``fraction``.
        confidence: of the t-intervals.

    Raises:
        HskdError: there are no lines, their studies differ in more than specs, or two lines have the same label.
    """
    if not lines:
        raise HskdError("overview: no results; give at least one folder.")
    first = lines[0].study
    for line in lines[1:]:
        for column in KEYS:
            first_value, other_value = getattr(first, column), getattr(line.study, column)
            if first_value != other_value:
                raise HskdError(
                    f"{column}: {first_value} and {other_value} cannot be in one picture; give results of the same."
                )
    labels = [line.label for line in lines]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise HskdError(f"overview: two of the results are both {twice[0]}; leave one out.")
    tables = []
    for line in lines:
        steps, full = line.study.ladder(line.strategy, x)
        tables.append(points(line.study, confidence).set_index("name").loc[[*steps, *([full] if full else [])]])
    with style.canvas((style.FULL, 3.4)) as figure:
        axes = figure.subplots()
        amount_axis(axes, x, np.concatenate([scaled(table[x].to_numpy(np.float64), x) for table in tables]))
        for table, (label, look) in zip(tables, looks(labels).items(), strict=True):
            # A third of the usual shift is enough: the axis is long, and few points share an amount.
            at = aside(axes, scaled(table[x].to_numpy(np.float64), x), look.shift / 3)
            mean = 100 * table["mean"].to_numpy()
            bars = np.stack([mean - 100 * table["low"], 100 * table["high"] - mean])
            axes.plot(at, mean, color=look.colour, marker=look.marker, ls=look.dashes, label=label, zorder=4)
            if np.isfinite(bars).any():
                axes.errorbar(at, mean, bars, fmt="none", ecolor=look.colour, elinewidth=0.8, capsize=1.8, zorder=3)
        levels = [("teacher", 100 * first.teacher_score)]
        full = first.ladder(lines[0].strategy, x)[1]
        levels += [(name, 100 * first.scores[name].mean()) for name in (full, NONE) if name in first.scores]
        levels = [("full" if name == full else name, level) for name, level in levels]
        axes.update_datalim([(axes.get_xlim()[0], level) for _, level in levels], updatex=False)
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        axes.set_ylabel(f"{first.score_split} score on {first.task} ({first.unit})")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=min(len(lines), 4))
        figure.draw_without_rendering()
        level_lines(axes, levels)
        style.settle(figure)
        return figure
