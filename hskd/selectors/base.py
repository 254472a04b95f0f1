"""What the selectors of every dimension share: a registry per dimension and the flat view of real tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from hskd.errors import HskdError

All = Literal["all"]


class Selector(BaseModel):
    """A strategy along one dimension, with its amount. Its fields are part of what identifies an HSK spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: str


T = TypeVar("T", bound=Selector)


class Registry(Generic[T]):
    """The selectors of one dimension, by name. ``@REGISTRY.register`` above a class adds one."""

    def __init__(self, dimension: str) -> None:
        self.dimension = dimension
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Add a selector class under the default of its field ``selector``."""
        self._classes[cls.model_fields["selector"].default] = cls
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            raise HskdError(f"{self.dimension}: unknown selector {name!r}; known: {', '.join(self._classes)}.")
        return self._classes[name]

    def parse(self, fields: Any) -> T:
        """The selector that ``fields`` (a dict with the key ``selector``) describes; a selector is returned as it is.

        Raises:
            HskdError: the selector is unknown, or a field is unknown, missing or out of range.
        """
        if isinstance(fields, Selector):
            return fields  # type: ignore[return-value]
        if not isinstance(fields, dict) or not isinstance(fields.get("selector"), str):
            raise HskdError(
                f'{self.dimension}: expected an object with a key "selector" ({", ".join(self)}), got {fields!r}.'
            )
        cls = self[fields["selector"]]
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise HskdError(
                f"{self.dimension}={fields['selector']}: {describe(error)}; fields: {', '.join(cls.model_fields)}."
            ) from None


def describe(error: ValidationError) -> str:
    """The first complaint of a pydantic error: field, what is wrong, what was given."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"field {field}: {first['msg']} (got {first['input']!r})"


@dataclass(frozen=True, eq=False)
class Tokens:
    """The real tokens (no pads) of ``B`` examples, laid end to end: ``M`` in all.

    Attributes:
        example_ids: ``(B,)`` int64.
        offsets: ``(B + 1,)`` int64; example ``b`` holds tokens ``offsets[b]`` up to ``offsets[b + 1]``.
        input_ids: ``(M,)``.
        sep_id: the tokenizer's id of ``[SEP]``.
    """

    example_ids: np.ndarray
    offsets: np.ndarray
    input_ids: np.ndarray
    sep_id: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, ``(B,)``."""
        return np.diff(self.offsets)

    @cached_property
    def example(self) -> np.ndarray:
        """Which of the ``B`` examples each token belongs to, ``(M,)``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> np.ndarray:
        """Each token's place in its example, ``(M,)``."""
        return np.arange(len(self.input_ids)) - np.repeat(self.offsets[:-1], self.lengths)


def mix(*keys: np.ndarray | int) -> np.ndarray:
    """A uint64 that looks random and depends on nothing but ``keys`` (broadcast together).

    Random selection by this value is the same online and offline, in any batch and on any machine.
    The finaliser is splitmix64's (https://prng.di.unimi.it/splitmix64.c).
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
