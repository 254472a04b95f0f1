"""What a store will take, from counts alone: nothing is loaded and nothing is run."""

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
    """Sizes of the two stores of a spec.

    Attributes:
        examples: in the data set.
        tokens: real tokens, over all examples.
        kept_tokens: tokens kept in a layer, over all examples.
        fraction: kept values / values of full HSK.
        derived_bytes: of the store that a student trains from.
        full_bytes: of such a store of full HSK of the same mapping, in fp16.
        superset_bytes: of the superset that it is derived from, and that can be deleted then.
        shards: of the derived store.
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
    """Sizes for examples that are known, or whose lengths are.

    Where only the teacher knows which examples a spec keeps, or these are drawn by ids that are not known, they are
    taken to be as long as the others (see :func:`hskd.store.amount.kept_tokens`).

    Args:
        spec: what is kept.
        shape: sizes of teacher and student.
        examples: their tokens, or the number of real tokens of each, ``(N,)``.
        max_length: tokens that an example is cut to.
        target: what the store holds of the teacher's outputs, ``task.head.target()``.
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
    """Sizes for so many examples of so many real tokens on average, special tokens counted.

    Every example is taken to be as long as the average. Short ones keep fewer tokens and long ones no more, so what
    is kept is, if anything, less than this says.

    Raises:
        HskdError: fewer than three tokens on average, or more than ``max_length``.
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
