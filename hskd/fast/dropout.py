"""Dropout with cheap random numbers, whose drawing takes much of a small student's training step on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LEVELS = 2**16


class CheapDropout(nn.Module):
    """Dropout from 16 random bits per element, so that one draw of torch's default generator serves four elements.

    ``nn.Dropout`` draws one number per element, one after the other. Here the probability ``p`` is rounded to a
    multiple of 2^-16 (0.1 becomes 0.100006). Kept elements are scaled by ``1 / (1 - p)`` with the rounded ``p``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` with some elements set to 0 and the others scaled; in eval mode, unchanged."""
        dropped = round(self.p * _LEVELS)
        if not self.training or not dropped:
            return values
        if dropped == _LEVELS:
            return torch.zeros_like(values)
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # type: ignore[arg-type]
        bits = draws.view(torch.int16)[: values.numel()].view(values.shape)
        kept = (bits >= dropped - _LEVELS // 2).to(values.dtype)
        return values * kept.mul_(_LEVELS / (_LEVELS - dropped))


@contextmanager
def cheap_dropout(model: nn.Module) -> Iterator[None]:
    """Replace every ``nn.Dropout`` of a model on the CPU with :class:`CheapDropout` within the context.

    On other devices nothing changes.
    """
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout and next(model.parameters()).device.type == "cpu"
    ]
    for parent, name, child in replaced:
        setattr(parent, name, CheapDropout(child.p).train(child.training))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
