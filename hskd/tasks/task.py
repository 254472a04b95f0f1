"""Tasks, and the examples of a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hskd.heads import Head

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """A task on one text or a pair of texts. Its head defines what is predicted and how predictions are scored."""

    name: str
    text_columns: tuple[str, ...]
    """One or two column names."""
    label_column: str
    head: Head
    hsk_epochs: int
    """Default number of epochs of the HSK stage."""
    max_length: int
    """Tokens, special tokens included, that an example is truncated to."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels in the order of their indices; empty if labels are numbers."""
        return self.head.label_names


@dataclass(frozen=True)
class FileRows:
    """The place of a split's examples in a file, for messages.

    Attributes:
        file: path of the file.
        numbers: row or line number of each example.
        unit: what is counted: rows from 0, or lines from 1.
    """

    file: str
    numbers: Sequence[int]
    unit: Literal["row", "line"] = "row"


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split, in file order.

    Build it with :meth:`of`, which derives the ids.
    """

    name: str
    texts: tuple[list[str], ...]
    """One list of N texts per text column."""
    labels: list[Any] | None
    """N labels in the form that the task's head takes, such as label indices; None if they are unknown."""
    ids: NDArray[np.int64]
    """(N,) example ids, unique within the split."""
    source: FileRows | None = None
    """The examples' place in a file, if they come from one."""

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return len(self.ids)

    @classmethod
    def of(
        cls, name: str, texts: Sequence[list[str]], labels: list[Any] | None, source: FileRows | None = None
    ) -> Split:
        """Return a split with ids derived from its texts (see :func:`example_ids`)."""
        return cls(name, tuple(texts), labels, example_ids(texts), source)

    def where(self, example: int) -> str:
        """Return the place of an example for messages: file and row, or split and row."""
        if self.source is None:
            return f"split {self.name}, row {example}"
        return f"{self.source.file}, {self.source.unit} {self.source.numbers[example]}"


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its splits, keyed ``train``, ``dev`` and ``test``; a key may be absent."""

    task: Task
    splits: dict[str, Split]
    why: str = ""
    """Why the labels are classes or numbers, if that was inferred from the data."""


def text_hash(fields: Iterable[str | int]) -> bytes:
    """Return the SHA-256 (32 bytes) of the fields as a JSON array in ASCII, so that field boundaries are clear."""
    return hashlib.sha256(json.dumps(list(fields)).encode("ascii")).digest()


def example_ids(texts: Sequence[list[str]]) -> NDArray[np.int64]:
    """Return ids derived from content alone, so that they survive reordering, added rows and changed labels.

    An id is the first 8 bytes of :func:`text_hash` of the example's texts, big-endian and signed. If that id already
    occurred in the list, as with a repeated text, a counter 1, 2, ... is appended to the hashed fields until the id is
    new.

    Args:
        texts: one list of N texts per text column.

    Returns:
        (N,) int64, all different.
    """
    import numpy as np

    ids: list[int] = []
    seen: set[int] = set()
    # The last counter of each repeated text. Without it, n copies of a text would cost n^2 hashes.
    last_counter: dict[int, int] = {}
    for fields in zip(*texts, strict=True):
        first = example_id = int.from_bytes(text_hash(fields)[:8], "big", signed=True)
        counter = last_counter.get(first, 0)
        while example_id in seen:
            counter += 1
            example_id = int.from_bytes(text_hash((*fields, counter))[:8], "big", signed=True)
        last_counter[first] = counter
        seen.add(example_id)
        ids.append(example_id)
    return np.array(ids, dtype=np.int64)
