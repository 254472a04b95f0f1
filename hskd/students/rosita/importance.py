"""How much each attention head and FFN neuron of a BERT matters to its task, by first-order Taylor expansion.

Removing a weight changes the loss by about ``|d loss / d w| * |w|`` (Molchanov et al. 2017; the paper's ROSITA
student is pruned by it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertForTokenClassification, PreTrainedModel

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


BertClassifier: TypeAlias = "BertForSequenceClassification | BertForTokenClassification"


def require_bert_shaped(model: PreTrainedModel) -> BertClassifier:
    """``model`` itself, if ROSITA pruning knows its modules.

    Raises:
        HskdError: it is not a BERT classifier.
    """
    if not isinstance(model, BertForSequenceClassification | BertForTokenClassification):
        raise HskdError(
            "ROSITA pruning needs a BERT-shaped teacher (BertForSequenceClassification or BertForTokenClassification), "
            f"not {type(model).__name__}. A student of the TinyBERT type takes any encoder as its teacher."
        )
    return model


def taylor_importance(
    model: PreTrainedModel,
    head: Head,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    progress: Progress | None = None,
    dropout_seed: int | None = None,
) -> Importance:
    """Sum over ``batches`` of ``|d loss / d w| * |w|``, dropout off, summed over the weights of each head and neuron.

    A head owns its columns of ``attention.output.dense.weight``; an FFN neuron its row of
    ``intermediate.dense.weight`` and its column of ``output.dense.weight``. The loss is the head's against gold labels.
    The model is left as it was found.

    Args:
        model: a BERT classifier, on the device to compute on.
        head: the head of the model's task.
        batches: ``input_ids``, ``attention_mask``, optionally ``token_type_ids``, each ``(batch, tokens)``, and
            ``labels`` ``(batch,)``; anything else in a batch is ignored.
        progress: advances after each batch.
        dropout_seed: leave dropout on, drawn from this seed (the caller's random state does not move).

    Raises:
        HskdError: the model is not BERT-shaped, there are no batches, a batch has no labels, or a result is not
            finite.
    """
    bert = require_bert_shaped(model)
    layers = list(bert.bert.encoder.layer)
    heads = neurons = torch.zeros(())
    done = 0
    # Per layer, in this order: attention output, FFN in, FFN out.
    weights = [
        dense.weight
        for layer in layers
        for dense in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    ]
    with _only_differentiable(bert, weights), _seeded_dropout(bert, dropout_seed):
        for batch in batches:
            loss = _task_loss(bert, head, batch)
            # Not .backward(): that would leave gradients on the model.
            gradients = torch.autograd.grad(loss, weights)
            terms = [(gradient * weight.detach()).abs() for gradient, weight in zip(gradients, weights, strict=True)]
            head_scores = [
                term.sum(0).view(layer.attention.self.num_attention_heads, -1).sum(1)
                for layer, term in zip(layers, terms[0::3], strict=True)
            ]
            neuron_scores = [into.sum(1) + out.sum(0) for into, out in zip(terms[1::3], terms[2::3], strict=True)]
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


def _task_loss(model: BertClassifier, head: Head, batch: Mapping[str, Tensor]) -> Tensor:
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
