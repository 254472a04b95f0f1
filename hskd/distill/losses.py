"""The losses of the two stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hskd.heads import head_of_rows
from hskd.knowledge import KeptHSK


def hsk_loss(hidden_states: Sequence[torch.Tensor], kept: KeptHSK, projection: nn.Module | None = None) -> torch.Tensor:
    """Loss of the HSK stage: squared error on what is kept, and on nothing else (arXiv 2106.05691).

    The sum over kept layers of the mean over examples of the mean over that example's kept tokens and neurons
    of ``(W h^S - h^T)^2``. Pads, dropped tokens and dropped neurons take no part. Where coordinates along a basis ``B``
    are kept in place of neurons, ``B^T (W h^S - m)`` is compared with them.

    Args:
        hidden_states: the student's, ``(B, T, d_S)`` each; index 0 is the embedding output.
        kept: the targets, for the same ``B`` examples in the same order.
        projection: ``W``, needed where ``d_S != d_T``.

    Returns:
        The loss, a scalar in fp32.
    """
    example = kept.example
    states = [states_at(hidden_states[layer], example, kept.positions[:, i]) for i, layer in enumerate(kept.layers)]
    return kept_loss(states, kept, projection)


def states_at(states: torch.Tensor, example: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Hidden states ``(B, T, d)`` of some tokens, each given by its example and its position: ``(K, d)``."""
    return states.flatten(0, 1).index_select(0, example * states.shape[1] + position)


def kept_loss(states: Sequence[torch.Tensor], kept: KeptHSK, projection: nn.Module | None = None) -> torch.Tensor:
    """:func:`hsk_loss` of hidden states that are given at the kept tokens alone.

    Args:
        states: the student's, ``(K, d_S)`` for each kept layer.
        kept: the targets.
        projection: ``W``, needed where ``d_S != d_T``.
    """
    weight = 1.0 / (len(kept.counts) * kept.counts[kept.example])
    loss = torch.zeros((), device=kept.values.device)
    for i, student in enumerate(states):
        error = (compared(student, kept, i, projection).float() - kept.values[:, i]).square()
        if kept.weights is None:
            loss = loss + (weight * error.mean(dim=1)).sum()
        else:
            loss = loss + (kept.weights[:, i] * error).sum() / len(kept.counts)
    return loss


def compared(student: torch.Tensor, kept: KeptHSK, i: int, projection: nn.Module | None) -> torch.Tensor:
    """What is compared with the values of the ``i``-th kept layer: the student's neurons, or coordinates, ``(K, k)``.

    Args:
        student: its hidden states at the kept tokens, ``(K, d_S)``.
        kept: the targets.
        i: which of the kept layers.
        projection: ``W``, needed where ``d_S != d_T``.
    """
    if kept.basis is not None:
        directions, origin = kept.basis.directions[i], kept.basis.origin[i]
        if not isinstance(projection, nn.Linear):
            student = student if projection is None else projection(student)
            return student @ directions - origin
        # B^T W is small: no token passes through the teacher's width. In bf16, its rounding would add to that of W.
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
    """Loss of the prediction stage where there is one row an example: soft cross-entropy, or squared error.

    Other tasks have losses of their own: ask their head (:meth:`hskd.heads.Head.distil_loss`).

    Args:
        student_rows: ``(B, C)``; one column is a regression.
        teacher_rows: ``(B, C)``.
        tau: temperature of both.
    """
    return head_of_rows(student_rows.shape[-1], ()).distil_loss(student_rows, teacher_rows, tau)
