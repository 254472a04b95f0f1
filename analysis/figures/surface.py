"""Heat maps of scores over depth, length and width: a panel per number of layers, tokens against neurons."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hskd.analysis.figures import style
from hskd.analysis.figures.axes import fill_last_row, plain
from hskd.errors import HskdError

_CELL = 0.34, 0.24  # inches: room for a score in the smallest font
_SIDES = 1.1  # inches for the axis, its labels and the colour bar


def surface_figure(surface: pd.DataFrame) -> Figure:
    """Draw the mean scores of :func:`hskd.analysis.stats.joint.surface`, in per cent.

    Cells that were not run are hatched. Of several strategies or precisions, the one with the most points is drawn
    (:func:`chosen`).

    Raises:
        HskdError: the table has no point.
    """
    if surface.empty:
        raise HskdError("joint: no point whose amounts are numbers, so there is no surface.")
    table = chosen(surface)
    layers, tokens = (_used(table[column]) for column in ("n", "k"))
    neurons = sorted(table["w"].unique())
    panel = max(_CELL[0] * len(neurons), 0.8)
    columns = max(1, min(len(layers), int((style.FULL - _SIDES) / (panel + 0.15))))
    rows = -(-len(layers) // columns)
    # Cells keep their size, so that a small table is not stretched to the width of the page.
    width = min(style.FULL, max(columns * (1.35 * panel + 0.15) + _SIDES, style.COLUMN))
    with style.canvas((width, rows * (_CELL[1] * len(tokens) + 0.3) + 0.45)) as figure:
        figure.get_layout_engine().set(h_pad=0.05)  # type: ignore[union-attr,call-arg]
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        colours = seaborn.color_palette("cividis", as_cmap=True)
        norm = Normalize(100 * table["score"].min(), 100 * table["score"].max())
        for axes, n in zip(panels.flat, layers, strict=False):
            _draw(axes, table[table["n"] == n], tokens, neurons, norm, colours)
            axes.set_title(f"{n} layer{'' if n == '1' else 's'}")
        fill_last_row(list(panels.flat), len(layers), columns)
        for axes in panels[:, 0]:
            axes.set_ylabel("tokens kept")
        figure.supxlabel("neurons kept (%)", fontsize=8)
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels.flat), pad=0.015, aspect=12)
        bar.set_label("mean score (%)")
        bar.outline.set_visible(False)
        style.settle(figure)
        return figure


def caption(surface: pd.DataFrame) -> str:
    """Return the caption of the figure."""
    table = chosen(surface)
    seeds = sorted(table["n_seeds"].unique())
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    count += " seed" if seeds[-1] == 1 else " seeds"
    text = f"Mean score at each combination of amounts, over {count}; hatched: not run."
    strategies = [name for name in table["strategy"].unique() if name]
    if len(table) < len(surface):
        named = f" of {strategies[0]}" if strategies else ""
        text += f" Shows {len(table)} of {len(surface)} points{named}; one picture cannot show the others."
    return text


def chosen(surface: pd.DataFrame) -> pd.DataFrame:
    """Return the part of a surface that one figure can show: one strategy and precision, one point per cell."""
    sizes = surface.groupby(["strategy", "precision"], sort=False).size()
    strategy, precision = sizes.index[int(sizes.to_numpy().argmax())]
    # A point without a strategy (full) belongs to every strategy.
    fits = surface["strategy"].isin([strategy, ""]) & (surface["precision"] == precision)
    return surface[fits].drop_duplicates(["n", "k", "w"])


def _used(amounts: pd.Series[str]) -> list[str]:
    return [str(amount) for amount in amounts.cat.categories if (amounts == amount).any()]


def _draw(
    axes: Axes, table: pd.DataFrame, tokens: Sequence[str], neurons: Sequence[float], norm: Normalize, colours: Colormap
) -> None:
    scores = {(str(k), w): 100 * score for k, w, score in zip(table["k"], table["w"], table["score"], strict=True)}
    for y, k in enumerate(tokens):
        for x, w in enumerate(neurons):
            score = scores.get((k, w))
            if score is None:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="white", ec="0.8", hatch="////", lw=0))
                continue
            colour = colours(norm(score))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="white", lw=0.8))
            light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
            ink = style.ON_LIGHT if light else style.ON_DARK
            axes.text(x, y, f"{score:.1f}", color=ink, fontsize=style.SMALL, ha="center", va="center")
    axes.set_xlim(-0.5, len(neurons) - 0.5)
    axes.set_ylim(-0.5, len(tokens) - 0.5)
    axes.set_xticks(range(len(neurons)), ["all" if w == 1 else plain(100 * w) for w in neurons])
    axes.set_yticks(range(len(tokens)), tokens)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
