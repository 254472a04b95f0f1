"""The layout of a store on disk: its arrays, their types, and how examples are cut into shards.

A store is a folder with a ``manifest.json`` and shards. A shard is one safetensors file that holds consecutive
examples. Arrays are flat, without padding: they have one row per example, per real token, or per kept token.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from hskd.errors import HskdError

# Heads import this module, and the command line imports heads at start-up, which must not import torch.
if TYPE_CHECKING:
    import numpy as np
    import torch

    from hskd.selectors import PrecisionSelector
    from hskd.spec import HSKSpec, Shape

MANIFEST = "manifest.json"
CODEC = "codec.safetensors"
"""The file of a derived store that holds its codec, once for all examples (see :func:`codec_bytes`)."""
SHARD_BYTES = 128 * 2**20


class ArraySpec(NamedTuple):
    """One array of a store: the meaning of a row, the data type, and the elements per row."""

    per: Literal["example", "token", "kept"]
    dtype: torch.dtype
    elements: int

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.dtype.itemsize * self.elements


TARGET = "target"
"""The array of the teacher's outputs. The head of the task defines its rows (see :meth:`hskd.heads.Head.target`)."""

WORD_STARTS = "word_starts"
"""The array that is 1 where a token begins a word. Only stores whose target has a row per token have it."""

HAS_TARGET = "has_target"
"""The array that is 1 where a token has hidden states to learn from. Only stores whose tokens come from another
tokenizer than the teacher's have it."""

GOLD_LOSS = "gold_loss"
"""The array of a superset with the teacher's loss on each example's gold label."""

ADDRESSES = ("example_ids", "lengths", "counts", "token_ids", WORD_STARTS, HAS_TARGET)
"""The arrays with one number per row. They are stored without a second dimension."""


def _common(target: ArraySpec, max_length: int, vocab_size: int) -> dict[str, ArraySpec]:
    import torch

    words = {WORD_STARTS: ArraySpec("token", torch.uint8, 1)} if target.per == "token" else {}
    return {
        "example_ids": ArraySpec("example", torch.int64, 1),
        "lengths": ArraySpec("example", _small(max_length), 1),
        TARGET: target,
        "token_ids": ArraySpec("token", torch.uint16 if vocab_size <= 2**16 else torch.int32, 1),
        **words,
    }


def _small(largest: int) -> torch.dtype:
    import torch

    if largest >= 2**16:
        raise HskdError(f"a store counts tokens in 16 bits: an example may have {2**16 - 1:,}, not {largest:,}.")
    return torch.uint8 if largest < 2**8 else torch.uint16


def superset_arrays(
    layers: int,
    attention_layers: int,
    width: int,
    target: ArraySpec,
    precision: PrecisionSelector,
    max_length: int,
    vocab_size: int,
) -> dict[str, ArraySpec]:
    """Return the arrays of a superset, by name.

    They hold every real token at full width, and in fp32 the attention that ``[CLS]`` pays each token.

    Args:
        layers: number of teacher layers held.
        attention_layers: number of attention layers held.
        width: ``d_T``.
        target: the array of the teacher's outputs.
        precision: how hidden states are stored.
        max_length: maximum tokens of an example.
        vocab_size: size of the tokenizer's vocabulary.

    Raises:
        HskdError: ``max_length`` does not fit in 16 bits.
    """
    import torch

    arrays = _common(target, max_length, vocab_size)
    for name, (dtype, elements) in precision.layout(width).items():
        arrays[name] = ArraySpec("kept", dtype, layers * elements)
    if attention_layers:
        arrays["attention"] = ArraySpec("token", torch.float32, attention_layers)
    return arrays


def with_scores(arrays: dict[str, ArraySpec], gradients: int, received: int, gold_losses: bool) -> dict[str, ArraySpec]:
    """Return ``arrays`` with the further scores that a superset may hold, in fp32.

    Args:
        arrays: the result of :func:`superset_arrays`.
        gradients: number of layers with a gradient score per token.
        received: number of attention layers with a score of the attention that each token receives.
        gold_losses: whether the superset holds the teacher's loss on each example's gold label.
    """
    import torch

    scores = {"gradient": gradients, "received": received}
    arrays = arrays | {name: ArraySpec("token", torch.float32, layers) for name, layers in scores.items() if layers}
    return arrays | ({GOLD_LOSS: ArraySpec("example", torch.float32, 1)} if gold_losses else {})


def with_alignment(arrays: dict[str, ArraySpec], max_length: int) -> dict[str, ArraySpec]:
    """Return the arrays of a store whose tokens come from another tokenizer than the teacher's.

    Such a store marks the tokens that have hidden states to learn from, and holds none for the others.
    """
    import torch

    return {
        **{name: array._replace(per="kept") if name in _SCORES else array for name, array in arrays.items()},
        HAS_TARGET: ArraySpec("token", torch.uint8, 1),
        "counts": ArraySpec("example", _small(max_length), 1),
    }


