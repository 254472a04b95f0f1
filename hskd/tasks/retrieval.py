"""A retrieval data set in the file layout of BEIR: a corpus, queries and relevance judgements."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hskd.errors import HskdError
from hskd.heads.embedding.retrieval import retrieval_labels
from hskd.tasks.files import Table, listed, read_table, short_repr
from hskd.tasks.labels import number_of
from hskd.tasks.source import ALIASES
from hskd.tasks.task import FileRows, Split

CORPUS, QUERIES, JUDGEMENTS = "corpus.jsonl", "queries.jsonl", "qrels"
_COLUMNS = (("query-id", "corpus-id", "score"), ("query_id", "corpus_id", "score"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """A corpus, and queries with their relevant passages.

    The files are:

    * ``corpus.jsonl``: an object per line, with ``_id``, ``text`` and, optionally, ``title``;
    * ``queries.jsonl``: an object per line, with ``_id`` and ``text``;
    * ``qrels/test.tsv`` (and ``dev.tsv``, ``train.tsv``): the columns ``query-id``, ``corpus-id`` and ``score``, a
      whole number that is above 0 for a relevant passage.

    Attributes:
        folder: the folder of the files.
        passages: title and text of each passage, by id.
        queries: by id.
        judgements: by split and query id, the grades above 0 by passage id.
    """

    folder: Path
    passages: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, dict[str, int]]]

    @classmethod
    def read(cls, folder: Path) -> Retrieval:
        """Read the files of a folder.

        Raises:
            HskdError: a file is missing or malformed, or refers to an unknown id; the message names file and row.
        """
        passages = _texts(read_table(folder / CORPUS))
        queries = _texts(_required(folder / QUERIES))
        judgements = {}
        for split, names in ALIASES.items():
            files = [folder / JUDGEMENTS / f"{name}.tsv" for name in names]
            file = next((file for file in files if file.is_file()), None)
            if file is not None:
                judgements[split] = _judgements(read_table(file), passages, queries)
        if not judgements.keys() & {"dev", "test"}:
            raise HskdError(f"{folder / JUDGEMENTS}: expected test.tsv or dev.tsv, with {', '.join(_COLUMNS[0])}.")
        return cls(folder, passages, queries, judgements)

    def training_texts(self) -> Split:
        """Return the passages, and the queries that are not scored, without duplicates."""
        scored = {query for split in ("dev", "test") for query in self.judgements.get(split, ())}
        scored_texts = {self.queries[query] for query in scored}
        others = [text for query, text in self.queries.items() if query not in scored]
        texts = [text for text in dict.fromkeys([*self.passages.values(), *others]) if text not in scored_texts]
        _log.info(
            "%s: has no train file; the student learns from %s texts: the corpus, and queries that are not scored",
            self.folder,
            f"{len(texts):,}",
        )
        return Split.of("train", [texts], None)

    def scored(self) -> dict[str, Split]:
        """Return the splits dev and test: the corpus followed by the split's queries, with labels in the head's form.

        Queries without a relevant passage are left out, and the log says how many.
        """
        rows = {passage: row for row, passage in enumerate(self.passages)}
        splits: dict[str, Split] = {}
        for split in ("dev", "test"):
            if split not in self.judgements:
                continue
            judged = {query: relevant for query, relevant in self.judgements[split].items() if relevant}
            if not judged:
                raise HskdError(f"{self.folder / JUDGEMENTS}: no query of {split} has a relevant passage.")
            if len(judged) < len(self.judgements[split]):
                _log.info(
                    "%s: %s of %s queries of %s have no relevant passage, and are not scored",
                    self.folder,
                    f"{len(self.judgements[split]) - len(judged):,}",
                    f"{len(self.judgements[split]):,}",
                    split,
                )
            labels: list[Any] = retrieval_labels(
                len(rows),
                [
                    (rows.get(query, -1), [(rows[passage], grade) for passage, grade in relevant.items()])
                    for query, relevant in judged.items()
                ],
            )
            texts = [*self.passages.values(), *(self.queries[query] for query in judged)]
            # Row numbers in messages count the passages first, then the queries.
            source = FileRows(f"{self.folder}, {split}", range(len(texts)))
            splits[split] = Split.of(split, [texts], labels, source)
        return splits


def _required(file: Path) -> Table:
    if not file.is_file():
        raise HskdError(f"{file}: no such file; beside {CORPUS}, expected {QUERIES} and {JUDGEMENTS}/test.tsv.")
    return read_table(file)


def _ids(table: Table, column: str) -> list[str]:
    ids = table.column(column)
    for row, value in enumerate(ids):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise HskdError(
                f"{table.file}, row {row}, column {short_repr(column)}: {short_repr(value)}; expected an id."
            )
    return list(map(str, ids))


def _texts(table: Table) -> dict[str, str]:
    """Return the title and text of each row by id, in file order."""
    (texts,) = table.texts(["text"]) if "title" not in table.names else (_titled(table),)
    by_id: dict[str, str] = {}
    for row, (key, text) in enumerate(zip(_ids(table, "_id"), texts, strict=True)):
        if key in by_id:
            raise HskdError(f"{table.file}, row {row}: the id {short_repr(key)} occurs twice.")
        by_id[key] = text
    return by_id


def _titled(table: Table) -> list[str]:
    """Return each row's title and text, joined by a space as in BEIR; one of the two may be empty."""
    texts = []
    for row, (title, text) in enumerate(zip(table.column("title"), table.column("text"), strict=True)):
        parts = [part.strip() for part in (title, text) if isinstance(part, str) and part.strip()]
        if not parts:
            raise HskdError(f"{table.file}, row {row}: neither title nor text; expected a text. Leave the row out.")
        texts.append(" ".join(parts))
    return texts


def _judgements(table: Table, passages: dict[str, str], queries: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the grades above 0 of each query's passages."""
    names = next((names for names in _COLUMNS if set(names) <= set(table.names)), None)
    if names is None:
        raise HskdError(f"{table.file}: expected the columns {', '.join(_COLUMNS[0])}; it has {listed(table.names)}.")
    judged: dict[str, dict[str, int]] = {}
    known: Sequence[tuple[str, dict[str, str], str]] = ((names[0], queries, QUERIES), (names[1], passages, CORPUS))
    columns = [_ids(table, name) for name in names[:2]]
    for row, (query, passage, value) in enumerate(zip(*columns, table.column(names[2]), strict=True)):
        for (column, texts, file), key in zip(known, (query, passage), strict=True):
            if key not in texts:
                raise HskdError(f"{table.file}, row {row}, column {column!r}: {short_repr(key)} is not in {file}.")
        grade = number_of(value)
        if grade is None or grade != int(grade):
            raise HskdError(
                f"{table.file}, row {row}, column {names[2]!r}: {short_repr(value)}; expected a whole number."
            )
        relevant = judged.setdefault(query, {})
        if grade > 0:
            relevant[passage] = int(grade)
    return judged
