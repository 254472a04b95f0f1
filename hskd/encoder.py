"""The forward pass of a BERT-shaped encoder that computes no more than what is read of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hskd.dropout import CheapDropout


def is_bert_shaped(model: PreTrainedModel) -> bool:
    """Whether the layers of ``model`` can be run one by one here: BERT itself and what is built of its layers."""
    base = model.base_model
    if not isinstance(base, BertModel) or base.config.is_decoder:
        return False
    return not getattr(base.encoder.layer[0], "gradient_checkpointing", False)


def hidden_states(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], top: int, rows: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Hidden states 0 (the embedding output) to ``top`` of an encoder; layers above, pooler and head do not run.

    Args:
        model: any encoder; one that is not BERT-shaped runs whole, with the same result.
        inputs: ``input_ids`` ``(B, T)``, perhaps ``attention_mask`` and ``token_type_ids``.
        top: the highest hidden state wanted.
        rows: positions ``(B, k)`` at which the highest state is wanted; None for all. Other tokens of that layer
            cost their keys and values only.

    Returns:
        ``top + 1`` tensors ``(B, T, d)``, the last of them ``(B, k, d)`` where ``rows`` are given.
    """
    base = model.base_model
    if not is_bert_shaped(model):
        states = list(base(**inputs, output_hidden_states=True).hidden_states[: top + 1])
        return states if rows is None else [*states[:-1], _at(states[-1], rows)]
    mask = inputs.get("attention_mask")
    hidden = base.embeddings(inputs["input_ids"], inputs.get("token_type_ids"))
    attended = None if mask is None or bool(mask.all()) else mask[:, None, None].bool()
    states = [hidden]
    for index in range(top):
        last = index == top - 1
        states.append(_run_layer(base.encoder.layer[index], states[-1], attended, rows if last else None))
    return states if top or rows is None else [_at(hidden, rows)]


def _at(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``(B, T, d)`` at positions ``(B, k)``: ``(B, k, d)``."""
    return states.gather(1, rows[:, :, None].expand(-1, -1, states.shape[2]))


def _layer(layer: Any, hidden: torch.Tensor, attended: torch.Tensor | None, rows: torch.Tensor | None) -> torch.Tensor:
    """One encoder layer, ``(B, T, d)`` to ``(B, T, d)``, or to ``(B, k, d)`` at ``rows``."""
    attention = layer.attention.self
    asking = hidden if rows is None else _at(hidden, rows)
    query, key, value = (
        projection(states).unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)
        for projection, states in ((attention.query, asking), (attention.key, hidden), (attention.value, hidden))
    )
    context = _attend(query, key, value, attended, attention.scaling, attention.dropout)
    output: torch.Tensor = layer.attention.output(context.transpose(1, 2).flatten(2), asking)
    output = layer.feed_forward_chunk(output)
    return output


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attended: torch.Tensor | None,
    scaling: float,
    dropout: Any,
) -> torch.Tensor:
    """Attention ``(B, heads, k, d)``; ``attended`` ``(B, 1, 1, T)`` is True where a token may be looked at."""
    if not (dropout.training and isinstance(dropout, CheapDropout)):
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attended, p, scale=scaling)
    # With dropout, torch's own kernel on a CPU does just this, and draws a random number for every pair of tokens.
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attended is not None:
        scores = scores.masked_fill(~attended, torch.finfo(scores.dtype).min)
    return torch.matmul(dropout(scores.softmax(-1)), value)


_run_layer: Callable[..., torch.Tensor] = _layer


@contextmanager
def compiled_layers(backend: str | None = "inductor") -> Iterator[None]:
    """Within, the layers run through ``torch.compile``, for every length with one compilation; None changes nothing."""
    global _run_layer
    before = _run_layer
    if backend is not None:
        _run_layer = torch.compile(_layer, dynamic=True, backend=backend)
    try:
        yield
    finally:
        _run_layer = before


def class_logits(model: Any, inputs: dict[str, torch.Tensor], rows: torch.Tensor | None = None) -> torch.Tensor:
    """Logits ``(B, C)`` of a BERT classifier, its last layer computed at ``rows`` (see :func:`hidden_states`) alone."""
    pooled = model.base_model.pooler(hidden_states(model, inputs, model.config.num_hidden_layers, rows)[-1])
    logits: torch.Tensor = model.classifier(model.dropout(pooled))
    return logits


def takes_cls_only(model: nn.Module) -> bool:
    """Whether :func:`cls_only` changes ``model``: a BERT classifier, all of whose parameters give its logits."""
    return isinstance(model, BertForSequenceClassification) and is_bert_shaped(model)


@contextmanager
def cls_only(model: nn.Module) -> Iterator[None]:
    """Within, a BERT classifier computes in its last layer what its pooler reads: ``[CLS]``. Others stay as they are.

    ``model`` takes the inputs of :func:`hidden_states` and gives logits, and no loss.
    """
    lean = takes_cls_only(model)
    before = model.__dict__.get("forward")

    def forward(self: Any, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        first = torch.zeros((len(inputs["input_ids"]), 1), dtype=torch.long, device=inputs["input_ids"].device)
        return SequenceClassifierOutput(logits=class_logits(self, inputs, first))

    if lean:
        model.forward = types.MethodType(forward, model)
    try:
        yield
    finally:
        if lean and before is not None:
            model.forward = before
        elif lean:
            del model.__dict__["forward"]
