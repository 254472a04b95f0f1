"""The losses equal plain loops written after docs/design.md."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from hskd.distill.losses import hsk_loss, prediction_loss
from hskd.heads import soft_cross_entropy
from hskd.knowledge import KeptHSK

WIDTH = 6
LENGTHS = (5, 2, 7)
COUNTS = (3, 1, 4)
Neurons = Literal["all", "fixed", "per_token"]
KINDS: tuple[Neurons, ...] = ("all", "fixed", "per_token")


def make_kept(kind: Neurons, layers: tuple[int, ...] = (0, 2, 3)) -> KeptHSK:
    """Return random targets of ragged examples; positions differ between layers."""
    generator = torch.Generator().manual_seed(1)

    def some(k: int, of: int) -> torch.Tensor:
        return torch.randperm(of, generator=generator)[:k].sort().values

    positions = [
        torch.cat([some(count, length) for count, length in zip(COUNTS, LENGTHS, strict=True)]) for _ in layers
    ]
    tokens, k = sum(COUNTS), WIDTH if kind == "all" else 2
    neurons = {
        "all": None,
        "fixed": some(k, WIDTH),
        "per_token": torch.stack([some(k, WIDTH) for _ in range(tokens * len(layers))]).view(tokens, len(layers), k),
    }[kind]
    values = torch.randn(tokens, len(layers), k, generator=generator)
    return KeptHSK(layers, torch.tensor(COUNTS), torch.stack(positions, dim=1), values, neurons)


def make_hidden(width: int = WIDTH, pad: float = 0.0, length: int = 8) -> list[torch.Tensor]:
    """Return hidden states of 4 student layers and the embedding output; padding positions hold ``pad``."""
    generator = torch.Generator().manual_seed(2)
    states = torch.full((5, len(LENGTHS), length, width), pad)
    for layer in range(5):
        for b, tokens in enumerate(LENGTHS):
            states[layer, b, :tokens] = torch.randn(tokens, width, generator=generator)
    return list(states)


def make_projection(width: int) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(width, WIDTH)


def addresses(kept: KeptHSK) -> list[tuple[int, int, int, int, int, list[int]]]:
    """Return example, index of the kept layer, student layer, position, target row and neurons of every kept token."""
    found, row = [], 0
    for b, count in enumerate(kept.counts.tolist()):
        for _ in range(count):
            for i, layer in enumerate(kept.layers):
                neurons = list(range(WIDTH))
                if kept.neurons is not None:
                    neurons = (kept.neurons if kept.neurons.dim() == 1 else kept.neurons[row, i]).tolist()
                found.append((b, i, layer, int(kept.positions[row, i]), row, neurons))
            row += 1
    return found


def plain_hsk_loss(hidden: list[torch.Tensor], kept: KeptHSK, projection: nn.Linear | None) -> float:
    """Return the sum over layers of the mean over examples of the mean over an example's kept tokens and neurons."""
    total = 0.0
    for i in range(len(kept.layers)):
        of_examples = []
        for b in range(len(kept.counts)):
            errors = []
            for example, index, layer, position, row, neurons in addresses(kept):
                if (example, index) != (b, i):
                    continue
                state = hidden[layer][b, position].tolist()
                if projection is not None:
                    weight, bias = projection.weight.tolist(), projection.bias.tolist()
                    state = [sum(w * h for w, h in zip(weight[j], state, strict=True)) + bias[j] for j in range(WIDTH)]
                targets = kept.values[row, i].tolist()
                errors += [(state[j] - target) ** 2 for j, target in zip(neurons, targets, strict=True)]
            of_examples.append(sum(errors) / len(errors))
        total += sum(of_examples) / len(of_examples)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [(4,), (0, 2, 3)])
