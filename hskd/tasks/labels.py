"""The meaning of a label column: classes, or numbers to predict."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hskd.errors import HskdError
from hskd.heads import Head, MultiLabel, Reranking, SequenceClassification, SequenceRegression
from hskd.tasks.choices import LABEL_TYPES, LabelType
from hskd.tasks.files import Table, fault_of, listed, short_repr

# ASCII digits only: other digits are characters of a name. No two parts of a pattern match the same digits, which rules
# out quadratic matching time.
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = frozenset(("nan", "na", "n/a", "<na>", "#n/a", "null", "none", "-", "?"))
"""Placeholders for a missing value in a column of numbers."""
_LARGEST = 3.4028234663852886e38
"""The largest float32: a regression's labels are float32."""
_DIGITS = 4000
"""The most digits of a label. Python refuses to parse whole numbers of more than 4,300 digits."""
_UNEVEN = 10
"""Report uneven classes if the most common class is at least this many times as common as the rarest."""
_CHOOSE = "--label-type (label_type) decides otherwise"


@dataclass(frozen=True)
class LabelMeaning:
    """The meaning of a task's labels.

    Attributes:
        names: the classes in the order of their indices; None for a regression.
        why: the reason for this reading, for messages.
    """

    names: tuple[str, ...] | None
    why: str

    @property
    def head(self) -> Head:
        """The head of a task with these labels."""
        return SequenceRegression() if self.names is None else SequenceClassification(label_names=self.names)


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """The labels of one file, as written in the file.

    Attributes:
        table: the file.
        name: column name.
        values: one value for each row: str, int or float. No value is missing.
    """

    table: Table
    name: str
    values: list[Any]

    @classmethod
    def of(cls, table: Table, name: str, may_lack: bool) -> LabelColumn | None:
        """Read the column. Return None if ``may_lack`` and it is absent, empty, or -1 throughout, as in ``datasets``.

        Raises:
            HskdError: the column is missing, or a row of it has no valid label.
        """
        if may_lack and name not in table.names:
            return None
        values = [_plain(value) for value in table.column(name)]
        unknown = -1 if name in table.class_names else None
        if may_lack and all(value is None or value == unknown for value in values):
            return None
        column = cls(table, name, values)
        for row, value in enumerate(values):
            if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
                raise column.wrong(row, "a text or a number")
            if isinstance(value, str) and fault_of(value) is not None:
                raise column.wrong(row, "Unicode text, without half of a surrogate pair")
        if (names := table.class_names.get(name)) is not None:
            for row, value in enumerate(values):
                if not isinstance(value, int) or not 0 <= value < len(names):
                    raise column.wrong(row, f"0 to {len(names) - 1}, as its schema says")
        return column

    def wrong(self, row: int, expected: str) -> HskdError:
        """Return the error for one row."""
        return HskdError(
            f"{self.table.file}, row {row}, column {short_repr(self.name)}: {short_repr(self.values[row])}; "
            f"expected {expected}."
        )

    def __str__(self) -> str:
        return f"column {short_repr(self.name)} of {self.table.file.name}"

    def meaning(self, label_type: LabelType | None) -> LabelMeaning:
        """Return what these labels, those of ``train``, mean for the task.

        Raises:
            HskdError: the labels are of several kinds, are all the same, or contradict ``label_type``.
        """
        if label_type is not None and label_type not in LABEL_TYPES:
            raise HskdError(f"label type {label_type!r}: expected {' or '.join(LABEL_TYPES)}.")
        if label_type == "regression":
            self.numbers()
            return LabelMeaning(None, "as --label-type says")
        if (names := self.table.class_names.get(self.name)) is not None:
            return LabelMeaning(names, f"{self} has the type ClassLabel")
        self._require_one_kind(chosen=label_type is not None)
        numbers = self._as_numbers()
        if label_type is None and numbers is not None and any(isinstance(number, float) for number in numbers):
            # Two whole numbers with a point are classes: tables with gaps write 0 and 1 as 0.0 and 1.0.
            different = set(numbers)
            if len(different) > 2 or not all(float(number).is_integer() for number in different):
                return LabelMeaning(None, f"{self} has numbers with a point; {_CHOOSE}")
            self._require_one_spelling(numbers)
            why = f"{self} has two whole numbers; {_CHOOSE}"
        elif label_type is not None:
            why = "as --label-type says"
        else:
            why = f"{self} has texts" if numbers is None else f"{self} has whole numbers; {_CHOOSE}"
        return LabelMeaning(self._classes(numbers), why)

    def indices(self, names: Sequence[str]) -> list[int]:
        """Return the labels as indices into ``names``.

        Raises:
            HskdError: a label is not in ``names``.
        """
        index = {name: i for i, name in enumerate(names)}
        known = self.table.class_names.get(self.name)
        indices = [index.get(_written(value) if known is None else known[value]) for value in self.values]
        if None in indices:
            raise self.wrong(indices.index(None), f"one of train's labels, {listed(names)}")
        return indices  # type: ignore[return-value]

    def numbers(self) -> list[float]:
        """Return the labels as numbers.

        Raises:
            HskdError: a label is not a number, or is larger than float32 can hold.
        """
        numbers = []
        for row, value in enumerate(self.values):
            number = number_of(value)
            if number is None:
                too_large = not isinstance(value, str) or _NUMBER.fullmatch(value)
                raise self.wrong(row, "a number that float32 holds" if too_large else "a number")
            numbers.append(number)
        return numbers

    def _as_numbers(self) -> list[int | float] | None:
        """Return the labels as numbers, as int if written without a point; None if they are texts."""
        if not self.table.is_text and any(isinstance(value, str) for value in self.values):
            return None
        numbers: list[int | float] = []
        for row, value in enumerate(self.values):
            text = _written(value)
            if not _NUMBER.fullmatch(text):
                return None
            if len(text) > _DIGITS:
                raise self.wrong(row, f"a label of at most {_DIGITS} digits")
            numbers.append(int(text) if _INTEGER.fullmatch(text) else float(text))
        return numbers

    def _require_one_kind(self, chosen: bool) -> None:
        """Refuse placeholders for missing numbers, and texts among numbers unless classes are ``chosen``."""
        is_number = [not isinstance(value, str) or bool(_NUMBER.fullmatch(value)) for value in self.values]
        if all(is_number) and len({isinstance(value, str) for value in self.values}) == 1:
            return
        if not any(is_number):
            return
        missing = [
            number or value.strip().casefold() in _MISSING for number, value in zip(is_number, self.values, strict=True)
        ]
        if all(missing) and not all(is_number):
            raise self.wrong(is_number.index(False), "a number, as in other rows; leave rows without a label out")
        # In a file that distinguishes texts from numbers, such as JSON, "1" is a text.
        kinds = is_number if self.table.is_text else [not isinstance(value, str) for value in self.values]
        if len(set(kinds)) == 2 and not (chosen and self.table.is_text):
            odd = kinds.index(sum(kinds) * 2 < len(kinds))
            hint = "" if not self.table.is_text else "; or give --label-type (label_type) classification"
            raise HskdError(
                f"{self.table.file}, row {odd}, column {short_repr(self.name)}: {short_repr(self.values[odd])}; "
                f"labels are both texts and numbers; expected one kind{hint}."
            )

    def _require_one_spelling(self, numbers: list[int | float]) -> None:
        """Refuse a number that is written in two ways, such as 1 and 1.0."""
        spelling: dict[int | float, str] = {}
        for row, (number, value) in enumerate(zip(numbers, self.values, strict=True)):
            first = spelling.setdefault(number, _written(value))
            if first != _written(value):
                raise self.wrong(row, f"{first}, as another row has the same number; {_CHOOSE}")

    def _classes(self, numbers: list[int | float] | None) -> tuple[str, ...]:
        """Return the different labels: numbers in ascending order, texts sorted."""
        written = [_written(value) for value in self.values]
        if numbers is None:
            names = sorted(set(written))
        else:
            names = sorted(
                set(written), key=dict(zip(written, zip(numbers, written, strict=True), strict=True)).__getitem__
            )
        if len(names) < 2:
            raise HskdError(
                f"{self.table.file}, column {short_repr(self.name)}: every label is {short_repr(self.values[0])}; "
                "expected at least two classes."
            )
        return tuple(names)


