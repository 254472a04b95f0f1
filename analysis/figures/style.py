"""The common style of all figures: size, fonts, colours, label placement, and saving."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from hskd.errors import HskdError
from hskd.io import atomic_path

COLUMN, FULL = 3.3, 6.8
"""Widths of a column and of a page's text, in inches. Font sizes suit a figure that is printed at its own size."""
SIZE = (FULL, 4.0)
DPI = 300
SMALL = 7.0  # font size in points of labels and footnotes, the smallest in any figure

INK = "#222222"
PALE = "#8c8c8c"
ON_LIGHT, ON_DARK = "#1a1a1a", "#fdfdfd"
"""Text on a coloured field. A page's dark theme changes INK and white, and leaves these as they are."""
COLOURS: tuple[str, ...] = tuple(seaborn.color_palette("colorblind").as_hex())
CURVE = COLOURS[0]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: dict[str, Any] = {
    "teacher": (0, (7, 2)),
    "full": (0, (4, 2)),
    "none": (0, (1.5, 1.5)),
    "paper_none": (0, (1, 3)),
    "gold": (0, (6, 2, 1, 2)),
    "shuffled": (0, (3, 2, 1, 2, 1, 2)),
}
"""Dashes of the horizontal lines. They differ by dashes and names, because colours belong to the strategies."""

_RC = {
    **seaborn.axes_style("ticks"),
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "font.size": 8,
    "hatch.linewidth": 0.4,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "savefig.dpi": DPI,
    "text.parse_math": False,  # names come from the user, so a pair of dollar signs is not a formula
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "xtick.major.size": 3,
    "xtick.major.width": 0.7,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.5,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 3,
    "ytick.major.width": 0.7,
}
# Without a salt the ids inside an SVG are random. Fonts drawn as paths look the same on every machine.
_SVG = {"svg.hashsalt": "hskd", "svg.fonttype": "path"}


@contextmanager
def canvas(size: tuple[float, float]) -> Iterator[Figure]:
    """Yield an empty figure of ``size`` inches in the project's style, with constrained layout.

    The figure has its own Agg canvas and is unknown to pyplot, so it needs no display and need not be closed.
    """
    with matplotlib.rc_context(_RC):
        made = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(made)
        yield made


@contextmanager
def figure(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure like that of :func:`canvas`, with one pair of axes and without automatic layout.

    The caller sets the margins.
    """
    with canvas(size) as made:
        made.set_layout_engine("none")
        yield made, made.subplots()


def again() -> AbstractContextManager[None]:
    """The project's style, to draw further into a finished figure."""
    return matplotlib.rc_context(_RC)


def settle(figure: Figure) -> None:
    """Lay out a :func:`canvas` now and freeze the layout, so that labels can then be placed in pixels."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` atomically, and return ``path``.

    Equal figures give equal bytes, because the file holds no date.

    Raises:
        HskdError: ``path`` does not end in ``.png`` (300 dots per inch) or ``.svg``, or cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise HskdError(f"{path}: figures are PNG or SVG files. Give a name that ends in .png or .svg.")
    with atomic_path(path) as temporary, matplotlib.rc_context(_RC | _SVG):
        figure.savefig(temporary, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
        if kind == "png":
            _reduce_colours(temporary)
    return path


def _reduce_colours(path: Path) -> None:
    """Rewrite a PNG with 64 colours. It takes a quarter of the bytes and looks the same."""
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    reduced.save(path, format="PNG", optimize=True, dpi=(DPI, DPI))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ``positions``, moved little, at least ``gap`` apart, in the same order and within ``low`` .. ``high``.

    All arguments have the same unit. If the positions do not all fit, the highest ones exceed ``high``.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [positions[index] for index in order]
    # Neighbours that are too close push each other apart equally, so that a group stays centred on its lines.
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
    """Return the pixels per point (1/72 inch) of the figure of ``axes``."""
    root = axes.get_figure(root=True)
    assert root is not None, "axes without a figure"
    return root.dpi / 72


def drawn(axes: Axes) -> np.ndarray:
    """Return points 1/72 inch apart along every line and error bar in ``axes``: ``(n, 2)``, in data units.

    Markers without a line are left out. The limits of ``axes`` and the margins of its figure must be final.
    """
    paths = [
        line.get_transform().transform_path(line.get_path()) for line in axes.lines if line.get_linestyle() != "None"
    ]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            paths += [collection.get_transform().transform_path(path) for path in collection.get_paths()]
    step = pixels_per_point(axes)
    points = []
    for path in paths:
        corners = np.asarray(path.vertices)
        for start, end in pairwise(corners[np.isfinite(corners).all(axis=1)]):
            along = np.linspace(0, 1, 2 + int(np.hypot(*(end - start)) / step))[:, None]
            points.append(start + along * (end - start))
    pixels = np.concatenate(points) if points else np.empty((0, 2))
    return np.asarray(axes.transData.inverted().transform(pixels))


def label_points(axes: Axes, labels: Sequence[tuple[float, float, str]], avoid: np.ndarray) -> None:
    """Write each label ``(x, y, text)``, in data units, near its point, where it covers least.

    Positions are computed in pixels, so the limits of ``axes`` and the margins of its figure must be final.

    Args:
        axes: the axes to write in.
        labels: the points and their texts, written in this order.
        avoid: curves, bars and lines that a text should not cover, as points about 1/72 inch apart, ``(n, 2)`` in data
            units; see :func:`drawn`.
    """
    points_to_pixels = pixels_per_point(axes)
    pad = 1.5 * points_to_pixels
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
                x0, x1 = px + dx - width / 2 - pad, px + dx + width / 2 + pad
                y0, y1 = py + dy - height / 2 - pad / 2, py + dy + height / 2 + pad / 2
                inside = (sampled[:, 0] > x0) & (sampled[:, 0] < x1) & (sampled[:, 1] > y0) & (sampled[:, 1] < y1)
                markers = (anchors[:, 0] > x0 - 2 * pad) & (anchors[:, 0] < x1 + 2 * pad)
                markers &= (anchors[:, 1] > y0 - 2 * pad) & (anchors[:, 1] < y1 + 2 * pad)
                texts = sum(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken)
                outside = x0 < frame.x0 or x1 > frame.x1 or y0 < frame.y0 or y1 > frame.y1
                # In order of importance: legible, off other points, off lines, near its own point.
                cost = 10_000 * (texts + outside) + 300 * int(markers.sum()) + 3 * int(inside.sum()) + distance
                if cost < best_cost:
                    best, best_cost, best_distance = (dx, dy), cost, distance
        note.set_position((best[0] / points_to_pixels, best[1] / points_to_pixels))
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(best_distance > 4)
        left, bottom = px + best[0] - width / 2, py + best[1] - height / 2
        taken.append((left, bottom, left + width, bottom + height))
