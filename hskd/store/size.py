"""Predict the sizes of stores from token counts, without running a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hskd.errors import HskdError
from hskd.selectors import Tokens
from hskd.selectors.precision import FP16
from hskd.spec import HSKSpec, Shape
from hskd.store.amount import Counts, amount_of, kept_tokens
from hskd.store.extract import Superset
from hskd.store_format.layout import SHARD_BYTES, ArraySpec, codec_bytes, derived_arrays, total_bytes


@dataclass(frozen=True)
class StoreSize:
    """Sizes of a spec's superset and derived store.

    Attributes:
        examples: number of examples in the data set.
        tokens: number of real tokens in all examples.
        kept_tokens: number of tokens kept per layer in all examples.
        fraction: kept values / values of full HSK.
        derived_bytes: size of the derived store, from which a student trains.
        full_bytes: size of a derived store with full HSK under the same mapping, in fp16.
        superset_bytes: size of the superset, which you can delete after deriving.
        shards: approximate number of shards of the derived store.
    """

    examples: int
    tokens: int
    kept_tokens: int
    fraction: float
    derived_bytes: int
    full_bytes: int
    superset_bytes: int
    shards: int


def size_of(
    spec: HSKSpec, shape: Shape, examples: Tokens | np.ndarray, max_length: int, target: ArraySpec
) -> StoreSize:
    """Return the sizes for a data set whose tokens or lengths are known.

    If the kept examples cannot be known in advance, because the teacher's outputs or the example ids decide, they are
    assumed to have the average length (see :func:`hskd.store.amount.kept_tokens`).

    Args:
        spec: what is kept.
        shape: sizes of teacher and student.
        examples: the tokens of all examples, or the number of real tokens of each, ``(N,)``.
        max_length: number of tokens to which examples are truncated.
        target: the array of the teacher's outputs, ``task.head.target()``.
    """
    if isinstance(examples, Tokens):
        counts = Counts(len(examples.lengths), len(examples.input_ids), kept_tokens(spec, examples))
        return _size(spec, shape, max_length, target, counts)
    share = spec.examples.count(len(examples)) / len(examples)
    kept = round(int(_kept(spec, examples).sum()) * share)
    return _size(spec, shape, max_length, target, Counts(len(examples), int(examples.sum()), kept))


def size_of_many(
    spec: HSKSpec, shape: Shape, examples: int, mean_tokens: float, max_length: int, target: ArraySpec
) -> StoreSize:
    """Return the sizes for a given number of examples and a mean number of real tokens, including special tokens.

    Every example is assumed to have the mean length. A spec with at most ``k`` tokens keeps fewer of a short example
    and no more of a long one, so the result is an upper bound of what is kept, up to rounding.

    Raises:
        HskdError: ``mean_tokens`` is below 3 or above ``max_length``.
    """
    if not 3 <= mean_tokens <= max_length:
        raise HskdError(f"--mean-tokens {mean_tokens:g}: expected 3 to {max_length}, the maximum length.")
    below = math.floor(mean_tokens)
    few, many = _kept(spec, np.array([below, below + 1]))
    kept = few + (mean_tokens - below) * (many - few)
    counts = Counts(examples, round(examples * mean_tokens), round(spec.examples.count(examples) * kept))
    return _size(spec, shape, max_length, target, counts)


def _kept(spec: HSKSpec, lengths: np.ndarray) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.zeros(offsets[-1], np.int64)
    ids[offsets[1:] - 1] = 1  # [SEP] closes every example
    return spec.length.counts(Tokens(np.arange(len(lengths)), offsets, ids, sep_id=1))


def _size(spec: HSKSpec, shape: Shape, max_length: int, target: ArraySpec, counts: Counts) -> StoreSize:
    superset = Superset.of([spec], shape)
    wide = superset.arrays(shape, target, max_length)
    derived = total_bytes(derived_arrays(spec, shape, max_length, target), *counts) + codec_bytes(spec, shape)
    full = spec.full().model_copy(update={"precision": FP16()})
    every = counts._replace(kept=counts.tokens)
    return StoreSize(
        examples=counts.examples,
        tokens=counts.tokens,
        kept_tokens=counts.kept,
        fraction=amount_of(spec, shape, max_length, target, counts).fraction,
        derived_bytes=derived,
        full_bytes=total_bytes(derived_arrays(full, shape, max_length, target), *every),
        superset_bytes=total_bytes(wide, counts.examples, counts.tokens, counts.tokens),
        shards=-(-derived // SHARD_BYTES),
    )
