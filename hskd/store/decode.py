"""From the arrays of a derived store to kept HSK, on the device where the arrays lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hskd.knowledge import KeptHSK, Members
from hskd.selectors.width import Basis, Codec
from hskd.spec import HSKSpec
from hskd.store_format.manifest import Manifest


@dataclass(frozen=True, eq=False)
class StoredHSK:
    """The HSK of ``B`` examples as a derived store holds it: ``K`` kept tokens in total.

    Attributes:
        counts: number of kept tokens of each example, ``(B,)`` int64.
        most: the largest of ``counts``, a CPU number.
        arrays: the store's arrays with a row per kept token, by name, ``(K, elements)`` each. ``positions`` is missing
            if the positions of each example count from 0; otherwise it has one column, or one per layer.
        members: the tokens that are averaged into each kept token; None if kept tokens are not averages.
        real: which rows are kept tokens, if each example has ``most`` rows (see :class:`~hskd.knowledge.KeptHSK`).
    """

    counts: torch.Tensor
    most: int
    arrays: Mapping[str, torch.Tensor]
    members: Members | None = None
    real: torch.Tensor | None = None


class Decoder:
    """Decodes the arrays of a derived store.

    Args:
        manifest: the store's manifest.
        codec: the codec of its width selector; empty for selectors that learn nothing.
        device: where the arrays to decode lie.
    """

    def __init__(self, manifest: Manifest, codec: Codec, device: torch.device) -> None:
        self._manifest = manifest
        self._spec = HSKSpec.parse(manifest.spec or {})
        self._codec = codec
        self._device = device

    def kept(self, stored: StoredHSK) -> KeptHSK:
        """Return the kept HSK that ``stored`` holds."""
        arrays, counts = stored.arrays, stored.counts
        values = self._values(arrays)
        if "positions" in arrays:
            positions = whole_numbers(arrays["positions"])
        elif stored.real is not None:
            positions = torch.arange(stored.most, device=self._device).repeat(len(counts))[:, None]
        else:
            first = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=len(values))
            positions = (torch.arange(len(values), device=self._device) - first)[:, None]
        if stored.real is not None:
            positions = positions * stored.real[:, None]  # A pad reads its example's first token.
        return KeptHSK(
            self._manifest.layers,
            counts,
            positions.expand(-1, len(self._manifest.layers)),
            values,
            self._neurons(arrays, values.shape[2]),
            most=stored.most,
            basis=self._basis,
            members=stored.members,
            real=stored.real,
        )

    def _values(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        width, precision = self._spec.width, self._spec.precision
        teacher_width = self._manifest.teacher_width
        names = width.layout(precision, teacher_width)
        return width.decode(
            {name: self._by_layer(arrays[name]) for name in names}, precision, self._prepared, teacher_width
        )

    def _neurons(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor | None:
        if "neurons" not in arrays:
            return self._fixed_neurons
        return unpack_neurons(self._by_layer(arrays["neurons"]), self._manifest.teacher_width, count)

    def _by_layer(self, array: torch.Tensor) -> torch.Tensor:
        return array.unflatten(1, (len(self._manifest.layers), -1))

    @cached_property
    def _fixed_neurons(self) -> torch.Tensor | None:
        neurons = self._manifest.fixed_neurons
        return None if neurons is None else torch.tensor(neurons, device=self._device)

    @cached_property
    def _prepared(self) -> Codec:
        prepared = self._spec.width.prepared(self._codec, self._manifest.teacher_width)
        return {name: array.to(self._device) for name, array in prepared.items()}

    @cached_property
    def _basis(self) -> Basis | None:
        basis = self._spec.width.basis(self._codec, len(self._manifest.layers), self._manifest.teacher_width)
        if basis is None:
            return None
        # Worker processes send the basis with every batch. In shared memory, this needs no copy.
        shared = (array.contiguous().share_memory_() for array in (basis.directions, basis.origin))
        return Basis(*(array.to(self._device) for array in shared))


def whole_numbers(stored: torch.Tensor) -> torch.Tensor:
    """Return stored unsigned integers as int64."""
    if stored.dtype == torch.uint16:  # GPUs compute little in uint16. A view as int16 has the same bits.
        return stored.view(torch.int16).long() & 0xFFFF
    return stored.long()


def pack_neurons(neurons: torch.Tensor, width: int, as_mask: bool) -> torch.Tensor:
    """Return neuron indices ``(K, n, k)`` packed as ``(K, n * bytes)`` bit masks or ``(K, n * k)`` 16-bit indices."""
    if not as_mask:
        return neurons.flatten(1).to(torch.uint16)
    mask = torch.zeros((*neurons.shape[:2], width), dtype=torch.bool).scatter_(2, neurons, True)
    return torch.from_numpy(np.packbits(mask.numpy(), axis=2)).flatten(1)


def unpack_neurons(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """Return the indices ``(K, n, count)`` int64 that :func:`pack_neurons` packed, given as ``(K, n, ...)``."""
    if packed.dtype == torch.uint16:
        return whole_numbers(packed)
    if packed.device.type != "cpu":
        return set_bits(packed, width, count)
    bits = np.unpackbits(packed.numpy(), axis=2, count=width).view(bool)
    # In numpy, one flat index minus the start of each mask is faster than one index per dimension.
    neurons = np.flatnonzero(bits).reshape(*bits.shape[:2], count)
    neurons -= np.arange(0, bits.size, width).reshape(*bits.shape[:2], 1)
    return torch.from_numpy(neurons)


def set_bits(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """Return the indices ``(K, n, count)`` int64 of the bits that are 1 in masks ``(K, n, bytes)``, ascending.

    Each mask has ``width`` bits, of which ``count`` are 1. Because the count is given, a GPU need not be waited for.
    """
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed[..., None] >> shifts & 1).flatten(2)[..., :width]
    # The bits that are 0 go to a further place, which is cut off.
    place = torch.where(bits.bool(), bits.cumsum(2) - 1, count)
    neurons = place.new_empty((*bits.shape[:2], count + 1))
    neurons.scatter_(2, place, torch.arange(width, device=packed.device).expand(bits.shape))
    return neurons[..., :count]
