from __future__ import annotations

import pytest
import torch
from conftest import make_bert
from torch import nn

from hskd.fast.dropout import CheapDropout, cheap_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    out = CheapDropout(p)(torch.ones(1000, 1001))
    share = (out == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / out.numel()) ** 0.5 + 2**-16)
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.unique(out).tolist() == pytest.approx([0, 1 / (1 - round(p * 2**16) / 2**16)])


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (CheapDropout(0.5)(torch.ones(400_000)) == 0).float() - 0.5
    for lag in (1, 2, 3, 4):
        assert abs((dropped[lag:] * dropped[:-lag]).mean().item()) < 0.002


def test_gradient_is_the_mask() -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 13, requires_grad=True)
    out = CheapDropout(0.3)(values)
    out.sum().backward()
    assert torch.allclose(values.grad * values, out)


def test_follows_torchs_random_state() -> None:
    values, drop = torch.ones(1000), CheapDropout(0.1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = drop(values)
    second = drop(values)
    torch.set_rng_state(state)
    assert torch.equal(drop(values), first)
    assert not torch.equal(first, second)


def test_ends_of_the_range_and_eval() -> None:
    values = torch.randn(100)
    assert torch.equal(CheapDropout(0.0)(values), values)
    assert torch.equal(CheapDropout(1.0)(values), torch.zeros(100))
    assert torch.equal(CheapDropout(0.5).eval()(values), values)


def test_replaces_dropout_for_the_time_of_the_context() -> None:
    model = make_bert(hidden_dropout_prob=0.2)
    before = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    with cheap_dropout(model):
        assert not any(isinstance(module, nn.Dropout) for module in model.modules())
        cheap = [module for module in model.modules() if isinstance(module, CheapDropout)]
        assert len(cheap) == len(before)
        assert {module.p for module in cheap} == {module.p for module in before}
        assert not any(module.training for module in cheap)
    assert [module for module in model.modules() if isinstance(module, nn.Dropout)] == before
