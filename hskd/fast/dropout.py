"""Dropout whose random numbers are cheap: on a CPU, drawing them costs a small student much of its step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LEVELS = 2**16


class CheapDropout(nn.Module):
    """Dropout from 16 random bits an element, four elements to a draw of torch's default generator.

    ``nn.Dropout`` draws one number an element, one after the other. The probability is rounded to a multiple of
    2^-16 (0.1 becomes 0.100006), and survivors are scaled by the inverse of what it was rounded to.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` with some elements zero and the rest scaled; as they are in eval mode."""
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
    """Within, every ``nn.Dropout`` of a model on the CPU is a :class:`CheapDropout`. Elsewhere nothing changes."""
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
