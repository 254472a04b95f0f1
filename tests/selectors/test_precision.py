"""Precision: what storing a value does to it, and that ranking is done on what is stored."""

from __future__ import annotations

import pytest
import torch

from hskd.selectors import PRECISION
from hskd.selectors.width import Magnitude

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDOFF = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of a normal number: half a unit in the last place."""


def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(50, 64, generator=generator)
    return (drawn + 0.1 * drawn.sign()) * torch.logspace(-2, 3, 64)  # normal numbers in every type


def test_every_precision_is_tested() -> None:
    assert set(PRECISION) == set(DTYPES)


@pytest.mark.parametrize("name", DTYPES)
def test_round_trip(name: str) -> None:
    precision, original = PRECISION.parse({"selector": name}), values()
    arrays = precision.encode(original)
    assert {key: (array.dtype, array.shape[-1]) for key, array in arrays.items()} == precision.layout(64)
    assert precision.layout(64) == {"values": (DTYPES[name], 64)}
    decoded = precision.decode(arrays)
    assert decoded.dtype == torch.float32
    error = ((decoded - original).abs() / original.abs()).max().item()
    assert error <= ROUNDOFF[name]
    assert error > ROUNDOFF[name] / 4 or name == "fp32"
    assert torch.equal(precision.decode(precision.encode(decoded)), decoded)  # storing twice changes nothing more


@pytest.mark.parametrize("name", DTYPES)
def test_what_is_ranked_is_what_is_stored(name: str) -> None:
    precision = PRECISION.parse({"selector": name})
    assert torch.equal(precision.ranked(values()), precision.decode(precision.encode(values())))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_same_neurons_from_full_and_from_rounded_values(name: str) -> None:
    precision, width = PRECISION.parse({"selector": name}), Magnitude(w=0.25)
    generator = torch.Generator().manual_seed(1)
    exact = 1 + torch.randn(50, 64, generator=generator) * 2.0**-8  # many equal once rounded
    stored = exact.to(DTYPES[name])
    assert torch.equal(width.neurons(precision.ranked(exact)), width.neurons(precision.ranked(stored.float())))
    assert not torch.equal(width.neurons(exact), width.neurons(stored.float()))  # ranking before rounding differs
