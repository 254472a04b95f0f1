"""``W``, the linear map from a student's hidden states to the teacher's width, if the widths differ."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hskd.errors import CorruptionError, MismatchError
from hskd.teachers.loading import PROJECTION_FILE

__all__ = ["PROJECTION_FILE", "make_projection"]


def make_projection(
    student_width: int, teacher_width: int, seed: int = 0, checkpoint: Path | None = None
) -> nn.Linear | None:
    """Load ``W`` from the student's folder if it holds one, otherwise draw ``W`` from ``seed``.

    Args:
        student_width: ``d_S``.
        teacher_width: ``d_T``.
        seed: seed of the draw.
        checkpoint: the student's folder, which may hold a ``fit_dense`` as the initial ``W``.

    Returns:
        A linear layer from ``d_S`` to ``d_T``; None if the widths are equal.

    Raises:
        MismatchError: the ``fit_dense`` in ``checkpoint`` has other widths.
        CorruptionError: the ``fit_dense`` cannot be read.
    """
    if student_width == teacher_width:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(student_width, teacher_width)
    file = None if checkpoint is None else checkpoint / PROJECTION_FILE
    if file is not None and file.is_file():
        weights = _read(file)
        if weights["weight"].shape != projection.weight.shape:
            raise MismatchError(
                f"{file}: maps width {weights['weight'].shape[1]} to {weights['weight'].shape[0]}; the student's "
                f"is {student_width} and the teacher's {teacher_width}. It was trained for another teacher: delete it "
                "to draw W from the seed."
            )
        projection.load_state_dict(weights)
    return projection


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Return the weight ``(d_T, d_S)`` and the bias of a ``fit_dense``."""
    try:
        weights = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptionError(f"{file}: cannot be read ({error}); delete it to draw W from the seed.") from None
    if {*weights} != {"weight", "bias"} or weights["weight"].dim() != 2:
        raise CorruptionError(
            f"{file}: expected a matrix `weight` and a `bias`, found {sorted(weights)}; delete it to draw W from the "
            "seed."
        )
    return weights
