"""``custom``: your own examples, in files or on the hub."""

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
"""Text columns that are recognised by name."""
LABELS = ("label", "labels", "category", "intent", "class")
"""Label columns that are recognised by name."""
CUSTOM_TASK = Task(
    name="custom",
    text_columns=("text",),
    label_column="label",
    head=SequenceClassification(),
    hsk_epochs=10,
    max_length=128,
)
"""The properties of a custom task before its data is loaded."""


def load_custom(
    data: str | None,
    text_columns: Sequence[str] | str | None = None,
    label_column: str | None = None,
    label_type: LabelType | None = None,
    task: Task = CUSTOM_TASK,
) -> TaskData:
    """Load a user's own task.

    ``data`` is a folder, a single file, or a data set of the hub (see :func:`~hskd.tasks.source.read_tables`). A folder
    has ``train`` and ``dev`` (or ``validation``) files and, optionally, a ``test`` file, in any of the
    :data:`~hskd.tasks.files.FORMATS`. Splits without a file of their own are selected by content
    (see :func:`~hskd.tasks.source.splits_of`): a single file is split about 80/10/10 %.

    The labels of ``train`` determine the kind of task, unless ``label_type`` does:

    * Whole numbers make a classification, with classes in ascending order.
    * Texts make a classification, with sorted classes. So do columns of the type ``ClassLabel`` in files of
      ``datasets``.
    * Numbers with a decimal point make a regression, unless there are just two and both are whole, such as 0.0 and 1.0.
    * Lists of labels make a multi-label task (see :func:`~hskd.tasks.multilabel.read_multilabel`).

    Labels keep their spelling: ``007`` is not ``7``. In CSV and TSV files, labels are numbers if all labels of
    ``train`` look like numbers. A test file may lack the label column. Messages count rows from 0.

    Args:
        text_columns: one or two names [default: inferred, if unambiguous].
        label_column: the column of labels; with ``multilabel``, possibly several, separated by commas [default:
            inferred, if unambiguous].
            by name, if unambiguous].
        label_type: the kind of labels [default: inferred from train].
        task: name, epochs and length.

    Raises:
        HskdError: a file, column, text or label is missing; labels are of two kinds; or a label is not among those of
            ``train``.
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
    """Return the head for a column of labels, each table's labels in the head's form, and the reason for that head."""
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
