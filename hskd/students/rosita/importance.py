"""Importance of each attention head and FFN neuron of an encoder for its task, by first-order Taylor expansion.

Removing a weight changes the loss by about ``|d loss / d w| * |w|`` (Molchanov et al. 2017). The paper prunes its
ROSITA student by this measure.
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
    """Importance summed over batches, float64 on the CPU. Only the order within a layer matters.

    Attributes:
        heads: ``(layers, heads)``.
        neurons: ``(layers, ffn)``.
    """

    heads: Tensor
    neurons: Tensor


_HEADS = ("ForSequenceClassification", "ForTokenClassification")


def not_prunable(name: str) -> HskdError:
    """Return the error for a model that ROSITA pruning does not support."""
    return HskdError(
        f"ROSITA pruning needs a classifier of sequences or tokens of one of the types {', '.join(ENCODERS)}, "
        f"not {name}. A TinyBERT-style student takes any encoder as its teacher."
    )


def require_prunable(model: PreTrainedModel) -> Parts:
    """Return the parts of ``model``, a classifier that ROSITA pruning supports.

    Raises:
        HskdError: ROSITA pruning does not support the model.
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
    """Return ``|d loss / d w| * |w|``, summed over ``batches`` and over the weights of each head and neuron.

    Dropout is off unless ``dropout_seed`` is given.

    The weights of an attention head are its columns of the attention's output matrix. The weights of an FFN neuron are
    its row in each matrix that computes it and its column in the FFN's output matrix. The loss is the task head's,
    against gold labels. The model is restored afterwards.

    Args:
        model: a classifier (see :func:`require_prunable`), on the device to compute on.
        head: the head of the model's task.
        batches: ``input_ids``, ``attention_mask``, optionally ``token_type_ids``, each ``(batch, tokens)``, and
            ``labels`` as ``head`` expects them, such as ``(batch,)`` for one class per example. Other tensors are
            ignored unless ``head`` reads them.
        progress: advances after each batch.
        dropout_seed: keep dropout on, drawn from this seed. The caller's random state does not change.

    Raises:
        HskdError: the model cannot be pruned, there are no batches, a batch has no labels, or a result is not finite.
    """
    parts = require_prunable(model)
    layers = parts.of(model.base_model)
    heads = neurons = torch.zeros(())
    done = 0
    # Weights of each layer in this order: attention output, FFN output, FFN input.
    paths = (parts.attended, parts.output, *parts.neurons)
    weights: list[Any] = [linear.weight for layer in layers for linear in parts.linears(layer, paths)]
    with _only_differentiable(model, weights), _seeded_dropout(model, dropout_seed):
        for batch in batches:
            loss = _task_loss(model, head, batch)
            # .backward() would leave gradients on the model.
            gradients = torch.autograd.grad(loss, weights)
            terms = [(gradient * weight.detach()).abs() for gradient, weight in zip(gradients, weights, strict=True)]
            head_scores, neuron_scores = [], []
            for index, layer in enumerate(layers):
                attended, out, *into = terms[index * len(paths) : (index + 1) * len(paths)]
                size = head_size(layer.get_submodule(parts.attention))
                head_scores.append(attended.sum(0).view(-1, size).sum(1))
                made = [block.sum(1) for term in into for block in term.chunk(parts.packed)]
                neuron_scores.append(sum(made[1:], made[0]) + out.sum(0))
            # In float32, many small batches would be lost against the running sum.
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
    """Return the task's loss, a scalar.

    The model's own loss is not used because it writes ``problem_type`` into the model's configuration.
    """
    if "labels" not in batch:
        raise HskdError("Taylor importance needs gold labels: a batch has no 'labels'.")
    inputs = model_inputs(batch, model.device)
    on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
    return head.gold_loss(head.rows(model(**inputs), on_device), head.labels(on_device))


@contextmanager
def _seeded_dropout(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Put ``model`` into train mode within the context, with random numbers from ``seed``; None changes nothing."""
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
    """Put ``model`` into eval mode within the context, with gradients for ``weights`` only, and restore it after."""
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
