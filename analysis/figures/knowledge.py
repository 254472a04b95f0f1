"""Figures of a teacher's knowledge, from the tables of :mod:`hskd.analysis.stats.knowledge`."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from hskd.analysis.figures import style
from hskd.analysis.stats.knowledge import ONE_MASK, PER_TOKEN

_TEXT, _ROW, _WORDS, _GAP = 8.0, 0.135, 0.21, 0.13  # points; inches: a layer's row, the line of words, between lines
_PAD = 0.045  # inches on either side of a token's text
_SHOWN = 64  # neurons of the heat map: more would be narrower than a pixel is wide
_SHARES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


def token_figure(importance: pd.DataFrame, kept: pd.DataFrame | None = None) -> Figure:
    """Draw one sentence with the attention that ``[CLS]`` pays each token.

    Below each token there is a cell per attention layer. The darker the cell, the more ``[CLS]`` attends to the token.

    Args:
        importance: the table of :func:`hskd.analysis.stats.knowledge.token_importance`.
        kept: the table of :func:`hskd.analysis.stats.knowledge.kept_tokens` for the same example. Kept tokens get a
            dot.
    """
    tokens = importance[importance["layer"] == importance["layer"].iloc[0]].sort_values("position")
    pieces = tokens["piece"].tolist()
    widths = [max(_text_width(piece) + 2 * _PAD, 0.2) for piece in pieces]
    shares = importance.pivot(index="layer", columns="position", values="share")
    values = shares.to_numpy()
    labels = _row_labels(shares.index.tolist(), kept)
    left = max(_text_width(label, style.SMALL) for label in labels.values()) + 0.2
    lines = list(_wrap(widths, tokens["starts_word"].tolist(), style.FULL - left - 0.1))
    block = _WORDS + len(shares) * _ROW + _GAP
    height = 0.3 + len(lines) * block + 0.42

    # A few tokens take most of the attention, [CLS] itself above all. A linear scale would hide the other tokens, and
    # so would a scale that reaches up to [CLS].
    norm = PowerNorm(0.5, 0, float(values[:, 1:].max()))
    colours = matplotlib.colormaps["Blues"]
    marked = set() if kept is None else set(zip(kept["layer"], kept["position"], strict=True))
    with style.figure((style.FULL, height)) as (figure, axes):
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, style.FULL), ylim=(height, 0))
        axes.axis("off")
        axes.text(0.1, 0.16, "Attention that [CLS] pays each token", weight="bold", fontsize=9, va="center")
        for line, places in enumerate(lines):
            top = 0.3 + line * block
            for row, layer in enumerate(shares.index):
                y = top + _WORDS + (row + 0.5) * _ROW
                axes.text(left - 0.08, y, labels[layer], fontsize=style.SMALL, ha="right", va="center", color="0.3")
            for token, x in places:
                centre = left + x + widths[token] / 2
                axes.text(centre, top + _WORDS / 2, pieces[token], fontsize=_TEXT, ha="center", va="center")
                for row, layer in enumerate(shares.index):
                    _cell(
                        axes,
                        (left + x, top + _WORDS + row * _ROW, widths[token]),
                        colours(min(float(norm(float(values[row, token]))), 1.0)),
                        dot=(layer, tokens["position"].iloc[token]) in marked,
                    )
        bar = figure.add_axes((left / style.FULL, 0.24 / height, 1.8 / style.FULL, 0.09 / height))
        _share_bar(figure, bar, colours, norm)
        if kept is not None:
            axes.text(left + 2.5, height - 0.285, "● kept by the spec", fontsize=style.SMALL, va="center", color="0.2")
    return figure


def magnitude_figure(magnitude: pd.DataFrame, w: float = 0.1) -> Figure:
    """Draw how unequal neurons are: how often each is among a token's largest, and how large it is in each layer.

    Args:
        magnitude: the table of :func:`hskd.analysis.stats.knowledge.neuron_magnitude`.
        w: share of the neurons that the table counts as largest.
    """
    layers = sorted(magnitude["layer"].unique())
    with style.canvas((style.FULL, 2.7)) as figure:
        often, heat = figure.subplots(1, 2)
        _layer_lines(often, magnitude.sort_values("rank"), "rank", "top_share", layers)
        often.axhline(w, color="0.5", ls=":", lw=1)
        often.text(1, w, " if all were alike", fontsize=style.SMALL, color="0.4", va="bottom")
        often.set_xscale("log")
        often.set(ylim=(0, 1.02), xlabel="neurons, the most frequent first (log scale)")
        often.set_ylabel(f"share of the tokens in which it\nis among the largest {100 * w:g} %")
        often.set_title("How often each is large", loc="left", weight="bold")
        often.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        often.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        _layer_bar(figure, often, layers)
        size = magnitude.pivot(index="layer", columns="neuron", values="mean_abs")
        order = size.mean().sort_values(ascending=False).index[:_SHOWN]
        image = heat.imshow(
            size[order], aspect="auto", interpolation="nearest", cmap="Blues", norm=PowerNorm(0.5, 0), origin="lower"
        )
        heat.set(xlabel=f"the {len(order)} largest of {size.shape[1]} neurons", ylabel="teacher layer")
        heat.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        heat.set_xticks([])
        heat.set_title("How large each is: mean |h|", loc="left", weight="bold")
        bar = figure.colorbar(image, ax=heat, pad=0.03, aspect=30)
        bar.outline.set_visible(False)
    return figure


def energy_figure(by_neurons: pd.DataFrame, by_tokens: pd.DataFrame) -> Figure:
    """Draw how much of the teacher's energy (sum of squares) is kept by a share of the neurons or of the tokens.

    Args:
        by_neurons: the table of :func:`hskd.analysis.stats.knowledge.energy_by_neurons`.
        by_tokens: the table of :func:`hskd.analysis.stats.knowledge.energy_by_tokens`.
    """
    layers = sorted(by_neurons["layer"].unique())
    even = np.geomspace(0.001, 1, 100)
    with style.canvas((style.FULL, 2.7)) as figure:
        neurons, tokens = figure.subplots(1, 2)
        _layer_lines(neurons, by_neurons[by_neurons["mask"] == PER_TOKEN], "neurons", "energy", layers)
        _layer_lines(neurons, by_neurons[by_neurons["mask"] == ONE_MASK], "neurons", "energy", layers, ls=(0, (4, 1.5)))
        neurons.set_xscale("log")
        neurons.xaxis.set_major_locator(FixedLocator(_SHARES))
        neurons.xaxis.set_minor_locator(NullLocator())
        neurons.set(xlim=(by_neurons["neurons"].min(), 1), xlabel="share of the neurons (log scale)")
        neurons.set_ylabel("share of the energy kept")
        neurons.set_title("Neurons", loc="left", weight="bold")
        _layer_lines(tokens, by_tokens, "tokens", "attention", layers)
        _layer_lines(tokens, by_tokens, "tokens", "energy", layers, ls=(0, (4, 1.5)))
        tokens.set(xlim=(0, 1), xlabel="share of the tokens, the most attended first")
        tokens.set_ylabel("share of the sentence's total kept")
        tokens.set_title("Tokens", loc="left", weight="bold")
        kinds = {
            neurons: ("each token's largest", "one mask for all", "at random"),
            tokens: ("attention", "energy", "if all were alike"),
        }
        for panel, names in kinds.items():
            panel.plot(even, even, color="0.5", ls=":", lw=1)
            panel.set_ylim(0, 1.02)
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
            dashes = ("-", (0, (4, 1.5)), ":")
            handles = [Line2D([], [], color="0.3", ls=dash) for dash in dashes]
            panel.legend(handles, names, loc="upper left" if panel is neurons else "lower right")
        _layer_bar(figure, tokens, layers)
    return figure


def _layer_colours(layers: list[int]) -> Colormap:
    """Return a colour for each layer, from light (lowest) to dark (highest), so that grey prints differ too."""
    return ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, len(layers))))


def _layer_lines(axes: Axes, table: pd.DataFrame, x: str, y: str, layers: list[int], ls: object = "-") -> None:
    colours = _layer_colours(layers)
    for i, layer in enumerate(layers):
        line = table[table["layer"] == layer]
        axes.plot(line[x], line[y], color=colours(i), ls=ls, lw=1.1)


def _layer_bar(figure: Figure, axes: Axes, layers: list[int]) -> None:
    """Draw a colour bar beside ``axes`` that says which colour is which layer."""
    edges = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    bar = figure.colorbar(ScalarMappable(edges, _layer_colours(layers)), ax=axes, pad=0.03, aspect=30)
    bar.set_ticks(range(len(layers)), labels=[str(layer) for layer in layers])
    bar.ax.tick_params(which="both", length=0, labelsize=style.SMALL)
    bar.set_label("teacher layer", fontsize=style.SMALL)
    bar.outline.set_visible(False)


def _text_width(text: str, size: float = _TEXT) -> float:
    """Return the inches that ``text`` takes at font size ``size`` (points). A blank counts as a letter."""
    return TextPath((0, 0), text.replace(" ", "n") or "n", size=size).get_extents().x1 / 72


def _wrap(widths: list[float], starts: list[bool], room: float) -> Iterator[list[tuple[int, float]]]:
    """Yield lines of ``(token, x)``. A word's pieces touch each other, and stay on one line if they fit."""
    first = [i for i, start in enumerate(starts) if start or i == 0]
    line: list[tuple[int, float]] = []
    x = 0.0
    for begin, end in zip(first, [*first[1:], len(widths)], strict=True):
        if line and x + sum(widths[begin:end]) > room:
            yield line
            line, x = [], 0.0
        for token in range(begin, end):
            line.append((token, x))
            x += widths[token]
        x += _PAD
    yield line


