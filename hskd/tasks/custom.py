"""``custom``: a user's own CSV, JSON Lines or Parquet files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hskd.errors import HskdError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.tasks.task import SPLITS, Split, Task, TaskData, text_hash

FORMATS = (".csv", ".jsonl", ".parquet")
INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Columns = dict[str, list[Any]]


def load_custom(data: str | None, text_columns: Sequence[str] | None, label_column: str | None) -> TaskData:
    """Load a user's own task.

    ``data`` is a folder with ``train`` and ``dev`` and, if you like, ``test`` files (``.csv``, ``.jsonl`` or
    ``.parquet``), or one such file. One file is split by content: with ``h`` the SHA-256 of an example's texts
    (:func:`~hskd.tasks.task.text_hash`) and ``b`` its bytes 8 to 15 as a big-endian number, ``b % 10`` is 8 for
    ``dev``, 9 for ``test``, else ``train``. So about 80/10/10 %, repeated texts on one side, and rows added
    later move no other.

    Labels say what the task is. Whole numbers and strings make a classification (numbers in ascending order, strings
    sorted; a CSV's labels are numbers if all of ``train``'s look so); other numbers a regression. A test file may
    lack the label column. Rows in messages count from 0.

    Raises:
        HskdError: a file or column is missing, a text or label is empty, or a label is not among ``train``'s.
    """
    if data is None:
        raise HskdError("Task custom needs --data: a file, or a folder with train and dev files.")
    path = Path(data).expanduser()
    tables = _read_tables(path)
    if not text_columns or len(text_columns) > 2 or not label_column:
        file, columns = next(iter(tables.values()))
        raise HskdError(f"Task custom needs one or two text columns and a label column; {file} has {list(columns)}.")
    texts = {name: texts_of(file, columns, text_columns) for name, (file, columns) in tables.items()}
    raw = {name: _labels(file, columns, label_column, name) for name, (file, columns) in tables.items()}
    kind, names = _meaning(tables["train"][0], label_column, raw["train"] or [])
    labels = {name: raw[name] and _encode(tables[name][0], label_column, raw[name] or [], kind, names) for name in raw}
    splits = {name: Split.of(name, texts[name], labels[name]) for name in tables}
    if path.is_file():
        splits = _cut(path, splits["train"])
    head = SequenceRegression() if kind is float else SequenceClassification(label_names=tuple(map(str, names)))
    task = Task(
        name="custom",
        text_columns=tuple(text_columns),
        label_column=label_column,
        head=head,
        hsk_epochs=10,
        max_length=128,
    )
    return TaskData(task, splits)


def _read_tables(path: Path) -> dict[str, tuple[Path, Columns]]:
    """Split name to its file and columns; one file comes as ``train``."""
    if path.is_file():
        return {"train": (path, read_columns(path))}
    if not path.is_dir():
        raise HskdError(f"{path}: no such file or folder.")
    tables = {}
    for split in SPLITS:
        files = [path / f"{split}{suffix}" for suffix in FORMATS if (path / f"{split}{suffix}").is_file()]
        if len(files) > 1:
            raise HskdError(f"{path}: {' and '.join(file.name for file in files)} are both there; leave one.")
        if files:
            tables[split] = (files[0], read_columns(files[0]))
        elif split != "test":
            raise HskdError(f"{path}: no {split} file; expected {split} with one of the endings {', '.join(FORMATS)}.")
    return tables


def read_columns(path: Path) -> Columns:
    """The columns of a ``.csv``, ``.jsonl`` or ``.parquet`` file.

    Raises:
        HskdError: it is of another format, cannot be read, or has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        match path.suffix:
            case ".csv":
                columns = _read_csv(path)
            case ".jsonl":
                columns = _read_jsonl(path)
            case ".parquet":
                columns = pq.read_table(path).to_pydict()
            case _:
                raise HskdError(f"{path}: unknown format {path.suffix!r}; expected one of {', '.join(FORMATS)}.")
    except UnicodeDecodeError as error:
        raise HskdError(f"{path}: byte {error.start} is not UTF-8.") from None
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise HskdError(f"{path}: cannot be read: {error}.") from error
    if not columns or not next(iter(columns.values())):
        raise HskdError(f"{path}: no rows.")
    return columns