_SCORES = ("attention", "gradient", "received")
"""The arrays of the scores by which tokens are ranked."""


def derived_arrays(
    spec: HSKSpec, shape: Shape, max_length: int, target: ArraySpec, aligned: bool = False
) -> dict[str, ArraySpec]:
    """Return the arrays of a derived store, by name.

    Args:
        spec: what the store keeps.
        shape: sizes of teacher and student.
        max_length: maximum tokens of an example.
        target: the array of the teacher's outputs.
        aligned: whether the superset's arrays are those of :func:`with_alignment`.

    Raises:
        HskdError: ``max_length`` does not fit in 16 bits, or the spec names a layer that student or teacher lacks.
    """
    arrays = _common(target, max_length, shape.vocab_size)
    if not (spec.length.keeps_all and spec.examples.keeps_all):
        arrays["counts"] = ArraySpec("example", _small(max_length), 1)
    for name, (dtype, elements) in kept_arrays(spec, shape, max_length).items():
        arrays[name] = ArraySpec("kept", dtype, elements)
    return with_alignment(arrays, max_length) if aligned else arrays


def kept_arrays(spec: HSKSpec, shape: Shape, max_length: int) -> dict[str, tuple[torch.dtype, int]]:
    """Return the arrays with one row per kept token: name -> (dtype, elements over all kept layers).

    Neurons that differ between tokens are stored as a bit mask (``d_T`` bits) or as 16-bit indices, whichever is
    smaller. Positions take one byte if no example has more than 256 tokens, and two bytes otherwise.
    """
    import torch

    layers = len(spec.layers(shape))
    count = spec.width.count(shape.teacher_width)
    kept = spec.width.layout(spec.precision, shape.teacher_width)
    arrays = {name: (dtype, layers * elements) for name, (dtype, elements) in kept.items()}
    if spec.length.stores_positions:
        arrays["positions"] = (torch.uint8 if max_length <= 256 else torch.uint16, layers)
    if spec.width.fixed(shape.teacher_width) is None:
        mask_bytes = -(-shape.teacher_width // 8)
        as_mask = mask_bytes <= 2 * count
        arrays["neurons"] = (torch.uint8, layers * mask_bytes) if as_mask else (torch.uint16, layers * count)
    return arrays


def codec_bytes(spec: HSKSpec, shape: Shape) -> int:
    """Return the bytes of a store's codec: the directions or codebooks of its width selector, stored once."""
    layout = spec.width.codec_layout(spec.precision, shape.teacher_width)
    return len(spec.layers(shape)) * sum(dtype.itemsize * prod(sizes) for dtype, sizes in layout.values())


def total_bytes(arrays: Mapping[str, ArraySpec], examples: int, tokens: int, kept: int) -> int:
    """Return the bytes of a store's arrays for these numbers of examples, real tokens and kept tokens."""
    rows = {"example": examples, "token": tokens, "kept": kept}
    return sum(array.row_bytes * rows[array.per] for array in arrays.values())


def plan_shards(
    arrays: Mapping[str, ArraySpec], lengths: np.ndarray, counts: np.ndarray, shard_bytes: int = SHARD_BYTES
) -> list[range]:
    """Return the range of examples of each shard, so that shards have about ``shard_bytes``.

    The result depends only on the arguments, so a resumed run cuts the same shards.

    Args:
        arrays: the arrays of the store.
        lengths: real tokens of each example, ``(N,)``.
        counts: kept tokens of each example, ``(N,)``.
        shard_bytes: size of a shard in bytes.
    """
    import numpy as np

    per = {
        kind: sum(array.row_bytes for array in arrays.values() if array.per == kind)
        for kind in ("example", "token", "kept")
    }
    sizes = per["example"] + per["token"] * lengths.astype(np.int64) + per["kept"] * counts.astype(np.int64)
    shard = (np.cumsum(sizes) - sizes) // shard_bytes
    starts = np.flatnonzero(np.diff(shard, prepend=-1))
    return [range(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def example_of_row(array: ArraySpec, row: int, shard: Mapping[str, torch.Tensor]) -> int:
    """Return the index, within its shard, of the example that row ``row`` of ``array`` belongs to."""
    if array.per == "example":
        return row
    sizes = shard["counts"] if array.per == "kept" and "counts" in shard else shard["lengths"]
    return int((sizes.long().cumsum(0) <= row).sum())


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.safetensors"


def ragged_rows(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the row indices of consecutive runs, ``(sizes.sum(),)``.

    Run ``i`` is ``starts[i], ..., starts[i] + sizes[i] - 1``.
    """
    import numpy as np

    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)
