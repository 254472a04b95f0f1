"""Losses of the two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from hskd.errors import HskdError
from hskd.heads import head_of_rows
from hskd.knowledge import KeptHSK
from hskd.spec import HSKSpec

HSKLoss = Literal["mse", "standardised", "cosine", "gram"]
"""Names of the losses of the HSK stage, described at :func:`kept_loss`."""


def hsk_loss(hidden_states: Sequence[torch.Tensor], kept: KeptHSK, projection: nn.Module | None = None) -> torch.Tensor:
    """Return the loss of the HSK stage: squared error on the kept HSK only (arXiv 2106.05691).

    It is the sum over kept layers of the mean over examples of the mean over that example's kept tokens and neurons
    of ``(W h^S - h^T)^2``. Pads, dropped tokens and dropped neurons are left out. If coordinates along a basis ``B``
    with origin ``m`` are kept instead of neurons, they are compared with ``B^T (W h^S - m)``.

    Args:
        hidden_states: the student's hidden states, ``(B, T, d_S)`` each; index 0 is the embedding output.
        kept: the targets, for the same ``B`` examples in the same order.
        projection: ``W``, needed if ``d_S != d_T``.

    Returns:
        The loss, a scalar in fp32.
    """
    return kept_loss(
        [kept_states(hidden_states[layer], kept, i) for i, layer in enumerate(kept.layers)], kept, projection
    )


def kept_states(states: torch.Tensor, kept: KeptHSK, i: int) -> torch.Tensor:
    """Return the student's states that correspond to the kept tokens of the ``i``-th kept layer, ``(K, d)``.

    Args:
        states: all hidden states of the student in that layer, ``(B, T, d)``.
        kept: the targets.
        i: index among the kept layers.
    """
    if kept.members is None:
        return states_at(states, kept.example, kept.positions[:, i])
    count = len(kept.positions)
    example = kept.example[kept.members.kept.clamp(max=count - 1)]
    return kept.members.mean(states_at(states, example, kept.members.position), count)


def states_at(states: torch.Tensor, example: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return the hidden states ``(K, d)``, out of ``(B, T, d)``, of tokens given by example and position."""
    return states.flatten(0, 1).index_select(0, example * states.shape[1] + position)


