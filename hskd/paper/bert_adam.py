"""BertAdam, the optimiser of the first BERT code in torch: Adam without bias correction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """``m / (sqrt(v) + eps)`` as it is, with no correction for starting both averages at 0, plus decoupled decay.

    So the first steps are larger than AdamW's: the very first by ``(1 - b1) / sqrt(1 - b2)``, which is 3.2. A
    parameter without gradient only decays, as under AdamW. The gradient of each parameter is clipped by itself.

    Args:
        params: parameters, or groups of them, each perhaps with a ``weight_decay`` of its own.
        lr: learning rate, which a schedule may change.
        betas: how slowly the averages of gradient and squared gradient move.
        eps: added to the root.
        weight_decay: decay of the weights, times ``lr`` a step.
        max_grad_norm: the norm to which the gradient of each parameter is clipped; None leaves gradients as they are.
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
        """One step on the gradients that are there; ``closure`` is not called."""
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
