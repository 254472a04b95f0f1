"""BertAdam, the optimiser of the first BERT code in PyTorch: Adam without bias correction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """Adam with decoupled weight decay and without bias correction: it steps by ``m / (sqrt(v) + eps)``.

    Both averages start at 0 and are not corrected for it, so the first steps are larger than AdamW's. The very first is
    larger by a factor of ``(1 - b1) / sqrt(1 - b2)``, which is 3.2. A weight whose gradient is always 0 only decays, as
    under AdamW. The gradient of each parameter is clipped separately.

    Args:
        params: parameters, or groups of parameters, which may have their own ``weight_decay``.
        lr: learning rate, which a schedule may change.
        betas: decay rates of the averages of the gradient and the squared gradient.
        eps: added to the square root.
        weight_decay: weight decay, multiplied by ``lr`` in each step.
        max_grad_norm: maximum norm of each parameter's gradient; None does not clip.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step with the current gradients; parameters without one are skipped. ``closure`` is not called."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if self.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(parameter, self.max_grad_norm)
                state = self.state[parameter]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                m = state["m"].mul_(b1).add_(parameter.grad, alpha=1 - b1)
                v = state["v"].mul_(b2).addcmul_(parameter.grad, parameter.grad, value=1 - b2)
                update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * parameter
                parameter.sub_(group["lr"] * update)
