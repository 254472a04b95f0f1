"""HSK losses other than the squared error equal plain loops, and are rejected where they are undefined."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from distill.test_losses import KINDS, Neurons, addresses, make_hidden, make_kept, make_projection
from pydantic import ValidationError
from support.distill_lab import Lab
from torch import nn

from hskd.distill.losses import HSKLoss, kept_loss, states_at
from hskd.distill.trainer import Criterion, HSKModule
from hskd.errors import HskdError
from hskd.knowledge import KeptHSK
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.spread import spread_of
from hskd.trials.prepare import Distillation, Student, from_store, from_teacher
from hskd.trials.settings import DistillSettings, HSKLossName

LOSSES: tuple[HSKLoss, ...] = get_args(HSKLoss)


def loss_of(
    hidden: list[torch.Tensor],
    kept: KeptHSK,
    loss: HSKLoss,
    projection: nn.Linear | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    at = [states_at(hidden[layer], kept.example, kept.positions[:, i]) for i, layer in enumerate(kept.layers)]
    return kept_loss(at, kept, projection, loss, spread)


def student_numbers(
    hidden: list[torch.Tensor], kept: KeptHSK, projection: nn.Linear | None
) -> dict[tuple[int, int], list[tuple[list[float], list[float], list[int], list[float]]]]:
    """Return student numbers, teacher numbers, neurons and student states of tokens, by example and kept layer."""
    found: dict[tuple[int, int], list[tuple[list[float], list[float], list[int], list[float]]]] = {}
    for example, index, layer, position, row, neurons in addresses(kept):
        state = hidden[layer][example, position]
        mapped = (state if projection is None else projection(state)).tolist()
        numbers = [mapped[j] for j in neurons]
        found.setdefault((example, index), []).append(
            (numbers, kept.values[row, index].tolist(), neurons, state.tolist())
        )
    return found


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_equals_a_plain_loop(kind: Neurons, projected: bool, loss: HSKLoss) -> None:
    if loss == "gram" and kind == "per_token":
        pytest.skip("refused, see below")
    kept = make_kept(kind)
    hidden = make_hidden(4 if projected else 6)
    projection = make_projection(4) if projected else None
    spread = torch.rand(3, 6 if kind == "per_token" else kept.values.shape[2]) + 0.5
    total = 0.0
    for (_, index), tokens in student_numbers(hidden, kept, projection).items():
        terms = []
        for numbers, targets, neurons, _ in tokens:
            scale = spread[index, neurons].tolist() if kind == "per_token" else spread[index].tolist()
            if loss == "cosine":
                terms.append(1 - cosine(numbers, targets))
            if loss == "mse":
                scale = [1.0] * len(scale)
            if loss in ("mse", "standardised"):
                terms += [((a - b) / s) ** 2 for a, b, s in zip(numbers, targets, scale, strict=True)]
        if loss == "gram":
            terms = [(cosine(one[3], other[3]) - cosine(one[1], other[1])) ** 2 for one in tokens for other in tokens]
        total += sum(terms) / len(terms) / len(kept.counts)
    found = loss_of(hidden, kept, loss, None if loss == "gram" else projection, spread)
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert found.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_pads_take_no_part(loss: HSKLoss) -> None:
    kept, spread = make_kept("fixed"), torch.ones(3, 2)
    found = [loss_of(make_hidden(6, pad), kept, loss, None, spread) for pad in (0.0, float("nan"))]
    assert torch.equal(*found)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_that_agrees_loses_nothing_and_learns(loss: HSKLoss) -> None:
    kept, hidden = make_kept("all"), make_hidden()
    agreed = [states.clone() for states in hidden]
    for i, layer in enumerate(kept.layers):
        agreed[layer][kept.example, kept.positions[:, i]] = kept.values[:, i]
    spread = torch.ones(3, 6)
    assert loss_of(agreed, kept, loss, None, spread).item() == pytest.approx(0.0, abs=1e-6)
    states = [layer.requires_grad_() for layer in hidden]
    loss_of(states, kept, loss, None, spread).backward()
    assert all(states[layer].grad is not None and states[layer].grad.isfinite().all() for layer in kept.layers)  # type: ignore[union-attr]


def test_an_example_of_which_nothing_is_kept_adds_nothing() -> None:
    kept = KeptHSK((1,), torch.tensor([2, 0]), torch.tensor([[0], [1]]), torch.randn(2, 1, 6), None)
    hidden = [torch.randn(2, 3, 6) for _ in range(2)]
    for loss in LOSSES:
        assert loss_of(hidden, kept, loss, None, torch.ones(1, 6)).isfinite()


def test_the_default_is_no_part_of_a_trials_identity() -> None:
    assert set(get_args(HSKLossName)) == set(LOSSES)
    assert "hsk_loss" not in DistillSettings().model_dump()
    assert DistillSettings(hsk_loss="gram").model_dump()["hsk_loss"] == "gram"


@pytest.mark.parametrize("switch", ["batch_threshold", "loose_masks", "zero_dropped"])
def test_switches_about_the_squared_error_go_with_no_other_loss(switch: str) -> None:
    DistillSettings(compat=(switch,))  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=f"compat {switch} is about the squared error"):
        DistillSettings(compat=(switch,), hsk_loss="cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "spec", "message"),
    [
        ("cosine", "1l_all_0.01w,width=uniform", "keeps one number per token"),
        ("gram", "1l_all_0.5w", "width=magnitude keeps different neurons for each token"),
        ("gram", "1l_1t_all", "compares the tokens of an example"),
    ],
)
def test_what_says_nothing_is_refused_online_and_offline(
    lab: Lab, tmp_path: Path, loss: HSKLossName, spec: str, message: str
) -> None:
    student = Student.load(lab.root / "rosita", lab.task)
    wanted = Distillation(DistillSettings(hsk_loss=loss), HSKSpec.parse(spec), student, lab.task, lab.train)
    with pytest.raises(HskdError, match=f"--hsk-loss {loss}: .*{message}"):
        from_store(lab.superset, wanted, tmp_path / "store")
    with pytest.raises(HskdError, match=f"--hsk-loss {loss}: .*{message}"):
        from_teacher(lab.teacher, wanted, "fp32")


@pytest.mark.parametrize("text", ["2l_3t_0.25w", "2l_3t_0.25w,width=uniform", "2l_all_0.25w,width=pca", "1l_all_all"])
def test_the_spread_is_that_of_the_teacher(lab: Lab, tmp_path: Path, text: str) -> None:
    spec = HSKSpec.parse(text)
    store = derive(lab.superset, spec, 2, tmp_path / "store")
    spread = spread_of(store, lab.superset)
    kept = store.kept(np.arange(len(store)))
    if kept.neurons is None or kept.neurons.dim() == 1:
        expected = kept.values.double().std(0, correction=0)
    else:
        whole = HSKSpec.parse("2l_3t_all")
        expected = derive(lab.superset, whole, 2, tmp_path / "whole").kept(np.arange(len(store))).values
        expected = expected.double().std(0, correction=0)
        with pytest.raises(HskdError, match="give the superset that the store was derived from"):
            spread_of(store, None)
    torch.testing.assert_close(spread.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lab.online(spec).spread(lab.train), spread, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_trial_trains_with_it(lab: Lab, tmp_path: Path, loss: HSKLoss) -> None:
    """All stages of a trial run with it, with a student narrower than the teacher."""
    run = lab.trial(
        tmp_path / loss, kind="narrow", hsk_loss=loss, hsk_epochs=2, hsk_lr=1e-3, spec="2l_3t_0.5w,width=pca"
    )
    assert run["stages"]["hsk"]["last_loss"] < run["stages"]["hsk"]["first_loss"]
    assert ("hsk_loss" in run["settings"]) == (loss != "mse")
    assert (tmp_path / loss / "student" / "fit_dense.safetensors").is_file() == (loss != "gram")


def test_the_held_out_loss_is_the_squared_error(lab: Lab) -> None:
    from hskd.distill.trainer import mean_hsk_loss

    source = lab.offline(HSKSpec())
    found = []
    for loss in ("mse", "cosine"):
        module = HSKModule(lab.student("narrow"), 32, criterion=Criterion(loss))
        found.append(mean_hsk_loss(module, lab.train, source, "fp32"))
        assert module.criterion.loss == loss
    assert found[0] == found[1]
