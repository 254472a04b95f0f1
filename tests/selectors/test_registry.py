"""Registries: a user's own selector, and messages for unknown selectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from hskd.errors import HskdError
from hskd.knowledge import TeacherStates, select_hsk
from hskd.selectors import (
    DEPTH,
    EXAMPLES,
    LENGTH,
    PRECISION,
    WIDTH,
    LayerView,
    LengthSelector,
    PrecisionSelector,
    Registry,
    Tokens,
)
from hskd.selectors.length import Left
from hskd.spec import HSKSpec, Shape
from hskd.store_format.layout import kept_arrays

SHAPE = Shape(student_layers=2, teacher_layers=4, teacher_width=8, vocab_size=10)


class Right(LengthSelector):
    """The last ``k`` tokens."""

    selector: Literal["right"] = "right"

    def scores(self, view: LayerView) -> np.ndarray:
        return view.tokens.position


class Mine(PrecisionSelector):
    """A precision of one byte per value and one scale per token."""

    selector: Literal["mine"] = "mine"
    number: ClassVar[str] = "int8"

    def layout(self, count: int) -> dict[str, tuple[torch.dtype, int]]:
        return {"codes": (torch.int8, count), "scale": (torch.float32, 1)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = values.abs().amax(dim=-1, keepdim=True) / 127
        return {"codes": (values / scale).round().to(torch.int8), "scale": scale}

    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        return arrays["codes"] * arrays["scale"]

    def ranked(self, values: torch.Tensor) -> torch.Tensor:
        return values


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Register the selectors above for the duration of a test."""
    LENGTH.register(Right)
    PRECISION.register(Mine)
    yield
    LENGTH.remove("right")
    PRECISION.remove("mine")


def states() -> TeacherStates:
    lengths = [5, 1, 3]
    tokens = Tokens(np.arange(3), np.concatenate([[0], np.cumsum(lengths)]), np.arange(9), sep_id=3)
    generator = torch.Generator().manual_seed(0)
    return TeacherStates(tokens, {layer: torch.randn(9, 8, generator=generator) for layer in range(5)}, {})


def test_a_users_length_selector() -> None:
    spec = HSKSpec.parse("1l_2t_0.5w,length=right")
    assert spec.length == Right(k=2)
    assert HSKSpec.parse(spec.label) == HSKSpec.parse(spec.canonical) == spec
    assert spec != HSKSpec.parse("1l_2t_0.5w,length=left")
    kept = select_hsk(spec, spec.layers(SHAPE), states())
    assert kept.counts.tolist() == [2, 1, 2]
    assert kept.positions[:, 0].tolist() == [3, 4, 0, 1, 2]
    assert kept.neurons is not None
    hidden = states().hidden[4][[3, 4, 5, 7, 8]].half().float()
    assert torch.equal(kept.values[:, 0], hidden.gather(1, kept.neurons[:, 0]))


def test_a_users_quantiser() -> None:
    spec = HSKSpec.parse("1l_all_0.5w,precision=mine")
    assert kept_arrays(spec, SHAPE, 16) == {
        "codes": (torch.int8, 4),
        "scale": (torch.float32, 1),
        "neurons": (torch.uint8, 1),
    }
    kept = select_hsk(spec, spec.layers(SHAPE), states())
    assert kept.neurons is not None
    exact = states().hidden[4].gather(1, kept.neurons[:, 0])
    error = (kept.values[:, 0] - exact).abs()
    assert error.max() > 0 and (error <= exact.abs().amax(dim=1, keepdim=True) / 254 * 1.001).all()


@pytest.mark.parametrize(
    ("registry", "known"),
    [
        (DEPTH, "top_n, reverse, same, random"),
        (EXAMPLES, "random, disagree, entropy"),
        (LENGTH, "attention, attention_no_sep, left, norm, gradient, received, entropy, pool, cls, random, right"),
        (WIDTH, "magnitude, random, uniform, projection, pca, pq, rvq"),
        (PRECISION, "fp32, fp16, bf16, int8, int4, int2, mine"),
    ],
    ids=lambda value: value.dimension if isinstance(value, Registry) else "",
)
def test_unknown_selector_lists_the_known(registry: Registry[Any], known: str) -> None:
    with pytest.raises(HskdError) as caught:
        registry.parse({"selector": "nope"})
    assert str(caught.value) == f"{registry.dimension}: unknown selector 'nope'; known: {known}."
    assert ", ".join(registry) == known


@pytest.mark.parametrize("fields", [3, "left", None, {}, {"k": 3}, {"selector": ["left"]}, {"selector": None}])
def test_what_is_not_a_selector(fields: Any) -> None:
    with pytest.raises(HskdError, match='length: expected an object with a key "selector"'):
        LENGTH.parse(fields)


def test_unknown_field_is_named_with_the_known() -> None:
    with pytest.raises(HskdError, match=r"length=left: field kk: Extra inputs .*\(got 3\); fields: selector, k\."):
        LENGTH.parse({"selector": "left", "kk": 3})


def test_a_selector_is_returned_as_it_is() -> None:
    left = Left(k=3)
    assert LENGTH.parse(left) is left
