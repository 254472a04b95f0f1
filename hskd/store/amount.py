"""How much HSK a spec keeps of a data set: counted exactly, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hskd.selectors import ExampleScores, Tokens
from hskd.spec import HSKSpec, Shape
from hskd.store_format.layout import ArraySpec, codec_bytes, derived_arrays, total_bytes


class Counts(NamedTuple):
    """Sizes of a data set: examples, their real tokens, and the tokens that are kept in each layer of all of them."""

    examples: int
    tokens: int
    kept: int


@dataclass(frozen=True)
class HSKAmount:
    """What a spec keeps of a data set.

    Attributes:
        kept_values: numbers kept, over all examples.
        full_values: numbers in full HSK of the same mapping: every mapped layer, real token and neuron.
        fraction: ``kept_values / full_values``.
        fraction_padded: the paper's way of counting: the same, over tokens padded to the maximum length.
        bytes_per_example: what the spec's store takes on disk: targets, addresses, and what is held once for all.
    """

    kept_values: int
    full_values: int
    fraction: float
    fraction_padded: float
    bytes_per_example: float


def measure(
    spec: HSKSpec,
    tokens: Tokens,
    shape: Shape,
    max_length: int,
    target: ArraySpec,
    *,
    aligned_tokens: int | None = None,
    chosen: np.ndarray | None = None,
) -> HSKAmount:
    """Count what ``spec`` keeps of the examples in ``tokens``, tokenised to at most ``max_length`` tokens.

    Args:
        spec: what is kept.
        tokens: those that have something to learn from: all, unless the teacher has another tokenizer.
        shape: sizes of teacher and student.
        max_length: tokens that an example is cut to.
        target: what a store holds of the teacher's outputs, ``task.head.target()``.
        aligned_tokens: where the teacher has another tokenizer, how many tokens there are in all; full HSK is that of
            ``tokens`` then, and a store says which these are.
        chosen: the examples of which something is kept, where that is known; see :func:`kept_tokens`.

    Raises:
        HskdError: the spec names a layer that the student or the teacher lacks.
    """
    counts = Counts(len(tokens.lengths), len(tokens.input_ids), kept_tokens(spec, tokens, chosen))
    return amount_of(spec, shape, max_length, target, counts, aligned_tokens)


def kept_tokens(spec: HSKSpec, tokens: Tokens, chosen: np.ndarray | None = None) -> int:
    """How many tokens ``spec`` keeps in a layer, over all examples in ``tokens``.

    Which examples are kept may depend on what the teacher says. Where that is not known yet, they are taken to be as
    long as the others: their number is exact, and that of their tokens the one to expect.

    Args:
        spec: what is kept.
        tokens: all training examples.
        chosen: the examples of which something is kept, ``(C,)``; None where that is not known.
    """
    counts = spec.length.counts(tokens)
    if chosen is None and spec.examples.needs_teacher:
        return round(int(counts.sum()) * spec.examples.count(len(counts)) / len(counts))
    if chosen is None:
        chosen = spec.examples.select(ExampleScores(tokens.example_ids))
    return int(counts[chosen].sum())


def amount_of(
    spec: HSKSpec,
    shape: Shape,
    max_length: int,
    target: ArraySpec,
    counts: Counts,
    aligned_tokens: int | None = None,
) -> HSKAmount:
    """:func:`measure` from counts over all examples.

    Raises:
        HskdError: the spec names a layer that the student or the teacher lacks.
    """
    kept = counts.kept * len(spec.layers(shape)) * spec.width.count(shape.teacher_width)
    per_token = len(spec.depth.mapping(shape.student_layers, shape.teacher_layers)) * shape.teacher_width
    arrays = derived_arrays(spec, shape, max_length, target, aligned_tokens is not None)
    stored_tokens = counts.tokens if aligned_tokens is None else aligned_tokens
    stored = total_bytes(arrays, counts.examples, stored_tokens, counts.kept) + codec_bytes(spec, shape)
    return HSKAmount(
        kept_values=kept,
        full_values=counts.tokens * per_token,
        fraction=kept / (counts.tokens * per_token),
        fraction_padded=kept / (counts.examples * max_length * per_token),
        bytes_per_example=stored / counts.examples,
    )
