"""Count how much HSK a spec keeps of a data set, without running a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hskd.selectors import ExampleScores, Tokens
from hskd.spec import HSKSpec, Shape
from hskd.store_format.layout import ArraySpec, codec_bytes, derived_arrays, total_bytes


class Counts(NamedTuple):
    """Counts over a data set: examples, real tokens, and tokens kept per layer."""

    examples: int
    tokens: int
    kept: int


@dataclass(frozen=True)
class HSKAmount:
    """The amount of HSK that a spec keeps of a data set.

    Attributes:
        kept_values: number of kept values in all examples.
        full_values: number of values in full HSK of the same mapping: every mapped layer, real token and neuron.
        fraction: ``kept_values / full_values``.
        fraction_padded: the fraction as the paper counts it: full HSK has every example padded to the maximum length.
        bytes_per_example: size of the derived store on disk per example, including targets, ids and the codec.
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
        tokens: the tokens with hidden states to learn from: all tokens, unless the teacher has another tokenizer.
        shape: sizes of teacher and student.
        max_length: number of tokens to which examples are truncated.
        target: the array of the teacher's outputs, ``task.head.target()``.
        aligned_tokens: number of all tokens, if the teacher has another tokenizer; otherwise None. Full HSK then
            covers only ``tokens``, and the store marks them.
        chosen: indices of the kept examples, if known; see :func:`kept_tokens`.

    Raises:
        HskdError: the spec names a layer that the student or the teacher lacks.
    """
    counts = Counts(len(tokens.lengths), len(tokens.input_ids), kept_tokens(spec, tokens, chosen))
    return amount_of(spec, shape, max_length, target, counts, aligned_tokens)


def kept_tokens(spec: HSKSpec, tokens: Tokens, chosen: np.ndarray | None = None) -> int:
    """Return the number of tokens that ``spec`` keeps per layer in all examples.

    The kept examples may depend on the teacher's outputs. If they are not known yet, they are assumed to have the
    average length: the number of examples is exact, and the number of tokens is the expected one.

    Args:
        spec: what is kept.
        tokens: all training examples.
        chosen: indices of the kept examples, ``(C,)``; None if they are not known.
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
    """Return the same as :func:`measure`, given counts over all examples.

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