def kept_loss(
    states: Sequence[torch.Tensor],
    kept: KeptHSK,
    projection: nn.Module | None = None,
    loss: HSKLoss = "mse",
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of the HSK stage from hidden states at the kept tokens only.

    * ``mse``: the squared error of :func:`hsk_loss`.
    * ``standardised``: the same, with each number divided by the teacher's standard deviation of that number.
    * ``cosine``: 1 - cosine between the student's and the teacher's numbers of a token, mean over an example's tokens.
    * ``gram``: squared difference between the student's and the teacher's cosine of two tokens, mean over all pairs of
      an example's kept tokens. The student's states are compared with each other in their own width, without ``W``.
      Cosines are used because inner products would compare the scales of two widths.

    Each loss is a mean over examples, summed over kept layers.

    Args:
        states: the student's hidden states, ``(K, d_S)`` for each kept layer.
        kept: the targets.
        projection: ``W``, needed if ``d_S != d_T``, except for ``gram``.
        loss: name of the loss.
        spread: for ``standardised``, the teacher's standard deviations, ``(n, k)``, or ``(n, d_T)`` if neurons differ
            from token to token. If layers are drawn for each batch, ``n`` counts all layers that can be drawn.
    """
    total = torch.zeros((), device=kept.values.device)
    for i, student in enumerate(states):
        if loss == "gram":
            total = total + _gram(student, kept, i)
        else:
            numbers = compared(student, kept, i, projection).float()
            place = i if kept.places is None else kept.places[i]
            total = total + _pointwise(numbers, kept, i, loss, None if spread is None else spread[place])
    return total


def _pointwise(
    numbers: torch.Tensor, kept: KeptHSK, i: int, loss: HSKLoss, spread: torch.Tensor | None
) -> torch.Tensor:
    """Return a layer's loss that compares each token with its own target, mean over examples."""
    weight = 1.0 / (len(kept.counts) * kept.counts[kept.example])
    if kept.real is not None:
        weight = weight.where(kept.real, 0)
    values = kept.values[:, i]
    if loss == "cosine":
        return (weight * (1 - nn.functional.cosine_similarity(numbers, values, dim=1))).sum()
    difference = numbers - values
    if loss == "standardised":
        assert spread is not None
        if kept.neurons is not None and kept.neurons.dim() == 3:
            spread = spread[kept.neurons[:, i]]
        difference = difference / spread
    error = difference.square()
    if kept.weights is None:
        return (weight * error.mean(dim=1)).sum()
    return (kept.weights[:, i] * error).sum() / len(kept.counts)


def _gram(student: torch.Tensor, kept: KeptHSK, i: int) -> torch.Tensor:
    """Return a layer's loss that compares the tokens of an example with each other, mean over examples."""
    examples, most = len(kept.counts), kept.most
    assert most is not None
    place = kept.example * most + kept.rank

    def cosines(rows: torch.Tensor) -> torch.Tensor:
        unit = nn.functional.normalize(rows.float(), dim=1)
        if kept.real is not None:
            unit = unit * kept.real[:, None]
        padded = unit.new_zeros((examples * most, rows.shape[1])).index_copy(0, place, unit)
        padded = padded.unflatten(0, (examples, most))
        return padded @ padded.transpose(1, 2)

    with torch.autocast(student.device.type, enabled=False):
        error = (cosines(student) - cosines(kept.values[:, i])).square().sum((1, 2))
    return (error / kept.counts.clamp(min=1).square()).mean()


def require_comparable(loss: HSKLoss, spec: HSKSpec | None, width: int) -> None:
    """Refuse a loss of the HSK stage that is meaningless for the kept HSK.

    Args:
        loss: name of the loss.
        spec: spec of the HSK stage; None if there is no HSK stage.
        width: ``d_T``.

    Raises:
        HskdError: the loss is meaningless; the message says why, and what to do.
    """
    if spec is None:
        return
    if loss == "cosine" and spec.width.count(width) == 1:
        raise HskdError(
            f"--hsk-loss cosine: {spec.label} keeps one number per token, whose cosine is only its sign; keep more "
            "(--spec), or use mse."
        )
    if loss == "gram" and spec.width.fixed(width) is None:
        raise HskdError(
            f"--hsk-loss gram: width={spec.width.selector} keeps different neurons for each token, so two tokens "
            "cannot be compared; use width=random, uniform, projection, pca or all neurons."
        )
    if loss == "gram" and spec.length.k == 1:
        raise HskdError(
            f"--hsk-loss gram: compares the tokens of an example, and {spec.label} keeps one token; keep more, or use "
            "mse."
        )


def compared(student: torch.Tensor, kept: KeptHSK, i: int, projection: nn.Module | None) -> torch.Tensor:
    """Return the student's neurons or coordinates ``(K, k)`` to compare with the values of the ``i``-th kept layer.

    Args:
        student: the student's hidden states at the kept tokens, ``(K, d_S)``.
        kept: the targets.
        i: index among the kept layers.
        projection: ``W``, needed if ``d_S != d_T``.
    """
    if kept.basis is not None:
        directions, origin = kept.basis.directions[i], kept.basis.origin[i]
        if not isinstance(projection, nn.Linear):
            student = student if projection is None else projection(student)
            return student @ directions - origin
        # B^T W is small, so no token has to be mapped to the teacher's width. It is computed in fp32, because in bf16
        # its rounding error would add to that of W.
        with torch.autocast(student.device.type, enabled=False):
            weight = directions.T @ projection.weight
            bias = -origin if projection.bias is None else projection.bias @ directions - origin
        return nn.functional.linear(student, weight).float() + bias
    if projection is not None:
        student = projection(student)
    if kept.neurons is None:
        return student
    return student[:, kept.neurons] if kept.neurons.dim() == 1 else student.gather(1, kept.neurons[:, i])


def prediction_loss(student_rows: torch.Tensor, teacher_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """Return the loss of the prediction stage for one row per example: soft cross-entropy, or squared error.

    The heads of other tasks define other losses (:meth:`hskd.heads.Head.distil_loss`).

    Args:
        student_rows: ``(B, C)``; a single column means regression.
        teacher_rows: ``(B, C)``.
        tau: temperature of both distributions.
    """
    return head_of_rows(student_rows.shape[-1], ()).distil_loss(student_rows, teacher_rows, tau)