def _row_labels(layers: list[int], kept: pd.DataFrame | None) -> dict[int, str]:
    labels = {layer: f"layer {layer}" for layer in layers}
    if kept is not None:
        for layer in sorted(set(kept["layer"])):
            learners = sorted(set(kept.loc[kept["layer"] == layer, "student_layer"]))
            labels[layer] += f" → student {', '.join(map(str, learners))}"
    return labels


def _cell(axes: Axes, box: tuple[float, float, float], colour: tuple[float, float, float, float], dot: bool) -> None:
    """Draw a cell at ``(x, y, width)``. Its dot is white on dark cells and black on light ones."""
    x, y, width = box
    axes.add_patch(Rectangle((x, y), width, _ROW, facecolor=colour, edgecolor="white", lw=0.6))
    if dot:
        light = float(np.dot(colour[:3], (0.3, 0.59, 0.11))) > 0.5
        axes.plot(x + width / 2, y + _ROW / 2, "o", ms=3.6, color="black" if light else "white", mew=0)


def _share_bar(figure: Figure, axes: Axes, colours: Colormap, norm: Normalize) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=axes, orientation="horizontal", extend="max")
    top = float(norm.vmax or 1)
    bar.set_ticks([0, top / 9, 4 * top / 9, top])
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.ax.tick_params(labelsize=style.SMALL, length=2, pad=1)
    bar.outline.set_visible(False)
