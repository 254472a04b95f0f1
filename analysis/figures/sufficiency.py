"""The figure behind a verdict of sufficiency: losses against full HSK with one-sided bounds, and the margin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import fill_last_row, row_names
from hskd.analysis.stats.sufficiency import Sufficiency
from hskd.errors import HskdError

_LOOK = {
    "sufficient": (style.COLOURS[0], "o", style.COLOURS[0]),
    "insufficient": (style.COLOURS[3], "s", style.COLOURS[3]),
    "not resolved": (style.PALE, "D", "white"),
    "too few seeds": (style.PALE, "x", "white"),
}
"""Colour, marker and filling of each verdict."""
_COLUMNS = 3


def sufficiency_figure(answers: Sequence[Sufficiency]) -> Figure:
    """Draw the tests of :func:`~hskd.analysis.stats.sufficiency.minimum_sufficient`, with a panel per strategy.

    Raises:
        HskdError: no answer has a test.
    """
    tested = [answer for answer in answers if not answer.tests.empty]
    if not tested:
        raise HskdError("minimum: no amount could be tested, so there is nothing to draw.")
    columns = min(len(tested), _COLUMNS)
    rows = -(-len(tested) // columns)
    most = max(len(answer.tests) for answer in tested)
    size = (style.COLUMN if columns == 1 else style.FULL, rows * (0.17 * most + 0.3) + 0.65)
    with style.canvas(size) as figure:
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten().tolist()
        for panel, answer in zip(panels, tested, strict=False):
            _draw(panel, answer)
        fill_last_row(panels, len(tested), columns)
        figure.supxlabel("loss against full HSK (points)", fontsize=8)
        used = {verdict for answer in tested for verdict in answer.tests["verdict"]}
        handles = [
            panels[0].plot([], [], color=colour, marker=marker, mfc=fill, ls="-", label=verdict)[0]
            for verdict, (colour, marker, fill) in _LOOK.items()
            if verdict in used
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.8)
        style.settle(figure)
        return figure


def caption(answers: Sequence[Sufficiency]) -> str:
    """Return the caption of the figure."""
    first = answers[0]
    text = (
        f"Mean loss against full HSK at each amount, with its one-sided {100 * first.confidence:g} % bounds. Dashed: "
        f"the margin, {first.margin}. An amount is enough if its upper bound, and that of every larger amount, is left "
        "of the margin. It is not enough if its lower bound, and that of every smaller amount, is right of it."
    )
    scope = "new test examples like these" if first.new_examples else "these very test examples"
    return f"{text} The bounds speak of {scope}."


def _draw(axes: Axes, answer: Sufficiency) -> None:
    axes.axvline(0, color=style.INK, lw=0.8, zorder=1)
    axes.axvline(100 * answer.limit, color=style.INK, ls=(0, (4, 2)), lw=0.9, zorder=1)
    tests = answer.tests[::-1]  # from the largest down, as they are tested
    for y, row in enumerate(tests.to_dict("records")):
        colour, marker, fill = _LOOK[row["verdict"]]
        bounds = 100 * np.array([row["low"], row["high"]])
        if np.isfinite(bounds).all():
            axes.plot(bounds, [y, y], color=colour, lw=1.2, zorder=2)
        axes.plot(100 * row["loss"], y, marker=marker, color=colour, mfc=fill, zorder=3)
    # The panel's title holds the rest of a name.
    row_names(axes, [(y, name.split(",")[0]) for y, name in enumerate(tests["name"])])
    if answer.strategy:
        axes.set_title(answer.strategy, fontsize=style.SMALL, loc="left")
