"""Texts whose words have tags, from CoNLL-style files, JSON Lines and Parquet. Tag sequences are validated."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError
from hskd.heads import TokenClassification
from hskd.heads.token import ENTITY_F1, TOKEN_ACCURACY
from hskd.tasks.files import Table, read_table
from hskd.tasks.source import ALIASES, SAVED, DataPlace, as_table, joined, load_hub, load_saved, split_files
from hskd.tasks.task import SPLITS, FileRows, Split, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset

CONLL = (".conll", ".iob", ".iob2", ".bio", ".txt", ".tsv")
ENDINGS = (*CONLL, ".jsonl", ".json", ".parquet")
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels")
NAMES_FILE = "labels.txt"
"""File beside JSON Lines with numeric tags: the names of the numbers, one per line, from 0."""

_log = logging.getLogger(__name__)
_ENTITY = re.compile(r"([BIOLUES])-(.+)", re.DOTALL)
_SCHEMES = {"IOB2": "BI", "BILOU": "BILU", "BIOES": "BIES"}
_LAST = "LUES"
"""Prefixes that end an entity. E and S of BIOES correspond to L and U of BILOU."""


@dataclass(frozen=True, eq=False)
class Tagged:
    """The sentences of a split.

    Attributes:
        file: the file they come from.
        words: the words of each sentence.
        tags: the tags of each sentence, one per word; None if there are none.
        places: the line number of each sentence, or its row number in a table. In a CoNLL file, this is the line of the
            first word.
        noun: the unit of ``places``: ``line`` or ``row``.
        by_line: whether each word has its own line.
    """

    file: Path
    words: list[list[str]]
    tags: list[list[str]] | None
    places: list[int]
    noun: str = "line"
    by_line: bool = False

    def where(self, sentence: int, word: int) -> str:
        """Return the file and line of a word, for messages."""
        place = self.places[sentence]
        if self.by_line:
            return f"{self.file}, {self.noun} {place + word}"
        return f"{self.file}, {self.noun} {place}, word {word + 1} ({self.words[sentence][word]!r})"

    def every(self) -> Iterator[tuple[int, int, str]]:
        """Yield sentence index, word index and tag of every word."""
        for sentence, tags in enumerate(self.tags or []):
            for word, tag in enumerate(tags):
                yield sentence, word, tag


def load_tagged(task: Task, data: str | None, files: Mapping[str, str] | None = None) -> TaskData:
    """Load the splits of a task whose examples are words with tags.

    ``data`` is a folder with ``train``, ``dev`` and, optionally, ``test`` in one of these forms:

    * CoNLL-style text (``.conll``, ``.iob``, ``.bio``, ``.txt``, ``.tsv``): one word per line, in two or more columns
      separated by tabs or white space. The first column is the word, the last its tag. An empty line ends a sentence.
      ``-DOCSTART-`` lines and comments are ignored.
    * JSON Lines or Parquet with columns of lists: ``tokens`` (or ``words``) and ``ner_tags`` (or ``tags``, ``labels``).
      Tags are names, or whole numbers whose names are given by ``labels.txt`` or by a Parquet file of ``datasets``.
    * A data set saved by ``datasets``, or a copy of one from the hub (``data/train-00000-of-00001.parquet``).

    ``data`` may also be the name of a data set on the hub.

    Tags that mark entities are in IOB2 (also called BIO), BILOU or BIOES, and every tag sequence is validated. IOB1 is
    converted to IOB2 with a warning. The label names are all tags of the scheme for the entity types in ``train``.
    Other tags, such as parts of speech, are scored by token accuracy alone.

    Args:
        task: name, epochs and length; its head receives the names of the tags.
        data: the folder, or the name on the hub.
        files: file names of the splits, if they differ from the usual ones.

    Raises:
        HskdError: a file is missing or malformed, or a tag sequence is invalid; the message names file and line.
    """
    if data is None:
        raise HskdError(f"Task {task.name} needs --data: a folder with train and dev files of words and tags.")
    place = DataPlace.of(data)
    folder = Path(place.name)
    if place.is_on_hub:
        tables, names = _of_parts(place, load_hub(place))
    elif not folder.is_dir():
        raise HskdError(f"{folder}: no such folder; task {task.name} expects one with train and dev files.")
    else:
        tables, names = _read(place, folder, files or {})
    head, tables = _head(tables, names)
    index = {name: i for i, name in enumerate(head.label_names)}
    splits = {}
    for name, table in tables.items():
        texts = [" ".join(words) for words in table.words]
        labels = None if table.tags is None else [[index[tag] for tag in tags] for tags in table.tags]
        source = FileRows(str(table.file), table.places, "line" if table.noun == "line" else "row")
        splits[name] = Split.of(name, [texts], labels, source)
    return TaskData(replace(task, head=head), splits)


def _read(place: DataPlace, folder: Path, files: Mapping[str, str]) -> tuple[dict[str, Tagged], list[str] | None]:
    """Return the splits, and the names of the tags if they are given."""
    if (folder / SAVED).is_file():
        return _of_parts(place, load_saved(folder))
    tables: dict[str, Tagged] = {}
    names: list[str] | None = None
    for split in SPLITS:
        paths = [folder / files[split]] if split in files and (folder / files[split]).is_file() else []
        paths = paths or split_files(folder, ALIASES[split], ENDINGS)
        if not paths:
            if split == "test":
                continue
            expected = ", ".join((*CONLL, ".jsonl", ".parquet"))
            raise HskdError(f"{folder}: no {split} file; expected {split} with one of the endings {expected}.")
        match paths[0].suffix:
            case ".parquet":
                tables[split], names = _of_table(joined([read_table(path) for path in paths]), split)
            case ".jsonl" | ".json":
                names = _names_of(folder / NAMES_FILE)
                tables[split] = _read_jsonl(paths[0], split, names)
            case _:
                tables[split] = _read_conll(paths[0])
    return tables, names


def _lines(path: Path) -> list[str]:
    try:
        return [line.rstrip("\r") for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise HskdError(f"{path}: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise HskdError(f"{path}: cannot be read: {error}.") from error


def _read_conll(path: Path) -> Tagged:
    lines = _lines(path)
    tabs = any("\t" in line for line in lines if not line.startswith("#"))
    fields = [line.split("\t") if tabs else line.split() for line in lines]
    usual = Counter(len(row) for line, row in zip(lines, fields, strict=True) if line.strip() and line[0] != "#")
    if not usual:
        raise HskdError(f"{path}: no words; expected one a line, with its tag.")
    columns = usual.most_common(1)[0][0]
    if columns < 2:
        raise HskdError(f"{path}: lines have one column; expected a word, a tab or spaces, and its tag.")
    words: list[list[str]] = []
    tags: list[list[str]] = []
    places: list[int] = []
    inside = False
    for number, (line, row) in enumerate(zip(lines, fields, strict=True), 1):
        if not line.strip() or row[0] == "-DOCSTART-":
            inside = False
            continue
        # A line that starts with "#" is a word, such as a hashtag, if it has as many columns as other lines.
        if line.startswith("#") and not inside and (len(row) != columns or (not tabs and " = " in line)):
            continue
        if len(row) != columns:
            raise HskdError(f"{path}, line {number}: {len(row)} columns; expected {columns}, as most lines have.")
        if not inside:
            inside = True
            words.append([])
            tags.append([])
            places.append(number)
        word, tag = row[0], row[-1].strip()
        if len(word.split()) != 1 or word != word.strip():
            raise HskdError(
                f"{path}, line {number}: the word {word!r} is empty or holds white space; expected one word."
            )
        if not tag:
            raise HskdError(f"{path}, line {number}: the word {word!r} has no tag.")
        words[-1].append(word)
        tags[-1].append(tag)
    return Tagged(path, words, tags, places, by_line=True)


def _read_jsonl(path: Path, split: str, names: list[str] | None) -> Tagged:
    rows, places = [], []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise HskdError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise HskdError(f"{path}, line {number}: {type(row).__name__}; expected an object.")
        rows.append(row)
        places.append(number)
    if not rows:
        raise HskdError(f"{path}: no rows.")
    word_column, tag_column = _columns(path, list(dict.fromkeys(key for row in rows for key in row)), split)
    return _table(
        path,
        [row.get(word_column) for row in rows],
        None if tag_column is None else [row.get(tag_column) for row in rows],
        names,
        places,
        "line",
    )


def _of_table(table: Table, split: str) -> tuple[Tagged, list[str] | None]:
    """Return the sentences of a table with columns of lists, and the names of its tags if its schema gives them."""
    word_column, tag_column = _columns(table.file, table.names, split)
    names = list(table.class_names.get(tag_column or "", ())) or None
    tags = None if tag_column is None else table.column(tag_column)
    return _table(table.file, table.column(word_column), tags, names, list(range(table.rows)), "row"), names


def _of_parts(place: DataPlace, parts: Mapping[str, Dataset]) -> tuple[dict[str, Tagged], list[str] | None]:
    """Return the sentences of a data set with several parts, as loaded by ``datasets``, and the names of its tags."""
    tables, names = {}, None
    for split in SPLITS:
        part = place.part_of(split, parts)
        if part is None:
            if split == "test":
                continue
            raise HskdError(f"{place.name}: no split {split}; it has {list(parts)}.")
        tables[split], names = _of_table(as_table(f"{place.name}/{part}", parts[part]), split)
    return tables, names


def _columns(file: Path, there: Sequence[str], split: str) -> tuple[str, str | None]:
    """Return the name of the column of words, and that of the column of tags."""
    words = next((name for name in WORD_COLUMNS if name in there), None)
    tags = next((name for name in TAG_COLUMNS if name in there), None)
    if words is None or (tags is None and split != "test"):
        lacking = f"words ({' or '.join(WORD_COLUMNS)})" if words is None else f"tags ({' or '.join(TAG_COLUMNS)})"
        raise HskdError(f"{file}: no column of {lacking}; it has {list(there)}.")
    return words, tags


def _names_of(file: Path) -> list[str] | None:
    return [line.strip() for line in _lines(file) if line.strip()] if file.is_file() else None


def _table(
    file: Path, words: list[Any], tags: list[Any] | None, names: Sequence[str] | None, places: list[int], noun: str
) -> Tagged:
    """Return validated sentences from columns of lists. Numeric tags are replaced by their names."""
    named: list[list[str]] = []
    for row, sentence in enumerate(words):
        at = f"{file}, {noun} {places[row]}"
        if not isinstance(sentence, list) or not sentence or not all(isinstance(word, str) for word in sentence):
            raise HskdError(f"{at}: {sentence!r}; expected a list of words.")
        for word in sentence:
            if len(word.split()) != 1 or word != word.strip():
                raise HskdError(f"{at}: the word {word!r} is empty or holds white space; expected one word.")
        if tags is None:
            continue
        own = tags[row]
        if not isinstance(own, list) or len(own) != len(sentence):
            count = len(own) if isinstance(own, list) else "no"
            raise HskdError(f"{at}: {count} tags for {len(sentence)} words; expected one for each word.")
        named.append([_name(tag, names, at) for tag in own])
    return Tagged(file, words, None if tags is None else named, places, noun)


def _name(tag: Any, names: Sequence[str] | None, at: str) -> str:
    if isinstance(tag, str) and tag:
        return tag
    if not isinstance(tag, int) or isinstance(tag, bool):
        raise HskdError(f"{at}: the tag {tag!r}; expected a name or a whole number.")
    if names is None:
        raise HskdError(f"{at}: the tag {tag} is a number without a name; put the names into {NAMES_FILE}, one a line.")
    if not 0 <= tag < len(names):
        raise HskdError(f"{at}: the tag {tag}; there are {len(names)} names, for 0 to {len(names) - 1}.")
    return names[tag]


def _head(tables: dict[str, Tagged], names: list[str] | None) -> tuple[TokenClassification, dict[str, Tagged]]:
    """Validate the tags of all splits; return the head for them, and the splits in the head's scheme."""
    tagged = {name: table for name, table in tables.items() if table.tags is not None}
    if "train" not in tagged:
        raise HskdError(f"{tables['train'].file}: has no tags; expected one for each word.")
    prefixes = _prefixes(tagged)
    known = {tag for _, _, tag in tagged["train"].every()} | set(names or ())
    if not prefixes:
        _require_known(tagged, known)
        tags = tuple(names) if names else tuple(sorted(known))
        _require_several(tables["train"].file, tags)
        return TokenClassification(tags, (TOKEN_ACCURACY,)), tables
    scheme = next((name for name, letters in _SCHEMES.items() if prefixes <= set(letters)), None)
    if scheme is None:
        raise HskdError(
            f"{tables['train'].file}: tags begin with {', '.join(sorted(prefixes))}, which no scheme has together; "
            f"expected {', '.join(f'{name} ({letters})' for name, letters in _SCHEMES.items())}."
        )
    wrong = [error for table in tagged.values() for error in _wrong(table, scheme)]
    if wrong and scheme == "IOB2" and all(_is_iob1(table) for table in tagged.values()):
        _log.warning("%s: its tags are in IOB1; they are turned into IOB2", tables["train"].file)
        tagged = {name: replace(table, tags=list(map(_as_iob2, table.tags or []))) for name, table in tagged.items()}
    elif wrong:
        raise HskdError(
            f"{wrong[0]} Tags seem to be in {scheme}; correct the sequence"
            + (f", and {len(wrong) - 1} more like it." if len(wrong) > 1 else ".")
        )
    types = sorted({tag[2:] for tag in known if tag != "O"})
    tags = ("O", *(f"{letter}-{kind}" for kind in types for letter in _SCHEMES[scheme]))
    if names and set(tags) == set(names):
        tags = tuple(names)
    _require_known(tagged, set(tags))
    return TokenClassification(tags, (ENTITY_F1, TOKEN_ACCURACY)), tables | tagged


