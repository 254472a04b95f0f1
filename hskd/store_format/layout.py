"""What a store looks like on disk: which arrays, of which type, in how many shards.

A store is a folder with a ``manifest.json`` and shards. A shard is one safetensors file that holds a run of
consecutive examples. Arrays are flat: one row per example, per real token, or per kept token; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from hskd.errors import HskdError

# Heads name their arrays by this module, and the command line names heads before it runs anything.
if TYPE_CHECKING:
    import numpy as np
    import torch

    from hskd.selectors import PrecisionSelector
    from hskd.spec import HSKSpec, Shape

MANIFEST = "manifest.json"
CODEC = "codec.safetensors"
"""What a derived store holds once, for all its examples (see :func:`codec_bytes`)."""
SHARD_BYTES = 128 * 2**20


class ArraySpec(NamedTuple):
    """One array of a store: what its rows stand for, its type, and the elements of a row."""

    per: Literal["example", "token", "kept"]
    dtype: torch.dtype
    elements: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * self.elements


TARGET = "target"
"""The array that holds the teacher's rows, as the head of the task says (see :meth:`hskd.heads.Head.target`)."""

WORD_STARTS = "word_starts"
"""The array that is 1 where a token begins a word; in stores whose target has a row for each token."""

HAS_TARGET = "has_target"
"""The array that is 1 where a token has hidden states to learn from; in stores of another tokenizer's tokens than the
teacher's."""

GOLD_LOSS = "gold_loss"
"""The array of a superset that holds the loss of each example's gold label under the teacher."""

ADDRESSES = ("example_ids", "lengths", "counts", "token_ids", WORD_STARTS, HAS_TARGET)
"""The arrays of one number a row, which are stored without a second dimension."""


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
    """The arrays of a superset: every real token at full width, and the attention that ``[CLS]`` pays it, in fp32."""
    import torch

    arrays = _common(target, max_length, vocab_size)
    for name, (dtype, elements) in precision.layout(width).items():
        arrays[name] = ArraySpec("kept", dtype, layers * elements)
    if attention_layers:
        arrays["attention"] = ArraySpec("token", torch.float32, attention_layers)
    return arrays


def with_scores(arrays: dict[str, ArraySpec], gradients: int, received: int, gold_losses: bool) -> dict[str, ArraySpec]:
    """The arrays of a superset that holds further scores, too, in fp32.

    Args:
        arrays: those of :func:`superset_arrays`.
        gradients: layers whose gradient is held, one number a token.
        received: attention layers of which it is held how much each token receives, one number a token.
        gold_losses: whether the loss of each example's gold label is held.
    """
    import torch

    scores = {"gradient": gradients, "received": received}
    arrays = arrays | {name: ArraySpec("token", torch.float32, layers) for name, layers in scores.items() if layers}
    return arrays | ({GOLD_LOSS: ArraySpec("example", torch.float32, 1)} if gold_losses else {})


def with_alignment(arrays: dict[str, ArraySpec], max_length: int) -> dict[str, ArraySpec]:
    """The arrays of a store whose tokens are those of another tokenizer than the teacher's.

    It says which tokens have something to learn from, and holds nothing of the others.
    """
    import torch

    return {
        **{name: array._replace(per="kept") if name in _SCORES else array for name, array in arrays.items()},
        HAS_TARGET: ArraySpec("token", torch.uint8, 1),
        "counts": ArraySpec("example", _small(max_length), 1),
    }


_SCORES = ("attention", "gradient", "received")
"""Arrays of numbers that tokens are ranked by."""


def derived_arrays(
    spec: HSKSpec, shape: Shape, max_length: int, target: ArraySpec, aligned: bool = False
) -> dict[str, ArraySpec]:
    """The arrays of one spec's store; ``aligned`` where it is cut from one :func:`with_alignment`."""
    arrays = _common(target, max_length, shape.vocab_size)
    if not (spec.length.keeps_all and spec.examples.keeps_all):
        arrays["counts"] = ArraySpec("example", _small(max_length), 1)
    for name, (dtype, elements) in kept_arrays(spec, shape, max_length).items():
        arrays[name] = ArraySpec("kept", dtype, elements)
    return with_alignment(arrays, max_length) if aligned else arrays


def kept_arrays(spec: HSKSpec, shape: Shape, max_length: int) -> dict[str, tuple[torch.dtype, int]]:
    """What a store of ``spec`` holds for each kept token: name -> (dtype, elements over all kept layers).

    Neurons that differ from token to token take the smaller of a bit mask (``d`` bits) and 16-bit indices;
    positions take a byte where no example has more than 256 tokens.
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
    """Bytes of what a store of ``spec`` holds once: the directions or codebooks of its width selector."""
    layout = spec.width.codec_layout(spec.precision, shape.teacher_width)
    return len(spec.layers(shape)) * sum(dtype.itemsize * prod(sizes) for dtype, sizes in layout.values())


def total_bytes(arrays: Mapping[str, ArraySpec], examples: int, tokens: int, kept: int) -> int:
    """Bytes of a store's arrays for so many examples, real tokens and kept tokens."""
    rows = {"example": examples, "token": tokens, "kept": kept}
    return sum(array.row_bytes * rows[array.per] for array in arrays.values())


def plan_shards(
    arrays: Mapping[str, ArraySpec], lengths: np.ndarray, counts: np.ndarray, shard_bytes: int = SHARD_BYTES
) -> list[range]:
    """Cut the examples into runs of about ``shard_bytes``; a pure function of the sizes, so a resumed run agrees.

    Args:
        arrays: the arrays of the store.
        lengths: real tokens of each example, ``(N,)``.
        counts: kept tokens of each example, ``(N,)``.
        shard_bytes: size at which a shard is cut.
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
    """Which example of a shard the row ``row`` of ``array`` belongs to."""
    if array.per == "example":
        return row
    sizes = shard["counts"] if array.per == "kept" and "counts" in shard else shard["lengths"]
    return int((sizes.long().cumsum(0) <= row).sum())


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


def ragged_rows(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The rows of runs, end to end: ``starts[i], ..., starts[i] + sizes[i] - 1`` for each ``i``, ``(sizes.sum(),)``."""
    import numpy as np

    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)