def _read_csv(path: Path) -> Columns:
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True))
    header = rows.pop(0) if rows else []
    rows = [row for row in rows if row]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise HskdError(f"{path}, row {number}: {len(row)} fields; expected {len(header)}: {header}.")
    # A CSV has no null; what it has instead is an empty field.
    return {name: [row[i] or None for row in rows] for i, name in enumerate(header)}


def _read_jsonl(path: Path) -> Columns:
    rows = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise HskdError(f"{path}, line {number}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise HskdError(f"{path}, line {number}: {type(row).__name__}; expected an object.")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _column(file: Path, columns: Columns, name: str) -> list[Any]:
    if name not in columns:
        raise HskdError(f"{file}: no column {name!r}; it has {list(columns)}.")
    return columns[name]


def texts_of(file: Path, columns: Columns, names: Sequence[str]) -> list[list[str]]:
    """The columns ``names``, each a list of texts.

    Raises:
        HskdError: there is no such column, or a row of it has no text.
    """
    for name in names:
        for row, text in enumerate(_column(file, columns, name)):
            if not isinstance(text, str) or not text:
                raise HskdError(f"{file}, row {row}, column {name!r}: {text!r}; expected a text.")
    return [columns[name] for name in names]


def _labels(file: Path, columns: Columns, name: str, split: str) -> list[Any] | None:
    """Labels as the file has them, a CSV's as text; None for a test file that has none."""
    if split == "test" and all(value is None for value in columns.get(name, ())):
        return None
    values = _column(file, columns, name)
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise HskdError(f"{file}, row {row}, column {name!r}: {value!r}; expected a text or a number.")
    return [str(value) if isinstance(value, bool) else value for value in values]


def _meaning(file: Path, column: str, labels: list[Any]) -> tuple[type, list[Any]]:
    """What ``train``'s labels are: str, int, or float for a regression; and the class labels in order."""
    kinds = {type(label) for label in labels}
    if file.suffix == ".csv":
        kind: type = str
        if all(INTEGER.fullmatch(label) for label in labels):
            kind = int
        elif all(NUMBER.fullmatch(label) for label in labels):
            kind = float
    elif kinds in ({str}, {int}):
        kind = kinds.pop()
    elif kinds <= {int, float}:
        kind = float
    else:
        raise HskdError(f"{file}, column {column!r}: labels are both texts and numbers; expected one kind.")
    if kind is float:
        return kind, []
    names = sorted({kind(label) for label in labels})
    if len(names) < 2:
        raise HskdError(f"{file}, column {column!r}: every label is {names[0]!r}; expected at least two classes.")
    return kind, names


def _encode(file: Path, column: str, labels: list[Any], kind: type, names: list[Any]) -> list[int] | list[float]:
    """Label indices into ``names``, or numbers for a regression."""
    index = {name: i for i, name in enumerate(names)}
    from_text = file.suffix == ".csv"
    encoded: list[Any] = []
    for row, label in enumerate(labels):
        try:
            # 1.0 and "1" are not the class 1, unless in a CSV, where everything is text.
            value = kind(label) if from_text or (kind is float and type(label) is int) else label
            if type(value) is not kind:
                raise ValueError
            encoded.append(value if kind is float else index[value])
        except (KeyError, ValueError):
            expected = "a number" if kind is float else f"one of train's labels, {names}"
            raise HskdError(f"{file}, row {row}, column {column!r}: {label!r}; expected {expected}.") from None
    return encoded


def _cut(path: Path, whole: Split) -> dict[str, Split]:
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, fields in enumerate(zip(*whole.texts, strict=True)):
        # Not the first 8 bytes: those are the id, and subsets are drawn in the order of the ids.
        bucket = int.from_bytes(text_hash(fields)[8:16], "big") % 10
        rows[{8: "dev", 9: "test"}.get(bucket, "train")].append(row)
    labels: list[Any] = list(whole.labels or [])
    for split, chosen in rows.items():
        if not chosen:
            raise HskdError(f"{path}: {len(whole)} rows leave no {split} example. Give a folder of files instead.")
    return {
        split: Split.of(
            split, [[column[row] for row in chosen] for column in whole.texts], [labels[row] for row in chosen]
        )
        for split, chosen in rows.items()
    }
