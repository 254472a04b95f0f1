"""A store on the training device: its arrays are placed there once, and a batch is gathered there by indexing."""

from __future__ import annotations

import numpy as np
import torch

from hskd.errors import HskdError
from hskd.io import format_bytes
from hskd.knowledge import KeptHSK, Members
from hskd.progress import Progress
from hskd.runtime import RunOptions, StoreOnDevice, free_memory, release_memory
from hskd.store.decode import Decoder, StoredHSK
from hskd.store.reader import Store, indexable
from hskd.store_format.layout import TARGET

SHARE = 0.5
"""Largest share of a GPU's free memory that ``auto`` takes for a store. The rest is for training."""


class PlacedStore:
    """The hidden states and targets of a store, as tensors on a device.

    :meth:`kept` and :meth:`targets` return what the methods of the same names of :class:`Store` return, on the device.
    Only the numbers of the rows are sent there. The sizes of all results are computed on the CPU, so that no batch
    waits for a GPU.

    Args:
        store: a derived store. A superset serves only the targets.
        device: where the tensors are placed.

    Raises:
        CorruptionError: a shard of the store is damaged.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._arrays = {name: store.placed(name, device) for name in _names(store)}
        every = np.arange(len(store))
        starts = store.word_starts(every)
        self._target_runs = _Runs(np.ones(len(store), np.int64), device)
        self._words: torch.Tensor | None = None
        if starts is not None:
            self._words = torch.from_numpy(np.flatnonzero(starts)).to(device)
            self._target_runs = _Runs(_sums(starts, store.lengths), device)
        if store.manifest.kind == "derived":
            self._decoder = Decoder(store.manifest, store.codec, device)
            self._runs = _Runs(store.counts, device)
            self._members: Members | None = None
            positions, members = store.implied_positions(store.rows_with_hsk), store.members(store.rows_with_hsk)
            if positions is not None:
                self._arrays["positions"] = positions.to(device)
            if members is not None:
                first = np.cumsum(store.counts) - store.counts
                example = np.repeat(every, store.counts)[members.kept.numpy()]
                self._member_runs = _Runs(np.bincount(example, minlength=len(store)), device)
                self._members = Members(
                    members.kept.sub(torch.from_numpy(first[example])).to(device), members.position.to(device)
                )

    def kept(self, rows: np.ndarray) -> KeptHSK:
        """Return the kept knowledge of the examples in ``rows`` ``(B,)``, in their order (see :meth:`Store.kept`)."""
        self._store.require_kept(rows)
        at = self._sent(rows)
        index, counts = self._runs.of(rows, at)
        arrays = {name: _taken(array, index) for name, array in self._arrays.items() if name != TARGET}
        most = self._runs.most(rows)
        members = None
        if self._members is not None:
            taken, sizes = self._member_runs.of(rows, at)
            first = torch.repeat_interleave(counts.cumsum(0) - counts, sizes, output_size=len(taken))
            members = Members(self._members.kept[taken] + first, self._members.position[taken])
        return self._decoder.kept(StoredHSK(counts, most, arrays, members))

    def kept_in_shape(self, at: torch.Tensor, most: int, averaged: int = 0) -> KeptHSK:
        """Return the same as :meth:`kept` in tensors whose shapes depend only on the arguments' shapes and values.

        Nothing is read from the device, so the computation can be captured as a CUDA graph.

        Args:
            at: the examples' rows on the device, ``(B,)``. They must have hidden states.
            most: rows of each example in the result, at least as many as it has kept tokens.
            averaged: rows of each example among the members, at least as many as it has; 0 if there are no members.
        """
        index, real, counts = self._runs.padded(at, most)
        arrays = {name: _taken(array, index) for name, array in self._arrays.items() if name != TARGET}
        members = None
        if self._members is not None:
            taken, is_member, _ = self._member_runs.padded(at, averaged)
            first = torch.arange(len(at), device=at.device).repeat_interleave(averaged) * most
            members = Members(
                torch.where(is_member, self._members.kept[taken] + first, len(index)),
                torch.where(is_member, self._members.position[taken], 0),
            )
        return self._decoder.kept(StoredHSK(counts, most, arrays, members, real))

    def most(self, rows: np.ndarray) -> int:
        """Return the largest number of kept tokens of one of the examples ``rows``."""
        return self._runs.most(rows)

    def averaged(self, rows: np.ndarray) -> int:
        """Return the largest number of tokens that are averaged into the kept tokens of one of the examples."""
        return 0 if self._members is None else self._member_runs.most(rows)

    def targets_in_shape(self, at: torch.Tensor) -> torch.Tensor:
        """Return the teacher's outputs ``(B, C)`` for the examples in the rows ``at``, as :meth:`kept_in_shape`.

        Raises:
            HskdError: the teacher's outputs are per word, so their number differs from batch to batch.
        """
        if self._words is not None:
            raise HskdError(f"{self._store.folder}: outputs per word cannot be gathered in a fixed shape.")
        return _taken(self._arrays[TARGET], at)

    def targets(self, rows: np.ndarray) -> torch.Tensor:
        """Return the teacher's outputs ``(R, C)`` for the examples in ``rows`` (see :meth:`Store.targets`)."""
        index, _ = self._target_runs.of(rows, self._sent(rows))
        return _taken(self._arrays[TARGET], index if self._words is None else self._words[index])

    def _sent(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self._device, non_blocking=True)


