"""Texts to embed: any file of texts to learn from, and texts or pairs with ratings to score on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hskd.errors import HskdError
from hskd.heads.embedding import AGREEMENT
from hskd.tasks.custom import FORMATS, Columns, read_columns, texts_of
from hskd.tasks.task import SPLITS, Split, Task, TaskData, text_hash

TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence_A")
PAIR_COLUMNS = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2"))
RATING_COLUMNS = ("score", "relatedness_score", "rating", "similarity")
ENDINGS = (".txt", ".tsv", *FORMATS)
ALIASES = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


def load_sentences(
    task: Task,
    data: str | None,
    files: Mapping[str, str] | None = None,
    train: list[str] | None = None,
) -> TaskData:
    """The splits of a task whose head is a sentence embedding.

    ``data`` is one file of texts, or a folder with ``train`` and, as you like, ``dev`` and ``test``. A ``.txt`` file
    has a text a line; a ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` has a column ``text``, ``sentence`` or
    ``sentence1``.

    A dev or test file with pairs (``sentence1`` and ``sentence2``, or SICK's ``sentence_A`` and ``sentence_B``) and
    ratings (``score``, ``relatedness_score``, ``rating`` or ``similarity``) is scored by rank correlation; one of texts
    by the agreement with the teacher. One file of texts is split by content: about 90 % to learn from, 5 % dev and
    5 % test.

    Args:
        task: name, epochs and length.
        data: the file or folder.
        files: names of the splits' files, where they have others.
        train: the texts to learn from, where no file has them.

    Raises:
        HskdError: a file is missing, or a column, a text or a rating; names file and row.
    """
    if data is None:
        raise HskdError(f"Task {task.name} needs --data: a file of texts, or a folder with train, dev and test files.")
    path = Path(data).expanduser()
    if path.is_file():
        texts = _unique(_texts(path, _columns(path)))
        return TaskData(_by_agreement(task), _cut(path, texts))
    if not path.is_dir():
        raise HskdError(f"{path}: no such file or folder.")
    splits: dict[str, Split] = {}
    if train is not None:
        splits["train"] = Split.of("train", [train], None)
    for name in SPLITS:
        file = _file(path, name, files or {})
        if name in splits:
            continue
        if file is None:
            if name == "train":
                raise HskdError(f"{path}: no train file; expected train with one of the endings {', '.join(ENDINGS)}.")
            continue
        columns = _columns(file)
        pair = next((pair for pair in PAIR_COLUMNS if set(pair) <= set(columns)), None)
        if name == "train" or pair is None:
            splits[name] = Split.of(name, [_unique(_texts(file, columns))], None)
        else:
            splits[name] = _pairs(file, columns, pair, name)
    rated = [split.labels is not None for name, split in splits.items() if name != "train"]
    if rated and not all(rated):
        if any(rated):
            raise HskdError(f"{path}: dev and test must both hold pairs with ratings, or both texts.")
        task = _by_agreement(task)
    return TaskData(task, splits)


def _by_agreement(task: Task) -> Task:
    return replace(task, head=replace(task.head, metric_names=(AGREEMENT,)))


def _file(folder: Path, split: str, files: Mapping[str, str]) -> Path | None:
    if split in files and (folder / files[split]).is_file():
        return folder / files[split]
    there = [folder / f"{alias}{ending}" for alias in ALIASES[split] for ending in ENDINGS]
    there = [file for file in there if file.is_file()]
    if len(there) > 1:
        raise HskdError(f"{folder}: {' and '.join(file.name for file in there)} are both there; leave one.")
    return there[0] if there else None


def _columns(path: Path) -> Columns:
    """The columns of a file; a ``.txt`` without tabs has one, ``text``."""
    if path.suffix not in (".txt", ".tsv"):
        return read_columns(path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise HskdError(f"{path}: byte {error.start} is not UTF-8.") from None
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        raise HskdError(f"{path}: no rows.")
    header = lines[0].split("\t")
    if path.suffix == ".txt" and not any(set(pair) <= set(header) for pair in PAIR_COLUMNS):
        return {"text": [line.strip() for line in lines]}
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise HskdError(f"{path}, row {number}: {len(row)} fields; expected {len(header)}: {header}.")
    if not rows:
        raise HskdError(f"{path}: no rows.")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _texts(path: Path, columns: Columns) -> list[str]:
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        raise HskdError(f"{path}: no column of texts ({', '.join(TEXT_COLUMNS)}); it has {list(columns)}.")
    texts = texts_of(path, columns, [column])[0]
    pair = next((pair for pair in PAIR_COLUMNS if pair[0] == column and pair[1] in columns), None)
    return texts if pair is None else [*texts, *texts_of(path, columns, [pair[1]])[0]]


def _pairs(path: Path, columns: Columns, pair: tuple[str, str], name: str) -> Split:
    """The texts of the pairs, one after the other, each with the rating of its pair."""
    column = next((name for name in RATING_COLUMNS if name in columns), None)
    if column is None:
        raise HskdError(
            f"{path}: pairs, but no column of ratings ({', '.join(RATING_COLUMNS)}); it has {list(columns)}."
        )
    first, second = texts_of(path, columns, pair)
    texts: list[str] = []
    labels: list[float] = []
    for row, (one, other, value) in enumerate(zip(first, second, columns[column], strict=True)):
        rating = _number(value)
        if rating is None:
            raise HskdError(f"{path}, row {row}, column {column!r}: {value!r}; expected a number.")
        texts += [one, other]
        labels += [rating, rating]
    return Split.of(name, [texts], labels)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _unique(texts: list[str]) -> list[str]:
    """Each text once: another copy would teach nothing."""
    return list(dict.fromkeys(texts))


def _cut(path: Path, texts: list[str]) -> dict[str, Split]:
    cut: dict[str, list[str]] = {name: [] for name in SPLITS}
    for text in texts:
        # Not the first 8 bytes: those are the id, and subsets are drawn in the order of the ids.
        bucket = int.from_bytes(text_hash([text])[8:16], "big") % 20
        cut[{18: "dev", 19: "test"}.get(bucket, "train")].append(text)
    for name, chosen in cut.items():
        if not chosen:
            raise HskdError(f"{path}: {len(texts)} texts leave none for {name}. Give a folder of files instead.")
    return {name: Split.of(name, [chosen], None) for name, chosen in cut.items()}
