"""CSV files that a spreadsheet shows and does not run: a text that would be a formula begins with an apostrophe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _escaped(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_STARTS) else value


def original(value: Any) -> Any:
    """A cell as it was before :func:`write`."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_STARTS) else value