@pytest.mark.parametrize("projected", [False, True])
def test_hsk_loss_equals_a_plain_loop(kind: Neurons, layers: tuple[int, ...], projected: bool) -> None:
    kept = make_kept(kind, layers)
    projection = make_projection(4) if projected else None
    hidden = make_hidden(4 if projected else WIDTH)
    loss = hsk_loss(hidden, kept, projection)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert loss.item() == pytest.approx(plain_hsk_loss(hidden, kept, projection), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_is_kept_and_nothing_else(kind: Neurons) -> None:
    kept = make_kept(kind)
    hidden = [states.requires_grad_() for states in make_hidden()]
    hsk_loss(hidden, kept).backward()
    expected = torch.zeros(5, len(LENGTHS), 8, WIDTH, dtype=torch.bool)
    for b, _, layer, position, _, neurons in addresses(kept):
        expected[layer, b, position, neurons] = True
    for layer, states in enumerate(hidden):
        reached = torch.zeros_like(expected[0]) if states.grad is None else states.grad != 0
        assert torch.equal(reached, expected[layer]), f"layer {layer}"


def test_the_projection_learns_kept_neurons_only() -> None:
    kept, projection = make_kept("fixed"), make_projection(4)
    hsk_loss(make_hidden(4), kept, projection).backward()
    assert projection.bias.grad is not None and kept.neurons is not None
    assert projection.bias.grad.nonzero().flatten().tolist() == kept.neurons.tolist()


@pytest.mark.parametrize("projected", [False, True])
def test_pads_take_no_part(projected: bool) -> None:
    kept = make_kept("per_token")
    width, projection = (4, make_projection(4)) if projected else (WIDTH, None)
    loss = hsk_loss(make_hidden(width), kept, projection)
    assert torch.equal(hsk_loss(make_hidden(width, pad=float("nan"), length=20), kept, projection), loss)


def test_zero_at_the_target() -> None:
    kept = make_kept("all")
    hidden = make_hidden()
    for b, i, layer, position, row, _ in addresses(kept):
        hidden[layer][b, position] = kept.values[row, i]
    assert hsk_loss(hidden, kept).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_examples_does_not_matter(kind: Neurons) -> None:
    kept, hidden, order = make_kept(kind), make_hidden(), [2, 0, 1]
    rows = torch.arange(sum(COUNTS)).split(COUNTS)
    shuffled = torch.cat([rows[b] for b in order])
    other = replace(
        kept,
        counts=kept.counts[order],
        positions=kept.positions[shuffled],
        values=kept.values[shuffled],
        neurons=kept.neurons[shuffled] if kept.neurons is not None and kept.neurons.dim() == 3 else kept.neurons,
    )
    loss = hsk_loss(hidden, kept).item()
    assert hsk_loss([states[order] for states in hidden], other).item() == pytest.approx(loss, rel=1e-6)
    assert hsk_loss(hidden, other).item() != pytest.approx(loss, rel=1e-3)  # the examples do differ


def logits(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(5, classes, generator=generator) * 3, torch.randn(5, classes, generator=generator) * 3


def plain_soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> float:
    """Return minus the sum over classes of softmax(teacher / tau) * log_softmax(student / tau), mean over the batch."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(logit / tau) for logit in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(softmax(teacher_row), softmax(student_row), strict=True):
            total -= p * math.log(q)
    return total / len(student)


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_soft_cross_entropy_equals_a_plain_loop(tau: float, classes: int) -> None:
    student, teacher = logits(classes)
    expected = plain_soft_cross_entropy(student, teacher, tau)
    assert soft_cross_entropy(student, teacher, tau).item() == pytest.approx(expected, rel=1e-5)
    assert prediction_loss(student, teacher, tau).item() == pytest.approx(expected, rel=1e-5)
    assert soft_cross_entropy(student.half(), teacher.half(), tau).dtype == torch.float32
    if tau == 1:
        assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_prediction_loss_of_regression_is_the_squared_error() -> None:
    student, teacher = logits(1)
    expected = (
        sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)) / 5
    )
    assert prediction_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert prediction_loss(student, teacher, tau=2.0).item() == pytest.approx(expected, rel=1e-5)  # no temperature
