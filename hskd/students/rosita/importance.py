"""How much each attention head and FFN neuron of an encoder matters to its task, by first-order Taylor expansion.

Removing a weight changes the loss by about ``|d loss / d w| * |w|`` (Molchanov et al. 2017; the paper's ROSITA
student is pruned by it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hskd.encoders import ENCODERS, Parts, head_size, parts_of
from hskd.errors import HskdError
from hskd.heads import Head
from hskd.progress import Progress
from hskd.tasks import model_inputs


@dataclass(frozen=True)
class Importance:
    """Importance summed over batches, float64 on the CPU; only its order within a layer matters.

    Attributes:
        heads: ``(layers, heads)``.
        neurons: ``(layers, ffn)``.
    """

    heads: Tensor
    neurons: Tensor


_HEADS = ("ForSequenceClassification", "ForTokenClassification")


def not_prunable(name: str) -> HskdError:
    """The error of a model that ROSITA pruning does not know."""
    return HskdError(
        f"ROSITA pruning needs a classifier of sequences or tokens of one of the types {', '.join(ENCODERS)}, "
        f"not {name}. A student of the TinyBERT type takes any encoder as its teacher."
    )


def require_prunable(model: PreTrainedModel) -> Parts:
    """The parts of ``model``, if it is a classifier that ROSITA pruning knows.

    Raises:
        HskdError: it is not.
    """
    parts = parts_of(model)
    if parts is None or not type(model).__name__.endswith(_HEADS):
        raise not_prunable(type(model).__name__)
    return parts


def taylor_importance(
    model: PreTrainedModel,
    head: Head,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    progress: Progress | None = None,
    dropout_seed: int | None = None,
) -> Importance:
    """Sum over ``batches`` of ``|d loss / d w| * |w|``, dropout off, summed over the weights of each head and neuron.

    A head owns its columns of the attention's output matrix; an FFN neuron its row of each matrix that makes it and its
    column of the FFN's output matrix. The loss is the head's against gold labels. The model is left as it was found.

    Args:
        model: a classifier (:func:`require_prunable`), on the device to compute on.
        head: the head of the model's task.
        batches: ``input_ids``, ``attention_mask``, optionally ``token_type_ids``, each ``(batch, tokens)``, and
            ``labels`` ``(batch,)``; anything else in a batch is ignored.
        progress: advances after each batch.
        dropout_seed: leave dropout on, drawn from this seed (the caller's random state does not move).

    Raises:
        HskdError: the model cannot be pruned, there are no batches, a batch has no labels, or a result is not
            finite.
    """
    parts = require_prunable(model)
    layers = parts.of(model.base_model)
    heads = neurons = torch.zeros(())
    done = 0
    # Per layer, in this order: attention output, FFN out, FFN in.
    paths = (parts.attended, parts.output, *parts.neurons)
    weights: list[Any] = [linear.weight for layer in layers for linear in parts.linears(layer, paths)]
    with _only_differentiable(model, weights), _seeded_dropout(model, dropout_seed):
        for batch in batches:
            loss = _task_loss(model, head, batch)
            # Not .backward(): that would leave gradients on the model.
            gradients = torch.autograd.grad(loss, weights)
            terms = [(gradient * weight.detach()).abs() for gradient, weight in zip(gradients, weights, strict=True)]
            head_scores, neuron_scores = [], []
            for index, layer in enumerate(layers):
                attended, out, *into = terms[index * len(paths) : (index + 1) * len(paths)]
                size = head_size(layer.get_submodule(parts.attention))
                head_scores.append(attended.sum(0).view(-1, size).sum(1))
                made = [block.sum(1) for term in into for block in term.chunk(parts.packed)]
                neuron_scores.append(sum(made[1:], made[0]) + out.sum(0))
            # Many small batches may follow: float32 would lose them against the running sum.
            heads = heads + torch.stack(head_scores).cpu().double()
            neurons = neurons + torch.stack(neuron_scores).cpu().double()
            done += 1
            if not (heads.isfinite().all() and neurons.isfinite().all()):
                raise HskdError(
                    f"Taylor importance is not finite at batch {done} (loss {loss.item()}). "
                    "Check the teacher's weights and the labels."
                )
            if progress is not None:
                progress.advance()
    if not done:
        raise HskdError("Taylor importance needs at least one batch of training examples; there is none.")
    return Importance(heads, neurons)


def _task_loss(model: PreTrainedModel, head: Head, batch: Mapping[str, Tensor]) -> Tensor:
    """The task's loss, a scalar. Not the model's own: that writes ``problem_type`` into its configuration."""
    if "labels" not in batch:
        raise HskdError("Taylor importance needs gold labels: a batch has no 'labels'.")
    inputs = model_inputs(batch, model.device)
    on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
    return head.gold_loss(head.rows(model(**inputs), on_device), head.labels(on_device))


@contextmanager
def _seeded_dropout(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Within, ``model`` is in train mode, and random numbers come from ``seed``; with None, nothing changes."""
    if seed is None:
        yield
        return
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        yield


@contextmanager
def _only_differentiable(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Within, ``model`` is in eval mode and only ``weights`` require gradients; afterwards all is as before."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, was_training in training:
            module.training = was_training
        for parameter, was_required in required:
            parameter.requires_grad_(was_required)
