"""GLUE tasks, from a folder of official TSV files, from the hub, or from a folder laid out as on the hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hskd.errors import HskdError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.tasks.registry import TASKS
from hskd.tasks.task import Split, Task, TaskData

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Source:
    """Where one split of one task lies."""

    tsv: str
    """File name in the official folder."""
    hub: str
    """Split name on the hub."""
    header: tuple[str, ...] | None = None
    """Column names of a file that has no header row."""
    labelled: bool = True


SOURCES = {
    "train": Source("train.tsv", "train"),
    "dev": Source("dev.tsv", "validation"),
    "test": Source("test.tsv", "test", labelled=False),
}
COLA_HEADER = ("source", "label", "mark", "sentence")


@dataclass(frozen=True)
class GlueTask:
    """A task, and how GLUE distributes it."""

    task: Task
    config: str
    """Name on the hub."""
    folder: str
    """Name of the folder of official files."""
    tsv_labels: tuple[str, ...] = ("0", "1")
    """How the official files write the labels, in the order of ``task.label_names``."""
    tsv_texts: tuple[str, ...] = ()
    """Text columns of the official files, where they have other names than on the hub."""
    tsv_label: str = ""
    """The same for the label."""
    drops_short_rows: bool = False
    """Some rows of the official files lack fields: they are left out, and counted in a warning."""
    sources: tuple[tuple[str, Source], ...] = tuple(SOURCES.items())


def _task(
    name: str,
    columns: tuple[str, ...],
    label_names: tuple[str, ...],
    metrics: tuple[str, ...],
    hsk_epochs: int,
    max_length: int = 128,
) -> Task:
    """A task as GLUE has them: its labels are in the column ``label``, and without names they are numbers to fit."""
    return Task(
        name=name,
        text_columns=columns,
        label_column="label",
        head=SequenceClassification(label_names, metrics) if label_names else SequenceRegression(metric_names=metrics),
        hsk_epochs=hsk_epochs,
        max_length=max_length,
    )


GLUE_TASKS = {
    glue.task.name: glue
    for glue in (
        GlueTask(
            _task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), 30, max_length=64),
            config="cola",
            folder="CoLA",
            sources=(
                ("train", Source("train.tsv", "train", header=COLA_HEADER)),
                ("dev", Source("dev.tsv", "validation", header=COLA_HEADER)),
                ("test", SOURCES["test"]),
            ),
        ),
        GlueTask(
            _task("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",), 20),
            config="rte",
            folder="RTE",
            tsv_labels=("entailment", "not_entailment"),
        ),
        GlueTask(
            _task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), 10, max_length=64),
            config="sst2",
            folder="SST-2",
        ),
        GlueTask(
            _task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1"), 20),
            config="mrpc",
            folder="MRPC",
            tsv_texts=("#1 String", "#2 String"),
            tsv_label="Quality",
        ),
        GlueTask(
            _task("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearman"), 20),
            config="stsb",
            folder="STS-B",
            tsv_label="score",
        ),
        GlueTask(
            _task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), 5),
            config="qqp",
            folder="QQP",
            tsv_label="is_duplicate",
            drops_short_rows=True,
        ),
        GlueTask(
            _task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), 5),
            config="mnli",
            folder="MNLI",
            tsv_labels=("entailment", "neutral", "contradiction"),
            tsv_texts=("sentence1", "sentence2"),
            tsv_label="gold_label",
            sources=(
                ("train", SOURCES["train"]),
                ("dev", Source("dev_matched.tsv", "validation_matched")),
                ("dev_mismatched", Source("dev_mismatched.tsv", "validation_mismatched")),
                ("test", Source("test_matched.tsv", "test_matched", labelled=False)),
                ("test_mismatched", Source("test_mismatched.tsv", "test_mismatched", labelled=False)),
            ),
        ),
        GlueTask(
            _task("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), 5),
            config="qnli",
            folder="QNLI",
            tsv_labels=("entailment", "not_entailment"),
        ),
    )
}


def load_glue(glue: GlueTask, data: str | None) -> TaskData:
    """Load a GLUE task.

    Args:
        glue: the task.
        data: the folder of its official TSV files, or a folder that has it under its official name (``CoLA``), or
            a copy of the hub's repository (``cola/train-00000-of-00001.parquet``); None asks the hub.

    Raises:
        HskdError: nothing found there, a malformed row, or no way to the hub.
    """
    if data is None:
        return TaskData(glue.task, _from_hub(glue))
    root = Path(data).expanduser()
    for folder in (root, root / glue.folder):
        if (folder / "train.tsv").is_file():
            return TaskData(glue.task, {name: _from_tsv(glue, folder, name, source) for name, source in glue.sources})
    for folder in (root / glue.config, root):
        if any(folder.glob("train-*.parquet")):
            return TaskData(glue.task, _from_parquet(glue, folder))
    raise HskdError(
        f"{root}: no data of task {glue.task.name}. Expected train.tsv, or {glue.folder}/train.tsv, "
        f"or {glue.config}/train-*.parquet there."
    )


for _glue in GLUE_TASKS.values():
    TASKS.register(_glue.task)(partial(load_glue, _glue))


def _from_tsv(glue: GlueTask, folder: Path, name: str, source: Source) -> Split:
    path, task = folder / source.tsv, glue.task
    if not path.is_file():
        raise HskdError(f"{path}: no such file; task {task.name} needs it for its {name} split.")
    columns, label = glue.tsv_texts or task.text_columns, glue.tsv_label or task.label_column
    numbers, found = read_tsv(
        path,
        (*columns, label) if source.labelled else columns,
        source.header,
        glue.drops_short_rows,
        f"the official {name} file of task {task.name}",
    )
    texts = [found[column] for column in columns]
    if not source.labelled:
        return Split.of(name, texts, None)
    return Split.of(name, texts, _parse_labels(glue, path, label, zip(numbers, found[label], strict=True)))


def read_tsv(
    path: Path, columns: Sequence[str], header: tuple[str, ...] | None, drops_short_rows: bool, expected: str
) -> tuple[list[int], dict[str, list[str]]]:
    """Some columns of a TSV file as GLUE writes them: nothing is quoted, and only a newline ends a row.

    Args:
        path: the file.
        columns: which.
        header: names of all its columns, where they are not in its first line.
        drops_short_rows: leave rows that lack fields out, with a warning that counts them.
        expected: what the file should be, for the message where it has no rows.

    Returns:
        The line of every row, counted from 1; and the columns by name.

    Raises:
        HskdError: a column is missing, a row has another number of fields, or the file is empty or not UTF-8.
    """
    try:
        # Other separators of lines occur inside the text.
        lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise HskdError(f"{path}: byte {error.start} is not UTF-8.") from None
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if lines == [""] or (header is None and len(rows) == 1):
        raise HskdError(f"{path}: no rows; expected {expected}.")
    names, first = (header, 1) if header else (tuple(rows.pop(0)), 2)
    for column in columns:
        if column not in names:
            raise HskdError(f"{path}, line 1: no column {column!r}; it has {list(names)}.")
    numbered = list(enumerate(rows, first))
    if drops_short_rows:
        numbered = _without_short_rows(path, numbered, len(names))
    for line, row in numbered:
        if len(row) != len(names):
            raise HskdError(f"{path}, line {line}: {len(row)} fields; expected {len(names)}: {list(names)}.")
    places = {column: names.index(column) for column in columns}
    found = {column: [row[place] for _, row in numbered] for column, place in places.items()}
    return [line for line, _ in numbered], found


def _without_short_rows(path: Path, rows: list[tuple[int, list[str]]], fields: int) -> list[tuple[int, list[str]]]:
    whole = [(line, row) for line, row in rows if len(row) >= fields]
    if not whole:
        raise HskdError(f"{path}: no row has {fields} fields, as its header says.")
    if len(whole) < len(rows):
        first = next(line for line, row in rows if len(row) < fields)
        warnings.warn(
            f"{path}: {len(rows) - len(whole)} of {len(rows)} rows lack fields (the first: line {first}); left out.",
            stacklevel=2,
        )
    return whole


def _parse_labels(
    glue: GlueTask, path: Path, column: str, fields: Iterable[tuple[int, str]]
) -> list[int] | list[float]:
    numbers = glue.task.head.fits_numbers
    meanings: dict[str, int] = {text: index for index, text in enumerate(glue.tsv_labels)}
    labels: list[Any] = []
    for line, field in fields:
        try:
            labels.append(float(field) if numbers else meanings[field])
        except (KeyError, ValueError):
            expected = "a number" if numbers else f"one of {list(glue.tsv_labels)}"
            raise HskdError(f"{path}, line {line}, column {column!r}: {field!r}; expected {expected}.") from None
    return labels


def _from_hub(glue: GlueTask) -> dict[str, Split]:
    import datasets

    try:
        found = datasets.load_dataset(HUB, glue.config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise HskdError(
            f"Task {glue.task.name}: {HUB} ({glue.config}) cannot be loaded from the hub: {error}. "
            f"Pass --data FOLDER with the official TSV files ({glue.folder}/train.tsv, dev.tsv, test.tsv)."
        ) from error
    return _from_dataset(glue, found, HUB)


def _from_parquet(glue: GlueTask, folder: Path) -> dict[str, Split]:
    import datasets

    files = {s.hub: sorted(str(path) for path in folder.glob(f"{s.hub}-*.parquet")) for _, s in glue.sources}
    for split, paths in files.items():
        if not paths:
            raise HskdError(f"{folder}: no {split}-*.parquet; task {glue.task.name} needs it.")
    try:
        found = datasets.load_dataset("parquet", data_files=files)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise HskdError(f"{folder}: its parquet files cannot be read: {error.__cause__ or error}.") from error
    return _from_dataset(glue, found, str(folder))


def _from_dataset(glue: GlueTask, found: Any, where: str) -> dict[str, Split]:
    task, splits = glue.task, {}
    for name, source in glue.sources:
        if source.hub not in found:
            raise HskdError(f"{where}: no split {source.hub!r}; it has {list(found)}.")
        table = found[source.hub]
        for column in (*task.text_columns, task.label_column):
            if column not in table.column_names:
                raise HskdError(f"{where}, {source.hub}: no column {column!r}; it has {table.column_names}.")
        names = getattr(table.features[task.label_column], "names", None)
        if names is not None and tuple(names) != task.label_names:
            raise HskdError(f"{where}, {source.hub}: labels are {names}; expected {list(task.label_names)}.")
        texts = [list(table[column]) for column in task.text_columns]
        for column, values in zip(task.text_columns, texts, strict=True):
            if None in values:
                raise HskdError(f"{where}, {source.hub}, row {values.index(None)}: no {column}; expected a text.")
        labels = _check_labels(task, list(table[task.label_column]), f"{where}, {source.hub}")
        splits[name] = Split.of(name, texts, labels)
    return splits


def _check_labels(task: Task, labels: Sequence[Any], where: str) -> list[int] | list[float] | None:
    # The hub writes -1 where GLUE keeps the label to itself.
    if all(label == -1 for label in labels):
        return None
    if task.head.fits_numbers:
        return [float(label) for label in labels]
    largest = len(task.label_names) - 1
    for row, label in enumerate(labels):
        if label not in range(largest + 1):
            raise HskdError(f"{where}, row {row}, column {task.label_column!r}: {label!r}; expected 0 to {largest}.")
    return [int(label) for label in labels]
