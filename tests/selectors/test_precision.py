"""Precision: the effect of storing a value, and ranking by stored values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hskd.selectors import PRECISION, LayerView, Tokens
from hskd.selectors.width import Magnitude
from hskd.store.writer import misfit

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDOFF = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of a normal number: half a unit in the last place."""

STEPS = {"int8": 127, "int4": 7}
"""Steps from 0 to the largest value of a token."""


def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(50, 64, generator=generator)
    return (drawn + 0.1 * drawn.sign()) * torch.logspace(-2, 3, 64)  # normal numbers in every type


def test_every_precision_is_tested() -> None:
    assert set(PRECISION) == {*DTYPES, *STEPS, "int2"}


@pytest.mark.parametrize("name", DTYPES)
def test_round_trip(name: str) -> None:
    precision, original = PRECISION.parse({"selector": name}), values()
    arrays = precision.encode(original)
    assert {key: (array.dtype, array.shape[-1]) for key, array in arrays.items()} == precision.layout(64)
    assert precision.layout(64) == {"values": (DTYPES[name], 64)}
    decoded = precision.decode(arrays, original.shape[-1])
    assert decoded.dtype == torch.float32
    error = ((decoded - original).abs() / original.abs()).max().item()
    assert error <= ROUNDOFF[name]
    assert error > ROUNDOFF[name] / 4 or name == "fp32"
    assert torch.equal(precision.decode(precision.encode(decoded), 64), decoded)  # storing twice changes nothing more


@pytest.mark.parametrize("name", DTYPES)
def test_what_is_ranked_is_what_is_stored(name: str) -> None:
    precision = PRECISION.parse({"selector": name})
    assert torch.equal(precision.ranked(values()), precision.decode(precision.encode(values()), 64))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_same_neurons_from_full_and_from_rounded_values(name: str) -> None:
    precision, width = PRECISION.parse({"selector": name}), Magnitude(w=0.25)
    generator = torch.Generator().manual_seed(1)
    exact = 1 + torch.randn(50, 64, generator=generator) * 2.0**-8  # many values are equal after rounding
    stored = exact.to(DTYPES[name])
    tokens = Tokens(np.array([0]), np.array([0, 50]), np.arange(50), sep_id=-1)

    def picked(states: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return width.neurons(LayerView(tokens, 1, states, rounding=rounding))

    assert torch.equal(picked(exact, precision.ranked), picked(stored.float(), precision.ranked))
    # Ranking before rounding would differ.
    assert not torch.equal(picked(exact, torch.Tensor.float), picked(stored.float(), torch.Tensor.float))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_quantiser_is_wrong_by_half_a_step_at_most(name: str, count: int) -> None:
    precision, original = PRECISION.parse({"selector": name}), values()[:, :count].reshape(5, 10, count)
    arrays = precision.encode(original)
    assert {key: (array.dtype, array.shape[-1]) for key, array in arrays.items()} == precision.layout(count)
    decoded = precision.decode(arrays, original.shape[-1])
    assert decoded.shape == original.shape and decoded.dtype == torch.float32
    step = original.abs().amax(-1, keepdim=True) / STEPS[name]
    error = ((decoded - original).abs() / step).max().item()
    assert error <= 0.5 + STEPS[name] * 2.0**-11  # plus the rounding of the scale in fp16
    assert error > 0.25 or count == 1


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(PRECISION)),
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    exponent=st.integers(-140, 120),
)
def test_what_is_read_back_is_as_precise_as_said_or_is_no_number(name: str, values: list[float], exponent: int) -> None:
    """Over the range of fp32, decoding has the stated precision or gives a non-finite number, visible in an array."""
    precision = PRECISION.parse({"selector": name})
    original = (torch.tensor([values], dtype=torch.float64) * 2.0**exponent).float()
    arrays = precision.encode(original)
    decoded = precision.decode(arrays, len(values))
    fits = misfit(arrays) is None
    assert fits == bool(decoded.isfinite().all())
    if not fits:
        assert name != "fp32" or not original.isfinite().all()
        return
    if name == "int2":  # its step follows the spread of the values, and outliers are clipped
        return
    largest = original.abs().max().double().item()
    if name in STEPS:
        scale = largest / STEPS[name]
        rounding = max(scale * 2.0**-11, 2.0**-25)  # rounding of the scale to fp16
        allowed = 0.5 * (scale + rounding) + STEPS[name] * rounding
    else:
        smallest = {"fp32": 0.0, "fp16": 2.0**-25, "bf16": 2.0**-134}[name]
        allowed = max(largest * ROUNDOFF[name], smallest)
    assert (decoded.double() - original.double()).abs().max().item() <= allowed * (1 + 1e-6)


@pytest.mark.parametrize(("name", "largest"), [("int4", 7 * 65_504.0), ("int8", 127 * 65_504.0), ("fp16", 65_504.0)])
def test_the_largest_value_that_fits(name: str, largest: float) -> None:
    precision = PRECISION.parse({"selector": name})
    fitting = precision.encode(torch.tensor([[largest, 1.0]]))
    assert misfit(fitting) is None and precision.decode(fitting, 2)[0, 0] == largest
    assert misfit(precision.encode(torch.tensor([[1.0, 1.0], [1.0, -1.01 * largest]]))) == (
        "scale" if name in STEPS else "values",
        1,
    )


def test_four_bits_take_half_a_byte() -> None:
    arrays = PRECISION.parse({"selector": "int4"}).encode(torch.tensor([[7.0, -7.0, 1.0]]))
    assert arrays["values"].tolist() == [[15 | 1 << 4, 9]]
    assert PRECISION.parse({"selector": "int4"}).decode(arrays, 3).tolist() == [[7.0, -7.0, 1.0]]


def test_two_bits_take_a_quarter_of_a_byte() -> None:
    precision = PRECISION.parse({"selector": "int2"})
    original = torch.tensor([[3.0, -1.0, 1.0, -3.0, 3.0]])
    arrays = precision.encode(original)
    assert {key: (array.dtype, array.shape[-1]) for key, array in arrays.items()} == precision.layout(5)
    assert arrays["values"].tolist() == [[3 | 1 << 2 | 2 << 4 | 0 << 6, 3]]
    assert arrays["scale"].tolist() == [[2.0]]
    assert torch.equal(precision.decode(arrays, 5), original)
    alone = torch.tensor([[-7.5], [0.375]])
    assert torch.equal(precision.decode(precision.encode(alone), 1), alone)  # one value is exact


def test_two_bits_are_as_good_as_four_levels_can_be() -> None:
    precision = PRECISION.parse({"selector": "int2"})
    original = torch.randn(400, 384, generator=torch.Generator().manual_seed(0))
    error = (precision.decode(precision.encode(original), 384) - original).square().mean().item()
    assert 0.11 < error < 0.122  # 0.1188: Max (1960) for a normal distribution
    # A step derived from the largest value, as in int8 and int4, would be much worse.
    step = original.abs().amax(-1, keepdim=True) / 1.5
    assert ((original / step).floor().clamp(-2, 1).add(0.5).mul(step) - original).square().mean() > 3 * error


@pytest.mark.parametrize("name", [*STEPS, "int2"])
def test_zeros_stay_zeros(name: str) -> None:
    precision = PRECISION.parse({"selector": name})
    for nothing in (torch.zeros(3, 5), torch.full((3, 5), 1e-12)):
        assert torch.equal(precision.decode(precision.encode(nothing), 5), torch.zeros(3, 5))
