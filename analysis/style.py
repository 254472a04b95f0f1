"""One style for every figure: size, fonts, colours, label placement, and how a figure reaches the disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hskd.artifacts import atomic_path
from hskd.errors import HskdError

SIZE = (6.5, 4.0)  # inches: a figure across the text of a page
DPI = 200
SMALL = 7.0  # points: the text of labels and footnotes

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, *_ = seaborn.color_palette("colorblind").as_hex()
CURVE = _BLUE
ARM_COLOURS = {
    "teacher": "#333333",
    "full": _GREEN,
    "none": _RED,
    "paper_none": _ORANGE,
    "gold": _PURPLE,
    "shuffled": _BROWN,
}

_RC = {
    **seaborn.axes_style("ticks"),
    **seaborn.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "xtick.minor.size": 2,
}


@contextmanager
def figure(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``size`` inches with one pair of axes, in the project's style.

    It has its own Agg canvas and never enters pyplot's list: no display is needed and there is nothing to close.
    """
    with matplotlib.rc_context(_RC):
        made = Figure(figsize=size)
        FigureCanvasAgg(made)
        yield made, made.subplots()


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` as a PNG of 200 dots per inch, whole or not at all; returns ``path``.

    Raises:
        HskdError: ``path`` does not end in ``.png``, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise HskdError(f"{path}: figures are PNG files. Give a name that ends in .png.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ``positions`` as little as needed to lie ``gap`` apart, in the same order, within ``low`` .. ``high``.

    All in one unit. Where they cannot all fit, the topmost go beyond ``high``.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [positions[index] for index in order]
    # Neighbours that are too close push each other apart by halves, so that a crowd stays centred on its lines.
    for _ in range(200):
        for i in range(len(placed) - 1):
            push = (gap - (placed[i + 1] - placed[i])) / 2
            if push > 0:
                placed[i], placed[i + 1] = placed[i] - push, placed[i + 1] + push
        placed = [min(max(position, low), high) for position in placed]
    for i in range(len(placed) - 1):
        placed[i + 1] = max(placed[i + 1], placed[i] + gap)
    moved = [0.0] * len(placed)
    for index, position in zip(order, placed, strict=True):
        moved[index] = position
    return moved


def pixels_per_point(axes: Axes) -> float:
    """Pixels of the figure of ``axes`` in one point (1/72 inch)."""
    root = axes.get_figure(root=True)
    assert root is not None, "axes without a figure"
    return root.dpi / 72


def label_points(axes: Axes, labels: Sequence[tuple[float, float, str]], avoid: np.ndarray) -> None:
    """Write each label ``(x, y, text)``, in data units, beside its point where it covers least.

    The limits of ``axes`` and the margins of its figure must be final: positions are settled in pixels.

    Args:
        axes: where to write.
        labels: the points and their texts, written in this order.
        avoid: what a text should not cover (curves, bars, lines), sampled as points, ``(n, 2)`` in data units.
    """
    points_to_pixels = pixels_per_point(axes)
    frame = axes.get_window_extent()
    sampled = axes.transData.transform(avoid)
    anchors = axes.transData.transform([(x, y) for x, y, _ in labels]) if labels else np.empty((0, 2))
    taken: list[tuple[float, float, float, float]] = []

    for (x, y, text), (px, py) in zip(labels, anchors, strict=True):
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL,
            zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.55", "shrinkA": 0, "shrinkB": 3},
        )
        extent = note.get_window_extent()
        width, height = extent.width, extent.height
        best, best_cost, best_distance = (0.0, 0.0), math.inf, 0.0
        for distance in (4.0, 10.0, 17.0, 25.0, 34.0, 44.0):  # points between the marker and the text's box
            for angle in np.arange(0, 2 * math.pi, math.pi / 8):
                dx = math.cos(angle) * (width / 2 + distance * points_to_pixels)
                dy = math.sin(angle) * (height / 2 + distance * points_to_pixels)
                x0, x1 = px + dx - width / 2 - 2, px + dx + width / 2 + 2
                y0, y1 = py + dy - height / 2 - 1, py + dy + height / 2 + 1
                inside = (sampled[:, 0] > x0) & (sampled[:, 0] < x1) & (sampled[:, 1] > y0) & (sampled[:, 1] < y1)
                markers = (anchors[:, 0] > x0 - 4) & (anchors[:, 0] < x1 + 4)
                markers &= (anchors[:, 1] > y0 - 4) & (anchors[:, 1] < y1 + 4)
                texts = sum(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken)
                outside = x0 < frame.x0 or x1 > frame.x1 or y0 < frame.y0 or y1 > frame.y1
                # Legible comes first, then off the other points, then off the lines, then near its own point.
                cost = 1000 * (texts + outside) + 100 * int(markers.sum()) + 3 * int(inside.sum()) + distance
                if cost < best_cost:
                    best, best_cost, best_distance = (dx, dy), cost, distance
        note.set_position((best[0] / points_to_pixels, best[1] / points_to_pixels))
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(best_distance > 4)
        left, bottom = px + best[0] - width / 2, py + best[1] - height / 2
        taken.append((left, bottom, left + width, bottom + height))
