from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from hskd.analysis.figures import style
from hskd.errors import HskdError


def picture() -> Figure:
    with style.canvas((style.COLUMN, 2)) as figure:
        axes = figure.subplots()
        axes.errorbar([1, 2, 3], [1, 4, 2], [0.5, 0.5, 0.5], marker="o", capsize=2)
        axes.set_xlabel("amount")
        style.settle(figure)
        return figure


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml")])
def test_equal_figures_give_equal_files(tmp_path: Path, suffix: str, begins: bytes) -> None:
    first, second = (style.save(picture(), tmp_path / name / f"figure.{suffix}") for name in "ab")
    data = first.read_bytes()
    assert data.startswith(begins) and len(data) > 5_000
    assert data == second.read_bytes()
    assert [file.name for file in first.parent.iterdir()] == [first.name]


def test_a_png_has_300_dots_per_inch(tmp_path: Path) -> None:
    data = style.save(picture(), tmp_path / "figure.png").read_bytes()
    assert int.from_bytes(data[16:20]) == 990


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"ends in \.png or \.svg"):
        style.save(picture(), tmp_path / "figure.pdf")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def disk_fills_up(_: Figure, target: Path, **__: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", disk_fills_up)
    with pytest.raises(HskdError, match="No space left"):
        style.save(picture(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_drawn_is_lines_and_bars_but_not_loose_markers() -> None:
    with style.figure((4, 3)) as (figure, axes):
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 10)
        axes.plot([1, 9], [5, 5])
        axes.vlines(3, 6, 9)
        axes.plot([2, 8], [1, 2], "o")
        found = style.drawn(axes)
    level, upright = found[np.isclose(found[:, 1], 5)], found[found[:, 1] > 5.5]
    assert len(level) + len(upright) == len(found)
    assert level[:, 0].min() == pytest.approx(1) and level[:, 0].max() == pytest.approx(9)
    np.testing.assert_allclose(upright[:, 0], 3)
    gap = np.diff(axes.transData.transform(level)[:, 0]).max()
    assert gap <= 1.01 * figure.dpi / 72


def test_labels_lie_apart_inside_and_off_the_lines() -> None:
    points = [(x, 5 + 0.2 * x, f"2l_{x}t_0.1w") for x in range(1, 10)]
    with style.figure((style.FULL, 3)) as (figure, axes):
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 10)
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], "-o")
        lines = style.drawn(axes)
        style.label_points(axes, points, lines)
        figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    frame = axes.get_window_extent()
    pixels = axes.transData.transform(lines)
    assert [text.get_text() for text in axes.texts] == [name for *_, name in points]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*pixel) for pixel in pixels)


def test_spread_keeps_order_and_gap() -> None:
    assert style.spread([0.9, 0.1], 0.1, 0, 1) == [0.9, 0.1]
    moved = style.spread([0.5, 0.02, 0.52, 0.5, 0.0], 0.1, 0, 1)
    assert np.diff(sorted(moved)).min() == pytest.approx(0.1, abs=1e-6)
    assert moved[4] < moved[1] < moved[0] < moved[3] < moved[2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_spread_places_are_apart_and_inside_where_they_fit(positions: list[float]) -> None:
    moved = sorted(style.spread(positions, 0.1, 0, 1))
    assert all(high - low >= 0.1 - 1e-6 for low, high in pairwise(moved))
    assert moved[0] >= 0
