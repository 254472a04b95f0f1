"""Reranking data: pairs of a query and a passage with grades of relevance, to train and score a reranker."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hskd.errors import HskdError
from hskd.heads.reranking import Reranking, is_rankable
from hskd.tasks.files import Table, short_repr
from hskd.tasks.labels import number_of
from hskd.tasks.source import guessed_columns, read_tables, splits_of
from hskd.tasks.task import FileRows, Split, Task, TaskData

TEXTS = (
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("question", "answer"),
    ("question", "sentence"),
    ("qtext", "atext"),
)
"""Query and passage columns that are recognised by name."""
LABELS = ("label", "relevance", "grade", "score")
"""Grade columns that are recognised by name."""
_LARGEST_GRADE = 100

_log = logging.getLogger(__name__)


def load_reranking(
    task: Task,
    data: str | None,
    text_columns: Sequence[str] | str | None = None,
    label_column: str | None = None,
) -> TaskData:
    """Load the splits of a task whose examples are pairs of a query and a passage.

    ``data`` is a file, folder or name (see :func:`~hskd.tasks.source.read_tables`) with a column of queries, a column
    of passages, and a column of grades. Grades are whole numbers, and 0 marks an irrelevant passage. Rows with the same
    query text belong together, even if they are not adjacent. When a split is cut out of another, all rows of a query
    go to the same side.

    Queries without a relevant passage, or without an irrelevant one, are trained on but not scored. The log says how
    many there are.

    Args:
        task: name, epochs and length.
        data: the file, folder or name.
        text_columns: the columns of queries and of passages [default: inferred, if unambiguous].
        label_column: the column of grades [default: inferred, if unambiguous].

    Raises:
        HskdError: a file, column, text or grade is missing or malformed; the message names file and row.
    """
    if data is None:
        raise HskdError(
            f"Task {task.name} needs --data: a file, folder or hub name of queries, passages and grades of relevance."
        )
    tables = read_tables(data)
    train = tables.get("train", next(iter(tables.values())))
    columns = guessed_columns(task.name, train, text_columns, label_column, TEXTS, LABELS)
    if len(columns.texts) != 2:
        raise HskdError(f"Task {task.name} takes two text columns: queries, then passages.")
    whole = {}
    for name, table in tables.items():
        grades = _grades(table, columns.label, may_lack=name == "test")
        rows = FileRows(str(table.file), range(table.rows))
        whole[name] = Split.of(name, table.texts(columns.texts), grades, rows)
    splits = {name: _numbered(split) for name, split in splits_of(data, tables, whole, _queries).items()}
    _say_unscored(task.name, splits)
    largest = max(grade for grade, _ in splits["train"].labels or [])
    if largest == 0:
        raise HskdError(f"{train.file}: no passage of train is relevant; expected grades of which some are not 0.")
    named = replace(
        task,
        text_columns=columns.texts,
        label_column=columns.label,
        head=Reranking(metric_names=task.head.metric_names, largest=largest),
    )
    queries = {name: len({split.texts[0][row] for row in range(len(split))}) for name, split in splits.items()}
    counts = ", ".join(f"{name} {queries[name]:,} queries, {len(split):,} pairs" for name, split in splits.items())
    return TaskData(named, splits, f"grades 0 to {largest}; {counts}")


def _queries(split: Split) -> Iterable[Sequence[str]]:
    return ((query,) for query in split.texts[0])


def _grades(table: Table, column: str, may_lack: bool) -> list[int] | None:
    if may_lack and column not in table.names:
        return None
    values = table.column(column)
    if may_lack and all(value is None for value in values):
        return None
    grades = []
    for row, value in enumerate(values):
        number = number_of(int(value) if isinstance(value, bool) else value)
        if number is None or number != int(number) or not 0 <= number <= _LARGEST_GRADE:
            raise HskdError(
                f"{table.file}, row {row}, column {short_repr(column)}: {short_repr(value)}; expected a whole number "
                f"from 0 (irrelevant) to {_LARGEST_GRADE}."
            )
        grades.append(int(number))
    return grades


def _numbered(split: Split) -> Split:
    """Return the split with labels in the head's form: a grade, and the query's number in order of appearance."""
    if split.labels is None:
        return split
    numbers: dict[str, int] = {}
    labels: list[Any] = [
        (grade, numbers.setdefault(query, len(numbers)))
        for query, grade in zip(split.texts[0], split.labels, strict=True)
    ]
    return replace(split, labels=labels)


def _say_unscored(task: str, splits: dict[str, Split]) -> None:
    """Log how many queries of the scored splits do not count in a score."""
    for name, split in splits.items():
        if name == "train" or split.labels is None:
            continue
        grades: dict[int, list[int]] = {}
        for grade, query in split.labels:
            grades.setdefault(query, []).append(grade)
        unscored = sum(not is_rankable(of_query) for of_query in grades.values())
        if unscored == len(grades):
            raise HskdError(f"task {task}: no query of {name} has both a relevant and an irrelevant passage.")
        if unscored:
            _log.info(
                "task %s: %s of %s queries of %s have no relevant passage or no irrelevant one, and are not scored",
                task,
                f"{unscored:,}",
                f"{len(grades):,}",
                name,
            )