def _prefixes(tables: dict[str, Tagged]) -> set[str]:
    """Return the letters before entity types, or an empty set if the tags do not mark entities.

    Raises:
        HskdError: some tags have such a letter and others do not.
    """
    marks_entity: dict[str, bool] = {}
    for table in tables.values():
        marks_entity.update({tag: _ENTITY.fullmatch(tag) is not None for _, _, tag in table.every() if tag != "O"})
    if not any(marks_entity.values()):
        return set()
    for table in tables.values():
        for sentence, word, tag in table.every():
            if tag != "O" and not marks_entity[tag]:
                raise HskdError(
                    f"{table.where(sentence, word)}: the tag {tag!r}; others mark entities, so expected O, or one "
                    "of the letters B, I, L, U, E, S, a hyphen and a type."
                )
    return {tag[0] for tag in marks_entity}


def _wrong(table: Tagged, scheme: str) -> Iterator[str]:
    """Yield a message for each fault in the tag sequences of a split."""
    closes = scheme != "IOB2"
    for sentence, tags in enumerate(table.tags or []):
        for word, (before, tag) in enumerate(zip(["O", *tags], [*tags, "O"], strict=True)):
            begins, inside = tag[0] in "BUSO", tag[0] in "ILE"
            open_type = None if before == "O" or before[0] in _LAST else before[2:]
            if inside and open_type != tag[2:]:
                yield f"{table.where(sentence, word)}: {tag} follows {before}; expected B-{tag[2:]} to begin it."
            elif closes and begins and open_type is not None:
                place = table.where(sentence, max(word - 1, 0))
                after = "the sentence ends" if word == len(tags) else f"{tag} follows"
                ends = "L" if scheme == "BILOU" else "E"
                yield f"{place}: {after} after {before}, so the entity has no end; expected its last tag ({ends})."


def _is_iob1(table: Tagged) -> bool:
    """Return whether B occurs only where an entity follows another of the same type."""
    return all(
        tag[0] != "B" or before[2:] == tag[2:]
        for tags in table.tags or []
        for before, tag in zip(["O", *tags], tags, strict=False)
    )


def _as_iob2(tags: list[str]) -> list[str]:
    """Return a sentence's tags, converted from IOB1 to IOB2."""
    pairs = zip(["O", *tags], tags, strict=False)
    return [f"B{tag[1:]}" if tag[0] == "I" and before[2:] != tag[2:] else tag for before, tag in pairs]


def _require_known(tables: dict[str, Tagged], known: set[str]) -> None:
    for table in tables.values():
        for sentence, word, tag in table.every():
            if tag not in known:
                raise HskdError(
                    f"{table.where(sentence, word)}: the tag {tag!r} is not among train's, {sorted(known)}."
                )


def _require_several(file: Path, tags: tuple[str, ...]) -> None:
    if len(tags) < 2:
        raise HskdError(f"{file}: every tag is {tags[0]!r}; expected at least two.")
