"""Data of embedding tasks: texts to learn from, and texts, rated pairs, or a corpus with queries to score on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hskd.errors import HskdError
from hskd.heads.embedding import AGREEMENT
from hskd.heads.embedding.retrieval import MRR, NDCG
from hskd.tasks.files import FORMATS, Table, listed, read_table, read_text, short_repr
from hskd.tasks.labels import number_of
from hskd.tasks.retrieval import CORPUS, Retrieval
from hskd.tasks.source import ALIASES, DataPlace, read_tables, split_files
from hskd.tasks.task import SPLITS, FileRows, Split, Task, TaskData, text_hash

TEXT_COLUMNS = ("text", "sentence", "sentence1", "sentence_A")
PAIR_COLUMNS = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2"))
RATING_COLUMNS = ("score", "relatedness_score", "rating", "similarity")
ENDINGS = (".txt", *FORMATS)


def load_sentences(
    task: Task,
    data: str | None,
    files: Mapping[str, str] | None = None,
    train: list[str] | None = None,
) -> TaskData:
    """Load the splits of a task whose head is a sentence embedding.

    ``data`` is one file of texts, a data set of the hub, or a folder with ``train`` and, optionally, ``dev`` and
    ``test`` files. A ``.txt`` file has one text per line. A file of another of the :data:`~hskd.tasks.files.FORMATS`
    has a column ``text``, ``sentence`` or ``sentence1``.

    How dev and test are scored depends on their content:

    * Pairs (``sentence1`` and ``sentence2``, or SICK's ``sentence_A`` and ``sentence_B``) with ratings (``score``,
      ``relatedness_score``, ``rating`` or ``similarity``) are scored by rank correlation.
    * Texts are scored by the agreement with the teacher.
    * A folder with ``corpus.jsonl`` is scored by retrieval (see :class:`~hskd.tasks.retrieval.Retrieval`).

    A single file of texts is split by content: about 90 % train, 5 % dev and 5 % test.

    Args:
        task: name, epochs and length.
        data: the file, folder or name.
        files: file names of the splits, if they differ from the usual ones.
        train: the texts to learn from, if no file has them.

    Raises:
        HskdError: a file, column, text or rating is missing; the message names file and row.
    """
    if data is None:
        raise HskdError(f"Task {task.name} needs --data: a file of texts, or a folder with train, dev and test files.")
    place = DataPlace.of(data)
    path = Path(place.name)
    if path.is_file():
        return _of_one(task, _table(path))
    on_hub = read_tables(data) if place.is_on_hub else {}
    if "all" in on_hub and train is None:
        return _of_one(task, on_hub["all"])
    if not on_hub and not path.is_dir():
        raise HskdError(f"{path}: no such file or folder.")
    splits: dict[str, Split] = {}
    if train is not None:
        splits["train"] = Split.of("train", [train], None)
    if (path / CORPUS).is_file():
        return TaskData(_by_retrieval(task), _retrieval_splits(path, splits, files or {}))
    for name in SPLITS:
        if name in splits:
            continue
        file = None if on_hub else _file(path, name, files or {})
        table = on_hub.get(name) if file is None else _table(file)
        if table is None:
            if name == "train":
                raise HskdError(f"{path}: no train file; expected train with one of the endings {', '.join(ENDINGS)}.")
            continue
        pair = next((pair for pair in PAIR_COLUMNS if set(pair) <= set(table.names)), None)
        if name == "train" or pair is None:
            texts, rows = _texts(table)
            splits[name] = Split.of(name, [texts], None, FileRows(str(table.file), rows))
        else:
            splits[name] = _pairs(table, pair, name)
    rated = [split.labels is not None for name, split in splits.items() if name != "train"]
    if rated and not all(rated):
        if any(rated):
            raise HskdError(f"{path}: dev and test must both hold pairs with ratings, or both texts.")
        task = _by_agreement(task)
    return TaskData(task, splits)


def _of_one(task: Task, table: Table) -> TaskData:
    """Return the splits of a single table of texts."""
    return TaskData(_by_agreement(task), _cut(table.file, *_texts(table)))


def _by_agreement(task: Task) -> Task:
    return replace(task, head=replace(task.head, metric_names=(AGREEMENT,)))


def _by_retrieval(task: Task) -> Task:
    return replace(task, head=replace(task.head, metric_names=(NDCG, MRR)))


def _retrieval_splits(folder: Path, given: dict[str, Split], files: Mapping[str, str]) -> dict[str, Split]:
    """Return the training texts, from a train file or the corpus, and the corpus with the queries of dev and test."""
    retrieval = Retrieval.read(folder)
    splits = dict(given)
    if not splits:
        file = _file(folder, "train", files)
        if file is None:
            splits["train"] = retrieval.training_texts()
        else:
            texts, rows = _texts(_table(file))
            splits["train"] = Split.of("train", [texts], None, FileRows(str(file), rows))
    return splits | retrieval.scored()


def _file(folder: Path, split: str, files: Mapping[str, str]) -> Path | None:
    if split in files and (folder / files[split]).is_file():
        return folder / files[split]
    there = split_files(folder, ALIASES[split], ENDINGS)
    if len(there) > 1:
        raise HskdError(f"{folder}: {split} is in {len(there)} parts; expected one file of texts.")
    return there[0] if there else None


def _table(path: Path) -> Table:
    """Return the columns of a file; a ``.txt`` file has one column ``text``, unless its first line names a pair."""
    if path.suffix != ".txt":
        return read_table(path)
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise HskdError(f"{path}: no rows.")
    if any(set(pair) <= set(lines[0].split("\t")) for pair in PAIR_COLUMNS):
        return read_table(path, ".tsv")
    return Table(path, ("text",), len(lines), lambda _: lines, is_text=True)


def _texts(table: Table) -> tuple[list[str], list[int]]:
    """Return the different texts of a table and the row of each. Duplicates are dropped: they teach nothing new."""
    column = next((name for name in TEXT_COLUMNS if name in table.names), None)
    if column is None:
        raise HskdError(f"{table.file}: no column of texts ({', '.join(TEXT_COLUMNS)}); it has {listed(table.names)}.")
    pair = next((pair for pair in PAIR_COLUMNS if pair[0] == column and pair[1] in table.names), (column,))
    rows: dict[str, int] = {}
    for texts in table.texts(pair):
        for row, text in enumerate(texts):
            rows.setdefault(text, row)
    return list(rows), list(rows.values())


def _pairs(table: Table, pair: tuple[str, str], name: str) -> Split:
    """Return the texts of all pairs, one after the other, each with the rating of its pair."""
    column = next((name for name in RATING_COLUMNS if name in table.names), None)
    if column is None:
        raise HskdError(
            f"{table.file}: pairs, but no column of ratings ({', '.join(RATING_COLUMNS)}); it has "
            f"{listed(table.names)}."
        )
    first, second = table.texts(pair)
    texts: list[str] = []
    labels: list[float] = []
    for row, (one, other, value) in enumerate(zip(first, second, table.column(column), strict=True)):
        rating = number_of(value)
        if rating is None:
            raise HskdError(
                f"{table.file}, row {row}, column {short_repr(column)}: {short_repr(value)}; expected a number."
            )
        texts += [one, other]
        labels += [rating, rating]
    rows = [row for row in range(table.rows) for _ in pair]
    return Split.of(name, [texts], labels, FileRows(str(table.file), rows))


def _cut(path: Path, texts: list[str], rows: list[int]) -> dict[str, Split]:
    cut: dict[str, list[int]] = {name: [] for name in SPLITS}
    for place, text in enumerate(texts):
        # Use bytes 8 to 15, because bytes 0 to 7 are the id, and subsets are drawn in the order of the ids.
        bucket = int.from_bytes(text_hash([text])[8:16], "big") % 20
        cut[{18: "dev", 19: "test"}.get(bucket, "train")].append(place)
    for name, chosen in cut.items():
        if not chosen:
            raise HskdError(f"{path}: {len(texts)} texts leave none for {name}. Give a folder of files instead.")
    return {
        name: Split.of(name, [[texts[i] for i in chosen]], None, FileRows(str(path), [rows[i] for i in chosen]))
        for name, chosen in cut.items()
    }
