"""Augmented data: further unlabelled sentences for the student, which the teacher labels with its predictions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hskd.errors import HskdError
from hskd.tasks.builtin.glue import GLUE_TASKS, read_tsv
from hskd.tasks.files import FORMATS, ending, read_table, read_text, unquoted
from hskd.tasks.task import FileRows, Split, TaskData, example_ids

AUGMENTED = "augmented"
"""Name of the split of augmented sentences."""


def with_augmented(data: TaskData, file: Path) -> TaskData:
    """Return the task with the sentences of ``file`` as an additional split, without labels.

    The file has one of the :data:`~hskd.tasks.files.FORMATS` and the task's text columns. They are named as in the task
    or, for GLUE, as in its official files. Other columns, including labels, are ignored. A ``.tsv`` file for CoLA may
    lack the header, as the official file does. For a task with one text, a ``.txt`` file with one sentence per line
    works too.

    A sentence is left out, and counted in a warning, if it occurs in any split except ``train``, because a student must
    not train on test data. It is also left out if it occurs in ``train`` or earlier in the file. The comparison
    ignores case and white space.

    Raises:
        HskdError: the file cannot be read, a row has no text, or no sentence is left.
    """
    task = data.task
    texts = _read(file, data)
    seen: dict[str, set[tuple[str, ...]]] = {"train": set(), "other": set()}
    for name, split in data.splits.items():
        seen["train" if name == "train" else "other"].update(map(_key, zip(*split.texts, strict=True)))
    rows, leaks = [], 0
    for row, fields in enumerate(zip(*texts, strict=True)):
        key = _key(fields)
        if key in seen["other"]:
            leaks += 1
        elif key not in seen["train"]:
            seen["train"].add(key)
            rows.append(row)
    count = len(texts[0])
    if leaks or len(rows) < count:
        warnings.warn(
            f"{file}: of {count} sentences, {leaks} occur in dev or test and {count - leaks - len(rows)} in train or "
            "earlier in the file; left out.",
            stacklevel=2,
        )
    if not rows:
        raise HskdError(f"{file}: no sentence is left that is not in the splits of task {task.name} already.")
    kept = [[column[row] for row in rows] for column in texts]
    train = data.splits["train"]
    # Ids are derived together with those of train, because a student trains on both and needs unique ids.
    ids = example_ids([[*real, *extra] for real, extra in zip(train.texts, kept, strict=True)])[len(train) :]
    source = FileRows(str(file), rows)
    return replace(data, splits=data.splits | {AUGMENTED: Split(AUGMENTED, tuple(kept), None, ids, source)})


def _key(fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(field.split()).casefold() for field in fields)


def _read(file: Path, data: TaskData) -> list[list[str]]:
    """Return one list of texts for each text column of the task."""
    task, glue = data.task, GLUE_TASKS.get(data.task.name)
    if not file.is_file():
        raise HskdError(f"{file}: no such file; expected augmented sentences of task {task.name}.")
    names = [task.text_columns, *([glue.tsv_texts] if glue and glue.tsv_texts else [])]
    kind = ending(file)
    if kind == ".txt":
        if len(task.text_columns) > 1:
            raise HskdError(f"{file}: task {task.name} has two texts, {list(task.text_columns)}; expected columns.")
        return [_lines(file)]
    if kind == ".tsv":
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            first = opened.readline().rstrip("\r\n").split("\t")
        named = _first_in(names, first)
        header = dict(glue.sources)["train"].header if glue and not set(named) <= set(first) else None
        numbers, columns = read_tsv(
            file, named, header, bool(glue and glue.drops_short_rows), f"augmented sentences of task {task.name}"
        )
        for name in named:
            for line, text in zip(numbers, columns[name], strict=True):
                if not text:
                    raise HskdError(f"{file}, line {line}, column {name!r}: empty; expected a text.")
        return [[unquoted(text) for text in columns[name]] for name in named]
    if kind not in FORMATS:
        raise HskdError(f"{file}: unknown format {kind!r}; expected one of {', '.join((*FORMATS, '.txt'))}.")
    table = read_table(file)
    return table.texts(_first_in(names, table.names))


def _first_in(names: list[tuple[str, ...]], there: Sequence[str]) -> tuple[str, ...]:
    """Return the first of ``names`` that a file has, or ``names[0]`` for the error message if it has none."""
    return next((columns for columns in names if set(columns) <= set(there)), names[0])


def _lines(file: Path) -> list[str]:
    lines = [line.strip() for line in read_text(file).split("\n") if line.strip()]
    if not lines:
        raise HskdError(f"{file}: no rows.")
    return lines
