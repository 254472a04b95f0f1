"""``custom``: a user's own examples, in files or on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hskd.errors import HskdError
from hskd.heads import Head, SequenceClassification
from hskd.tasks.choices import LabelType
from hskd.tasks.files import Table, listed
from hskd.tasks.labels import LabelColumn
from hskd.tasks.multilabel import holds_lists, read_multilabel
from hskd.tasks.source import guessed_columns, read_tables, splits_of
from hskd.tasks.task import FileRows, Split, Task, TaskData

TEXTS = (
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
"""Columns of texts that are known by their names."""
LABELS = ("label", "labels", "category", "intent", "class")
"""Columns of labels that are known by their names."""
CUSTOM_TASK = Task(
    name="custom",
    text_columns=("text",),
    label_column="label",
    head=SequenceClassification(),
    hsk_epochs=10,
    max_length=128,
)
"""What is known of such a task before its data is."""


def load_custom(
    data: str | None,
    text_columns: Sequence[str] | str | None = None,
    label_column: str | None = None,
    label_type: LabelType | None = None,
    task: Task = CUSTOM_TASK,
) -> TaskData:
    """Load a user's own task.

    ``data`` is a folder with ``train`` and ``dev`` (or ``validation``) and, if you like, ``test`` files, in any of
    :data:`~hskd.tasks.files.FORMATS`; one such file; or a data set of the hub
    (see :func:`~hskd.tasks.source.read_tables`). Splits without a file of their own are cut by content
    (see :func:`~hskd.tasks.source.splits_of`): of one file, about 80/10/10 %.

    ``train``'s labels say what the task is, unless ``label_type`` does. Whole numbers make a classification (classes in
    ascending order), and so do texts (sorted) and columns of the type ``ClassLabel`` in files of ``datasets``; numbers
    with a point make a regression, unless they are two whole ones, such as 0.0 and 1.0. Lists of labels make a
    multi-label task (see :func:`~hskd.tasks.multilabel.read_multilabel`). Labels stay as they are written: ``007`` is
    not ``7``. In CSV and TSV files, labels are numbers if all of ``train``'s look so. A test file may lack the label
    column. Rows in messages count from 0.

    Args:
        data: the file, folder or name.
        text_columns: one or two [default: the only ones that can be meant].
        label_column: of labels, or with ``multilabel`` several, separated by commas [default: the only one that can be
            meant].
        label_type: what the labels are [default: as they look].
        task: name, epochs and length.

    Raises:
        HskdError: a file or column is missing, a text or label is missing, labels are of two kinds, or a label is not
            among ``train``'s.
    """
    if data is None:
        raise HskdError(f"Task {task.name} needs --data: a file, a folder with train and dev files, or a hub name.")
    tables = read_tables(data)
    train = tables.get("train", next(iter(tables.values())))
    columns = guessed_columns(task.name, train, text_columns, label_column, TEXTS, LABELS)
    if len(columns.texts) > 2:
        raise HskdError(f"Task {task.name} takes one or two text columns, not {listed(columns.texts)}.")
    texts = {name: table.texts(columns.texts) for name, table in tables.items()}
    if label_type == "multilabel" or (label_type is None and holds_lists(train, columns.label)):
        head, labels, why = read_multilabel(tables, train, columns.label)
    else:
        head, labels, why = _read_labels(tables, train, columns.label, label_type)
    whole = {
        name: Split.of(name, texts[name], labels[name], FileRows(str(table.file), range(table.rows)))
        for name, table in tables.items()
    }
    splits = splits_of(data, tables, whole, _texts)
    named = replace(task, text_columns=columns.texts, label_column=columns.label, head=head)
    return TaskData(named, splits, why)


def _texts(split: Split) -> Iterable[Sequence[str]]:
    return zip(*split.texts, strict=True)


def _read_labels(
    tables: dict[str, Table], train: Table, column: str, label_type: LabelType | None
) -> tuple[Head, dict[str, list[Any] | None], str]:
    """The head of a column of labels, the labels of each table as it takes them, and what made it so."""
    columns = {name: LabelColumn.of(table, column, name == "test") for name, table in tables.items()}
    of_train = next(labels for name, labels in columns.items() if tables[name] is train)
    assert of_train is not None
    meaning = of_train.meaning(label_type)
    labels: dict[str, list[Any] | None] = {}
    for name, of_split in columns.items():
        if of_split is None:
            labels[name] = None
        else:
            labels[name] = of_split.numbers() if meaning.names is None else of_split.indices(meaning.names)
    return meaning.head, labels, meaning.why
