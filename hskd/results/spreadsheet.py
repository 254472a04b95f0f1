"""CSV files that a spreadsheet shows and does not run: a text that would be a formula begins with an apostrophe."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError, brief, cut

if TYPE_CHECKING:
    import pandas as pd

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""How a formula begins for some spreadsheet; the apostrophe, so that no two texts are written alike."""


def write(table: pd.DataFrame, path: Path, float_format: str | None = None) -> Path:
    """Write a table as CSV. A text that begins like a formula gets an apostrophe before it; returns ``path``.

    Raises:
        HskdError: ``path`` cannot be written.
    """
    from hskd.io import atomic_path

    safe = table.apply(lambda column: column if column.dtype.kind in "biufM" else column.map(_escaped))
    safe.columns = [_escaped(name) for name in table.columns]
    with atomic_path(path) as temporary:
        safe.to_csv(temporary, index=False, float_format=float_format)
    return path


def read(path: Path, columns: Mapping[str, type], may_lack: Container[str] = ()) -> pd.DataFrame:
    """Read a table that :func:`write` wrote, and check every cell.

    Args:
        path: a CSV file.
        columns: the columns that it has, in their order, and what they hold: ``str``, ``int`` or ``float``.
        may_lack: those in which a cell may be empty; such a column may be missing. An empty cell is NaN, or ``""``.

    Raises:
        HskdError: there is no table, a row has more or fewer cells than the header, or a cell is not of its kind.
    """
    import pandas as pd

    remedy = "Restore the file, or move it away to begin a new one."
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise HskdError(f"{path}: no such file.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise HskdError(f"{path}: cannot be read as a CSV table ({cut(str(error))}). {remedy}") from None
    header = [original(name) for name in rows[0]] if rows else []
    missing = [name for name in columns if name not in header and name not in may_lack]
    unknown = [name for name in header if name not in columns]
    if missing or unknown or len(set(header)) < len(header):
        raise HskdError(
            f"{path}: expected the columns {', '.join(columns)}, got {cut(', '.join(header)) or 'none'}. {remedy}"
        )
    kinds = [columns[name] for name in header]
    table = []
    for number, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(header):
            raise HskdError(f"{path}, line {number}: {len(cells)} cells, expected {len(header)}. {remedy}")
        values: dict[str, Any] = {name: "" if kind is str else math.nan for name, kind in columns.items()}
        for name, kind, cell in zip(header, kinds, cells, strict=True):
            value = _OF_KIND[kind](cell) if cell else None
            if value is None and (cell or name not in may_lack):
                raise HskdError(
                    f"{path}, line {number}: column {name}: expected {_WORDS[kind]}, got {brief(cell)}. {remedy}"
                )
            if value is not None:
                values[name] = value
        table.append(values)
    types = {name: float if kind is int and name in may_lack else kind for name, kind in columns.items()}
    return pd.DataFrame(table, columns=list(columns)).astype(types)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(cell: str) -> int | None:
    value = _number(cell)  # pandas writes a column with an empty cell as floats
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else None


_OF_KIND: dict[type, Callable[[str], Any]] = {str: lambda cell: original(cell), float: _number, int: _whole}
_WORDS = {str: "text", float: "a number", int: "a whole number"}


def _escaped(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_STARTS) else value


def original(value: Any) -> Any:
    """A cell as it was before :func:`write`."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_STARTS) else value
