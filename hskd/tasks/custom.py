"""``custom``: a user's own CSV, TSV, JSON or Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hskd.errors import HskdError
from hskd.tasks.choices import LabelType
from hskd.tasks.files import FORMATS, Table, listed, read_table
from hskd.tasks.labels import LabelColumn, LabelMeaning
from hskd.tasks.task import SPLITS, FileRows, Split, Task, TaskData, text_hash

STEMS = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
"""Names of the files of a split, without their endings."""


def load_custom(
    data: str | None,
    text_columns: Sequence[str] | str | None,
    label_column: str | None,
    label_type: LabelType | None = None,
) -> TaskData:
    """Load a user's own task.

    ``data`` is a folder with ``train`` and ``dev`` (or ``validation``) and, if you like, ``test`` files, in any of
    :data:`~hskd.tasks.files.FORMATS`, or one such file. One file is split by content: with ``h`` the SHA-256 of an
    example's texts (:func:`~hskd.tasks.task.text_hash`) and ``b`` its bytes 8 to 15 as a big-endian number, ``b % 10``
    is 8 for ``dev``, 9 for ``test``, else ``train``. So about 80/10/10 %, repeated texts on one side, and rows added
    later move no other.

    ``train``'s labels say what the task is, unless ``label_type`` does. Whole numbers make a classification (classes in
    ascending order), and so do texts (sorted) and columns of the type ``ClassLabel`` in files of ``datasets``; numbers
    with a point make a regression, unless they are two whole ones, such as 0.0 and 1.0. Labels stay as they are
    written: ``007`` is not ``7``. In CSV and TSV files, labels are numbers if all of ``train``'s look so. A test file
    may lack the label column. Rows in messages count from 0.

    Raises:
        HskdError: a file or column is missing, a text or label is missing, labels are of two kinds, or a label is not
            among ``train``'s.
    """
    if data is None:
        raise HskdError("Task custom needs --data: a file, or a folder with train and dev files.")
    path = Path(data).expanduser()
    tables = _read_tables(path)
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns or ())
    if not 1 <= len(columns) <= 2 or not label_column:
        table = tables["train"]
        raise HskdError(
            f"Task custom needs one or two text columns and a label column; {table.file} has {listed(table.names)}."
        )
    texts = {name: table.texts(columns) for name, table in tables.items()}
    labels = {name: LabelColumn.of(table, label_column, name == "test") for name, table in tables.items()}
    train = labels["train"]
    assert train is not None
    meaning = train.meaning(label_type)
    splits = {
        name: Split.of(name, texts[name], _encoded(labels[name], meaning), FileRows(str(table.file), range(table.rows)))
        for name, table in tables.items()
    }
    if path.is_file():
        splits = _cut(path, splits["train"])
    task = Task(
        name="custom",
        text_columns=columns,
        label_column=label_column,
        head=meaning.head,
        hsk_epochs=10,
        max_length=128,
    )
    return TaskData(task, splits, meaning.why)


def _read_tables(path: Path) -> dict[str, Table]:
    """The table of each split; one file comes as ``train``."""
    if path.is_file():
        return {"train": read_table(path)}
    if not path.is_dir():
        raise HskdError(f"{path}: no such file or folder.")
    tables = {}
    for split in SPLITS:
        stems = STEMS[split]
        files = [path / f"{stem}{suffix}" for stem in stems for suffix in FORMATS]
        files = [file for file in files if file.exists()]
        if len(files) > 1:
            raise HskdError(f"{path}: {' and '.join(file.name for file in files)} are both there; leave one.")
        if files:
            tables[split] = read_table(files[0])
        elif split != "test":
            raise HskdError(
                f"{path}: no {split} file; expected {' or '.join(stems)} with one of the endings {', '.join(FORMATS)}."
            )
    return tables


def _encoded(labels: LabelColumn | None, meaning: LabelMeaning) -> list[Any] | None:
    """Label indices, or numbers for a regression."""
    if labels is None:
        return None
    return labels.numbers() if meaning.names is None else labels.indices(meaning.names)


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
            split,
            [[column[row] for row in chosen] for column in whole.texts],
            [labels[row] for row in chosen],
            FileRows(str(path), chosen),
        )
        for split, chosen in rows.items()
    }
