"""Figures of a page, and the texts that their markers show on hover, from the rows of the tables below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.figures.hover import Key, marks
from hskd.analysis.report.inline_svg import inline_svg
from hskd.analysis.report.sheets import BYTES_SHARE, Sheet
from hskd.hashing import fingerprint

Texts = dict[Key, tuple[str, ...]]
"""The lines of a text, by the marker that it explains; the first line is the heading."""


@dataclass(frozen=True)
class Tip:
    """A text at a place of a figure.

    Attributes:
        left: the place, in per cent of the figure's width from its left edge.
        top: the same from its top edge.
        lines: the text, the heading first.
    """

    left: float
    top: float
    lines: tuple[str, ...]

    @property
    def side(self) -> str:
        """CSS classes: where the text lies, so that it stays within the figure."""
        return f"{'before' if self.left > 50 else 'after'} {'above' if self.top > 50 else 'below'}"


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        title: what it shows.
        caption: the same in sentences.
        svg: its markup.
        half: whether it takes half of the page's width.
        tips: the texts of its markers.
    """

    title: str
    caption: str
    svg: Markup
    half: bool
    tips: Sequence[Tip]

    @classmethod
    def of(
        cls, figure: Figure, file: Path, name: str, title: str, caption: str, texts: Mapping[Key, tuple[str, ...]]
    ) -> Picture:
        """The picture of a figure whose layout is final.

        Args:
            figure: the figure.
            file: its SVG.
            name: differs between the figures of a page.
            title: what it shows.
            caption: the same in sentences.
            texts: of its markers, where they have one.
        """
        svg = inline_svg(file.read_bytes(), f"f{fingerprint(name)[:6]}-", title)
        tips = [
            Tip(round(100 * mark.left, 2), round(100 * mark.top, 2), texts[mark.key])
            for mark in marks(figure)
            if mark.key in texts
        ]
        return cls(title, caption, svg, figure.get_figwidth() <= style.COLUMN, tips)


def point_texts(sheet: Sheet, confidence: float) -> Texts:
    """Return a text for each row of :func:`hskd.analysis.report.sheets.points_sheet`."""
    prefixes = ("strategy", "bytes an example", BYTES_SHARE, "score, ", "gap closed, %", "seeds")
    names = sheet.text_table["point"]
    return {
        Key("point", name): (name, *lines)
        for name, lines in zip(names, _lines(sheet, prefixes, confidence), strict=True)
    }


def gain_texts(sheet: Sheet, confidence: float) -> Texts:
    """Return a text for each row of :func:`hskd.analysis.report.sheets.marginal_utility_sheet`."""
    table = sheet.text_table
    prefixes = [column for column in map(str, table) if column not in ("from", "to")]
    rows = zip(table["from"], table["to"], _lines(sheet, prefixes, confidence), strict=True)
    return {Key("gain", str(row)): (f"{low} → {high}", *lines) for row, (low, high, lines) in enumerate(rows)}


def _lines(sheet: Sheet, prefixes: Sequence[str], confidence: float) -> list[tuple[str, ...]]:
    """Return a text for each cell of each row, in the columns whose names begin with one of ``prefixes``."""
    columns = [column for column in map(str, sheet.text_table) if column.startswith(tuple(prefixes))]
    return [
        tuple(_line(column, row[column], confidence) for column in columns if row[column])
        for row in sheet.text_table.to_dict("records")
    ]


def _line(column: str, cell: str, confidence: float) -> str:
    interval = f" ({100 * confidence:g} % CI)" if " to " in cell and cell.endswith(")") else ""
    return f"{column}{interval}: {cell}"