class _Runs:
    """The consecutive rows that each of ``N`` examples has in an array.

    Args:
        sizes: the number of rows of each example, ``(N,)`` int64.
        device: where the array lies.
    """

    def __init__(self, sizes: np.ndarray, device: torch.device) -> None:
        self._known = sizes
        self._sizes = torch.from_numpy(sizes).to(device)
        self._starts = self._sizes.cumsum(0) - self._sizes

    def of(self, rows: np.ndarray, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of the array that belong to some examples, concatenated, and their number for each example.

        Args:
            rows: the examples, ``(B,)``.
            at: the same numbers on the device.
        """
        sizes, total = self._sizes[at], int(self._known[rows].sum())
        shift = self._starts[at] - (sizes.cumsum(0) - sizes)
        index = torch.arange(total, device=at.device)
        return index + torch.repeat_interleave(shift, sizes, output_size=total), sizes

    def padded(self, at: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ``most`` rows of the array for each example, which of them belong to it, and their number.

        The first two are ``(B * most,)``. A row that belongs to no example is 0.
        """
        sizes, place = self._sizes[at], torch.arange(most, device=at.device)
        real = place < sizes[:, None]
        index = torch.where(real, self._starts[at][:, None] + place, 0)
        return index.flatten(), real.flatten(), sizes

    def most(self, rows: np.ndarray) -> int:
        """Return the largest number of rows of one of the examples ``rows``."""
        return int(self._known[rows].max(initial=0))


def _taken(array: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return indexable(array)[index].view(array.dtype)


def _sums(flags: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return how many of the ``flags`` of each example are True, ``(N,)``."""
    return np.bincount(np.repeat(np.arange(len(sizes)), sizes)[flags], minlength=len(sizes))


def _names(store: Store) -> list[str]:
    """Return the names of the arrays that training reads."""
    return [*(store.kept_arrays if store.manifest.kind == "derived" else ()), TARGET]


def placed_bytes(store: Store) -> int:
    """Return about how many bytes a store takes on a device: its arrays, its codec, and row numbers in int64."""
    rows = {"example": len(store), "token": int(store.lengths.sum()), "kept": int(store.counts.sum())}
    arrays = store.manifest.arrays
    stored = sum(arrays[name].row_bytes * rows[arrays[name].per] for name in _names(store))
    # The codec is decoded to fp32. Sizes and starts are kept for up to three kinds of rows.
    codec = sum(4 * array.numel() for array in store.codec.values())
    words = 8 * rows["token"] * (store.manifest.target.per == "token")
    return stored + codec + words + 16 * rows["token"] * store.averages + 48 * rows["example"]


def device_for(store: Store, options: RunOptions, progress: Progress) -> torch.device | None:
    """Return the device to place a store on, or None to read it from disk, and say which in one line.

    Raises:
        HskdError: the store has to be placed (``always``), and there is no room for it.
    """
    if options.store_on_device == "never":
        return None
    if options.device.type == "cuda":
        release_memory()  # An earlier trial's store may still be waiting for the garbage collector.
    free, needed = free_memory(options.device), placed_bytes(store)
    placed = is_placed(options.store_on_device, needed, free, str(options.device))
    if placed or options.device.type == "cuda":
        of = "" if free is None else f", of {format_bytes(free)} free there"
        where = (
            f"is placed on {options.device}"
            if placed
            else f"is read from disk, because it is too large for {options.device}"
        )
        progress.say(f"{store.folder}: {where} ({format_bytes(needed)}{of})")
    return options.device if placed else None


def is_placed(choice: StoreOnDevice, needed: int, free: int | None, device: str) -> bool:
    """Return whether a store is placed on a device.

    Args:
        choice: see :class:`~hskd.runtime.RunOptions`.
        needed: bytes of the store.
        free: free bytes of the device; None if it is no CUDA device, on which ``auto`` places nothing.
        device: name of the device, for the message.

    Raises:
        HskdError: ``choice`` is ``always``, and there is no room.
    """
    if choice == "always" and free is not None and needed > free:
        raise HskdError(
            f"--store-on-device always: the store takes {format_bytes(needed)}, and {device} has {format_bytes(free)} "
            "free; use auto or never, or keep less HSK (--spec)."
        )
    return choice == "always" or (choice == "auto" and free is not None and needed <= SHARE * free)
