"""Where a figure's markers lie and what each stands for, so that a page can explain them on hover."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text


class Key(NamedTuple):
    """What a marker stands for: a kind, such as ``point``, and a name within it."""

    kind: str
    name: str


class Mark(NamedTuple):
    """A place in a figure: shares of its width and height, from its top left corner."""

    key: Key
    left: float
    top: float


_KEYS: WeakKeyDictionary[Artist, tuple[Key, ...]] = WeakKeyDictionary()


def explain(artist: Line2D | Text, kind: str, names: Iterable[object]) -> None:
    """Note what the markers of a line stand for, one name for each, or a text (one name)."""
    _KEYS[artist] = tuple(Key(kind, str(name)) for name in names)


def marks(figure: Figure) -> list[Mark]:
    """Every marker and text that :func:`explain` was told of and that is in sight, in the order of drawing.

    The layout of the figure must be final.
    """
    page = figure.bbox
    places = []
    for artist in figure.findobj(lambda artist: artist in _KEYS):
        for key, (x, y) in zip(_KEYS[artist], _pixels(artist), strict=True):
            if page.x0 <= x <= page.x1 and page.y0 <= y <= page.y1:  # False for NaN
                places.append(Mark(key, float(x - page.x0) / page.width, float(page.y1 - y) / page.height))
    return places


def _pixels(artist: Artist) -> np.ndarray:
    """Where the parts of an artist are drawn: ``(parts, 2)``; NaN where its axes cut them off."""
    if isinstance(artist, Text):
        box = Text.get_window_extent(artist)  # an annotation's own extent includes its leader
        return np.array([[(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]])
    assert isinstance(artist, Line2D) and artist.axes is not None, "only lines in axes and texts are explained"
    pixels = np.array(artist.get_transform().transform(artist.get_xydata()), dtype=np.float64).reshape(-1, 2)
    frame = artist.axes.get_window_extent()
    inside = (pixels >= [frame.x0 - 1, frame.y0 - 1]).all(axis=1) & (pixels <= [frame.x1 + 1, frame.y1 + 1]).all(axis=1)
    pixels[~inside] = np.nan
    return pixels
