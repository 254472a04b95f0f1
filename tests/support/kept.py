"""Exact comparison of kept HSK, and of a store on a device with the store itself."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch

from hskd.knowledge import KeptHSK, Members
from hskd.selectors.width import Basis
from hskd.store.on_device import PlacedStore
from hskd.store.reader import Store

CPU = torch.device("cpu")


def same(one: KeptHSK, other: KeptHSK) -> bool:
    """Return whether all fields are equal, to the bit and in type."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, Basis):
            return torch.equal(a.directions, b.directions) and torch.equal(a.origin, b.origin)
        if isinstance(a, Members):
            return torch.equal(a.kept, b.kept) and torch.equal(a.position, b.position)
        return bool(a == b)

    return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(KeptHSK))


def require_same_on_device(store: Store) -> None:
    """Check that a store placed on the CPU gives the same bits as the store itself, batch by batch."""
    placed, rows, drawn = PlacedStore(store, CPU), store.rows_with_hsk, np.random.default_rng(0)
    # Batches have other orders than the store, and repetitions.
    for batch in [*(drawn.choice(rows, size) for size in (1, 7, 32)), rows, rows[::-1].copy()]:
        assert same(placed.kept(batch), store.kept(batch))
        one, other = placed.targets(batch), store.targets(batch)
        assert one.dtype == other.dtype and torch.equal(one, other)
