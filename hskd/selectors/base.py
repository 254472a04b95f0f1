"""Base classes of all selectors: the selector, its registry, and the view of a layer from which selectors choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hskd import plugins, registry
from hskd.errors import HskdError, brief, cut

if TYPE_CHECKING:
    import numpy as np
    import torch

All = Literal["all"]
LARGEST = 2**63 - 1
"""The largest integer that a selector's field may have, because arrays are int64."""


class Selector(BaseModel):
    """A strategy along one dimension, with its amount. Its fields are part of the identity of an HSK spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: str


T = TypeVar("T", bound=Selector)


class Registry(registry.Registry[type[T]], Generic[T]):
    """The selector classes of one dimension, by name. Decorate a class with ``@REGISTRY.register`` to add it."""

    def __init__(self, dimension: str) -> None:
        super().__init__("selector", plugins.SELECTORS, dimension)
        self.dimension = dimension

    def register(self, cls: type[T]) -> type[T]:
        """Add a selector class under the default value of its field ``selector``, and return it.

        Raises:
            HskdError: another class has that name.
        """
        self.add(cls.model_fields["selector"].default, cls, cls)
        return cls

    def parse(self, fields: Any) -> T:
        """Return the selector that ``fields`` describes, a dict with the key ``selector``.

        If ``fields`` is a selector already, it is returned unchanged.

        Raises:
            HskdError: the selector is unknown, or a field is unknown, missing or out of range.
        """
        if isinstance(fields, Selector):
            return fields  # type: ignore[return-value]
        if not isinstance(fields, dict) or not isinstance(fields.get("selector"), str):
            raise HskdError(
                f'{self.dimension}: expected an object with a key "selector" ({", ".join(self)}), got {brief(fields)}.'
            )
        cls = self[fields["selector"]]
        where = f"{self.dimension}={fields['selector']}"
        try:
            selector = cls.model_validate(fields)
        except ValidationError as error:
            raise HskdError(f"{where}: {describe(error)}; fields: {', '.join(cls.model_fields)}.") from None
        for field, value in selector:
            given = fields.get(field)
            if isinstance(given, bool) and not isinstance(value, bool):  # pydantic reads true as 1
                raise HskdError(f"{where}: field {field}: expected a number, got {str(given).lower()}.")
            if isinstance(value, int) and value > LARGEST:  # arrays hold no larger one
                raise HskdError(f"{where}: field {field}: expected at most {LARGEST}, got {brief(value)}.")
        return selector


def describe(error: ValidationError) -> str:
    """Return a description of a pydantic error's first problem: the field, the problem and the given value."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"field {cut(field)}: {first['msg']} (got {brief(first['input'])})"


@dataclass(frozen=True, eq=False)
class Tokens:
    """The concatenated real tokens (no padding) of ``B`` examples, ``M`` tokens in total.

    Attributes:
        example_ids: ``(B,)`` int64.
        offsets: ``(B + 1,)`` int64; example ``b`` has the tokens from ``offsets[b]`` up to, but not including,
            ``offsets[b + 1]``.
        input_ids: token ids, ``(M,)``.
        sep_id: the tokenizer's id of ``[SEP]``.
        places: the position of each token in its example, ``(M,)``; None if every example is complete, so that
            positions count from 0.
        word_starts: which tokens begin a word, ``(M,)`` bool; None if the teacher does not predict words.
    """

    example_ids: np.ndarray
    offsets: np.ndarray
    input_ids: np.ndarray
    sep_id: int
    places: np.ndarray | None = None
    word_starts: np.ndarray | None = None

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, ``(B,)``."""
        import numpy as np

        return np.diff(self.offsets)

    @cached_property
    def example(self) -> np.ndarray:
        """Index of the example that each token belongs to, ``(M,)``."""
        import numpy as np

        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> np.ndarray:
        """Position of each token in its example, ``(M,)``."""
        import numpy as np

        if self.places is not None:
            return self.places
        return np.arange(len(self.input_ids)) - np.repeat(self.offsets[:-1], self.lengths)

    def take(self, chosen: np.ndarray) -> Tokens:
        """Return the tokens at the ascending indices ``chosen``. They keep their examples and positions."""
        import numpy as np

        return Tokens(
            self.example_ids,
            np.searchsorted(chosen, self.offsets),
            self.input_ids[chosen],
            self.sep_id,
            self.position[chosen],
            None if self.word_starts is None else self.word_starts[chosen],
        )


def _as_they_are(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True, eq=False)
class LayerView:
    """The input of a selector: ``M`` tokens of ``B`` examples in one layer. It is the same online and offline.

    Attributes:
        tokens: ids, positions and examples of the tokens.
        layer: the student layer that learns; 0 is the embedding output.
        states: the teacher's hidden states before rounding, ``(M, d_T)`` fp32.
        attention: the share of attention that ``[CLS]`` pays each token, ``(M,)`` fp32; None if the length selector
            names no attention layer.
        rounding: a function that rounds hidden states to the precision in which the spec stores them.
        gradient: how much the teacher's prediction depends on each token's hidden state, ``|h . dL/dh|``, ``(M,)``
            fp32; None if the length selector does not need it.
        received: the attention that each token receives, as a mean over heads and over the tokens that pay it,
            ``(M,)`` fp32; None if the length selector does not need it.
        entropy: the entropy of the teacher's prediction for each token, in nats, ``(M,)``; None if the length
            selector does not need it, or if the teacher makes one prediction per example.
    """

    tokens: Tokens
    layer: int
    states: torch.Tensor
    attention: np.ndarray | None = None
    rounding: Callable[[torch.Tensor], torch.Tensor] = _as_they_are
    gradient: np.ndarray | None = None
    received: np.ndarray | None = None
    entropy: np.ndarray | None = None

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Hidden states rounded as for storage, ``(M, d_T)`` fp32. Rank by these, because a store has no others."""
        return self.rounding(self.states)

    def take(self, chosen: np.ndarray) -> LayerView:
        """Return a view of the tokens at the ascending indices ``chosen``."""
        import torch

        rows = torch.from_numpy(chosen).to(self.states.device)
        scores: dict[str, Any] = {
            name: None if column is None else column[chosen]
            for name, column in (
                ("attention", self.attention),
                ("gradient", self.gradient),
                ("received", self.received),
                ("entropy", self.entropy),
            )
        }
        return replace(self, tokens=self.tokens.take(chosen), states=self.states[rows], **scores)


def mix(*keys: np.ndarray | int) -> np.ndarray:
    """Return a pseudo-random uint64 hash of ``keys``, which are broadcast together.

    It depends only on the keys, so a random selection by it is the same online and offline, in any batch and on any
    machine. The finaliser is that of splitmix64 (https://prng.di.unimi.it/splitmix64.c).
    """
    import numpy as np

    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
