"""Requirements that every figure must meet."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from hskd.analysis.figures import style

WIDTHS = (style.COLUMN, style.FULL)


def shown_texts(figure: Figure) -> list[Text]:
    """Yield every text that is drawn in the finished picture."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    found: set[Text] = set(figure.findobj(Text)) - _out_of_sight(figure)
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def require_legible(figure: Figure) -> None:
    """Check that no text is below 7 points or cut off, and that the figure has the width of a column or of a page."""
    assert any(abs(figure.get_figwidth() - width) < 0.01 for width in WIDTHS) or figure.get_figwidth() < style.FULL
    page = figure.bbox
    for text in shown_texts(figure):
        assert text.get_fontsize() >= 7, text
        # The extent of an annotation includes its leader line, so take that of its text.
        box = Text.get_window_extent(text)
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text


def require_apart(figure: Figure) -> None:
    """Check that no texts overlap."""
    texts = shown_texts(figure)
    boxes = [Text.get_window_extent(text) for text in texts]
    for i, box in enumerate(boxes):
        for other, its in zip(texts[i + 1 :], boxes[i + 1 :], strict=True):
            overlap_x = min(box.x1, its.x1) - max(box.x0, its.x0)
            overlap_y = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert overlap_x <= 2 or overlap_y <= 2, (texts[i], other)


def _out_of_sight(figure: Figure) -> set[Text]:
    """Return the labels of ticks beyond the limits of their axis, which exist but are not drawn."""
    hidden = set()
    for axes in [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return hidden