def number_of(value: Any) -> float | None:
    """Return a label, a number or ASCII text, as a number; None if it is not a number or does not fit float32."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)
    return float(value) if isinstance(value, Decimal) else value


def _written(value: str | int | float) -> str:
    """Return a label as its file writes it."""
    return value if isinstance(value, str) else repr(value)


def describe_labels(head: Head, labels: Sequence[Any] | None, why: str = "") -> str:
    """Return a line that describes a head and its labels: the classes, or the range of the numbers."""
    because = f" ({why})" if why else ""
    if not head.label_names and not (labels and isinstance(labels[0], int | float)):
        return f"{head.kind}{because}"
    if not head.label_names:
        assert labels is not None
        count = f"{len(labels):,} values, {len(set(labels)):,} of them different"
        return f"{head.kind}, {min(labels)!r} to {max(labels)!r}, {count}{because}"
    names = [name if name == name.strip() and name.isprintable() else repr(name) for name in head.label_names]
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in names]
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{head.kind}, {len(names):,} classes: {', '.join(names[:10])}{more}{because}"


def describe_imbalance(head: Head, labels: Sequence[Any]) -> str:
    """Return a line on how uneven the classes of train are; empty if the rarest is not ten times as rare.

    The rarest class is compared with the most common. With several labels per example, each share is that of the
    examples with the label. For a reranker, pairs are relevant or irrelevant.
    """
    if isinstance(head, Reranking):
        counts = Counter("relevant" if grade > 0 else "irrelevant" for grade, _ in labels)
        names: Sequence[str] = ("relevant", "irrelevant")
    elif isinstance(head, MultiLabel):
        counts = Counter(head.label_names[index] for indices in labels for index in indices)
        names = head.label_names
    elif isinstance(head, SequenceClassification):
        counts = Counter(head.label_names[index] for index in labels)
        names = head.label_names
    else:
        return ""
    ranked = sorted(names, key=lambda name: -counts[name])
    if len(ranked) < 2 or counts[ranked[0]] < _UNEVEN * counts[ranked[-1]]:
        return ""
    few = ranked if len(ranked) <= 6 else [*ranked[:3], "...", *ranked[-3:]]
    shares = [
        name if name == "..." else f"{short_repr(name)} {100 * counts[name] / len(labels):.3g} % ({counts[name]:,})"
        for name in few
    ]
    return f"uneven classes in train: {', '.join(shares)}"
