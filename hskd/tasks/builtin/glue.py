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
from hskd.tasks.files import listed, read_table, read_text, short_repr
from hskd.tasks.labels import number_of
from hskd.tasks.registry import TASKS
from hskd.tasks.task import FileRows, Split, Task, TaskData

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Source:
    """The place of one split of one task."""

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
    """Text columns of the official files, if their names differ from those on the hub."""
    tsv_label: str = ""
    """Label column of the official files, if its name differs from that on the hub."""
    drops_short_rows: bool = False
    """Whether some rows of the official files lack fields; such rows are left out and counted in a warning."""
    sources: tuple[tuple[str, Source], ...] = tuple(SOURCES.items())


def _task(
    name: str,
    columns: tuple[str, ...],
    label_names: tuple[str, ...],
    metrics: tuple[str, ...],
    hsk_epochs: int,
    max_length: int = 128,
) -> Task:
    """Return a task in GLUE's form: the label column is ``label``, and a task without label names is a regression."""
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

    Test files have no labels and are optional.

    Args:
        glue: the task.
        data: the folder of the official TSV files, its parent folder (then it has its official name, such as ``CoLA``),
            or a copy of the hub's repository (``cola/train-00000-of-00001.parquet``); None loads from the hub.

    Raises:
        HskdError: there is no data, a row is malformed, or the hub cannot be reached.
    """
    if data is None:
        return TaskData(glue.task, _from_hub(glue))
    root = Path(data)
    for folder in (root, root / glue.folder):
        if (folder / "train.tsv").is_file():
            present = [
                (name, source) for name, source in glue.sources if source.labelled or (folder / source.tsv).exists()
            ]
            return TaskData(glue.task, {name: _from_tsv(glue, folder, name, source) for name, source in present})
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
    numbers, fields = read_tsv(
        path,
        (*columns, label) if source.labelled else columns,
        source.header,
        glue.drops_short_rows,
        f"the official {name} file of task {task.name}",
    )
    texts, rows = [fields[column] for column in columns], FileRows(str(path), numbers, "line")
    if not source.labelled:
        return Split.of(name, texts, None, rows)
    return Split.of(name, texts, _parse_labels(glue, path, label, zip(numbers, fields[label], strict=True)), rows)


def read_tsv(
    path: Path, columns: Sequence[str], header: tuple[str, ...] | None, drops_short_rows: bool, expected: str
) -> tuple[list[int], dict[str, list[str]]]:
    """Read columns of a TSV file in GLUE's form: fields are not quoted, and only a newline ends a row.

    Args:
        path: the file.
        columns: names of the columns to read.
        header: names of all columns, if the first line does not give them.
        drops_short_rows: leave out rows that lack fields, with a warning that counts them.
        expected: what the file should be, for the message if it has no rows.

    Returns:
        The line number of every row, from 1, and the columns by name.

    Raises:
        HskdError: a column is missing, a row has another number of fields, or the file is empty or not UTF-8.
    """
    lines = read_text(path).removesuffix("\n").split("\n")  # other line separators occur inside texts
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if lines == [""] or (header is None and len(rows) == 1):
        raise HskdError(f"{path}: no rows; expected {expected}.")
    names, first = (header, 1) if header else (tuple(rows.pop(0)), 2)
    for column in columns:
        if column not in names:
            raise HskdError(f"{path}, line 1: no column {column!r}; it has {listed(names)}.")
        if names.count(column) > 1:
            raise HskdError(f"{path}, line 1: {names.count(column)} columns are called {column!r}; expected one.")
    numbered = list(enumerate(rows, first))
    if drops_short_rows:
        numbered = _without_short_rows(path, numbered, len(names))
    for line, row in numbered:
        if len(row) != len(names):
            raise HskdError(f"{path}, line {line}: {len(row)} fields; expected {len(names)}: {listed(names)}.")
    places = {column: names.index(column) for column in columns}
    fields = {column: [row[place] for _, row in numbered] for column, place in places.items()}
    return [line for line, _ in numbered], fields


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
        label = number_of(field) if numbers else meanings.get(field)
        if label is None:
            expected = "a number" if numbers else f"one of {list(glue.tsv_labels)}"
            raise HskdError(f"{path}, line {line}, column {column!r}: {short_repr(field)}; expected {expected}.")
        labels.append(label)
    return labels


def _from_hub(glue: GlueTask) -> dict[str, Split]:
    import datasets

    try:
        hub_splits = datasets.load_dataset(HUB, glue.config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise HskdError(
            f"Task {glue.task.name}: {HUB} ({glue.config}) cannot be loaded from the hub: {error}. "
            f"Pass --data FOLDER with the official TSV files ({glue.folder}/train.tsv, dev.tsv)."
        ) from error
    splits = {}
    for name, source in glue.sources:
        if source.hub not in hub_splits:
            raise HskdError(f"{HUB}: no split {source.hub!r}; it has {list(hub_splits)}.")
        table = hub_splits[source.hub]
        label_names = getattr(table.features.get(glue.task.label_column), "names", None)
        columns = {column: list(table[column]) for column in table.column_names}
        splits[name] = _split_of(glue.task, name, columns, label_names, f"{HUB}, {source.hub}")
    return splits


def _from_parquet(glue: GlueTask, folder: Path) -> dict[str, Split]:
    splits = {}
    for name, source in glue.sources:
        files = sorted(folder.glob(f"{source.hub}-*.parquet"))
        if not files and not source.labelled:
            continue
        if not files:
            raise HskdError(f"{folder}: no {source.hub}-*.parquet; task {glue.task.name} needs it.")
        tables = [read_table(file) for file in files]
        column_names = (*glue.task.text_columns, glue.task.label_column)
        columns = {column: [value for table in tables for value in table.column(column)] for column in column_names}
        label_names = tables[0].class_names.get(glue.task.label_column)
        splits[name] = _split_of(glue.task, name, columns, label_names, f"{folder}, {source.hub}")
    return splits


def _split_of(
    task: Task, name: str, columns: dict[str, list[Any]], label_names: Sequence[str] | None, where: str
) -> Split:
    """Return a split from columns in the hub's form; ``label_names`` are those of its schema, if any."""
    for column in (*task.text_columns, task.label_column):
        if column not in columns:
            raise HskdError(f"{where}: no column {column!r}; it has {listed(columns)}.")
    if label_names is not None and tuple(label_names) != task.label_names:
        raise HskdError(f"{where}: labels are {list(label_names)}; expected {list(task.label_names)}.")
    texts = [columns[column] for column in task.text_columns]
    for column, values in zip(task.text_columns, texts, strict=True):
        for row, text in enumerate(values):
            if not isinstance(text, str):
                raise HskdError(f"{where}, row {row}: no {column}, but {short_repr(text)}; expected a text.")
    labels = _check_labels(task, columns[task.label_column], where)
    return Split.of(name, texts, labels, FileRows(where, range(len(texts[0]))))


def _check_labels(task: Task, labels: Sequence[Any], where: str) -> list[int] | list[float] | None:
    # The hub writes -1 where GLUE does not publish the label.
    if all(label == -1 for label in labels):
        return None
    checked: list[Any] = []
    largest = len(task.label_names) - 1
    for row, label in enumerate(labels):
        fits_numbers = task.head.fits_numbers
        if fits_numbers:
            value = number_of(label)
        else:
            value = label if isinstance(label, int) and 0 <= label <= largest else None
        if value is None:
            expected = "a number" if fits_numbers else f"0 to {largest}"
            raise HskdError(
                f"{where}, row {row}, column {task.label_column!r}: {short_repr(label)}; expected {expected}."
            )
        checked.append(value)
    return checked
