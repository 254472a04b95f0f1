"""Multi-label data: an example's labels as a list, as columns of 0 and 1, or as names joined by a separator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hskd.errors import HskdError
from hskd.heads import Head, MultiLabel
from hskd.tasks.files import Table, fault_of, listed, short_repr

SEPARATORS = ("|", ";", ",")
"""Separators between names. The first of them that occurs in train is used."""
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}

Names = list[list[str]]
"""The label names of each example."""


def holds_lists(table: Table, column: str) -> bool:
    """Return whether a column holds lists, as JSON and Parquet files can."""
    return column in table.names and any(isinstance(value, list) for value in table.column(column))


def read_multilabel(
    tables: Mapping[str, Table], train: Table, column: str
) -> tuple[Head, dict[str, list[Any] | None], str]:
    """Return the head of a multi-label task, each table's label indices per example, and how the labels were read.

    ``column`` names one of these:

    * a column of lists;
    * a column of names separated by ``|``, ``;`` or ``,``, where an empty field means no labels;
    * several columns, separated by commas, each 0 or 1 (or true and false); the column names are the labels.

    The labels of lists and texts are those that occur in train, sorted, or the classes that a schema of ``datasets``
    declares. A test table may lack the labels.

    Args:
        tables: by split.
        train: the table that determines the labels.
        column: one column or several.

    Raises:
        HskdError: a column is missing, a value has another form, or a label does not occur in train. The message names
            file and row.
    """
    columns = [column] if column in train.names else [name.strip() for name in column.split(",")]
    if len(columns) > 1:
        names: tuple[str, ...] = tuple(columns)
        if len(set(names)) < len(names):
            raise HskdError(f"--label-column {column}: names a column twice.")
        flags = {split: _flags(table, names, split == "test") for split, table in tables.items()}
        return MultiLabel(names), flags, f"columns {listed(names)} of {train.file.name}"
    separator = None if holds_lists(train, column) else _separator(train, column)
    examples = {split: _names(table, column, separator, split == "test") for split, table in tables.items()}
    of_train = next(rows for split, rows in examples.items() if tables[split] is train)
    assert of_train is not None
    declared = train.class_names.get(column)
    names = declared or tuple(sorted({name for labels in of_train for name in labels}, key=_order))
    if len(names) < 2:
        raise HskdError(f"{train.file}, column {short_repr(column)}: the labels are {listed(names)}; expected several.")
    indices = {
        split: None if rows is None else _indices(tables[split], column, rows, names)
        for split, rows in examples.items()
    }
    form = "has lists" if separator is None else f"has names with {separator!r} between them"
    return MultiLabel(names), indices, f"column {short_repr(column)} of {train.file.name} {form}"


def _order(name: str) -> tuple[int, int, str]:
    """Return a sort key that puts numbers first, in ascending order, and then names."""
    return (0, int(name), name) if name.isdecimal() and name.isascii() and len(name) < 20 else (1, 0, name)


def _wrong(table: Table, row: int, column: str, value: object, expected: str) -> HskdError:
    return HskdError(f"{table.file}, row {row}, column {short_repr(column)}: {short_repr(value)}; expected {expected}.")


def _flags(table: Table, columns: Sequence[str], may_lack: bool) -> list[Any] | None:
    """Return the indices of each example's columns that are 1."""
    if may_lack and not any(column in table.names for column in columns):
        return None
    indices: list[list[int]] = [[] for _ in range(table.rows)]
    for index, column in enumerate(columns):
        for row, value in enumerate(table.column(column)):
            flag = None if value is None else _FLAGS.get(str(value).strip().casefold())
            if flag is None:
                raise _wrong(table, row, column, value, "0 or 1")
            if flag:
                indices[row].append(index)
    return indices


def _separator(train: Table, column: str) -> str:
    texts = [value for value in train.column(column) if isinstance(value, str)]
    separator = next((separator for separator in SEPARATORS if any(separator in text for text in texts)), None)
    if separator is None or any(text.lstrip().startswith("[") for text in texts):
        raise HskdError(
            f"{train.file}, column {short_repr(column)}: expected several labels in a field, with one of "
            f"{' '.join(SEPARATORS)} between them, lists (in JSON or Parquet), or several columns of 0 and 1 "
            "(--label-column a,b,c)."
        )
    return separator


def _names(table: Table, column: str, separator: str | None, may_lack: bool) -> Names | None:
    """Return the names of each example's labels, without duplicates."""
    if may_lack and column not in table.names:
        return None
    values = table.column(column)
    if may_lack and all(value is None for value in values):
        return None
    declared = table.class_names.get(column)
    rows: Names = []
    for row, value in enumerate(values):
        if separator is not None:
            if not isinstance(value, str) and not (value is None and table.is_text):
                raise _wrong(table, row, column, value, f"names with {separator!r} between them")
            parts = [part.strip() for part in (value or "").split(separator)] if value else []
        elif isinstance(value, list):
            parts = [_name(table, row, column, part, declared) for part in value]
        else:
            raise _wrong(table, row, column, value, "a list of labels, which may be empty")
        if "" in parts or any(fault_of(part) for part in parts):
            raise _wrong(table, row, column, value, "labels that are Unicode text and not empty")
        rows.append(list(dict.fromkeys(parts)))
    return rows


def _name(table: Table, row: int, column: str, value: object, declared: Sequence[str] | None) -> str:
    """Return the name of one label of a list."""
    if declared is not None:
        if not isinstance(value, int) or not 0 <= value < len(declared):
            raise _wrong(table, row, column, value, f"0 to {len(declared) - 1}, as its schema says")
        return declared[value]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong(table, row, column, value, "a name or a whole number")
    return str(value)


def _indices(table: Table, column: str, rows: Names, names: Sequence[str]) -> list[list[int]]:
    places = {name: index for index, name in enumerate(names)}
    indices = []
    for row, labels in enumerate(rows):
        unknown = [name for name in labels if name not in places]
        if unknown:
            raise _wrong(table, row, column, unknown[0], f"one of train's labels, {listed(names)}")
        indices.append(sorted(places[name] for name in labels))
    return indices
