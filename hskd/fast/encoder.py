"""The forward pass of a BERT-shaped encoder that computes no more than what is read of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hskd.fast.dropout import CheapDropout

RunLayer = Callable[[Any, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]
"""Runs one encoder layer as :func:`run_layer` does."""


def is_bert_shaped(model: PreTrainedModel) -> bool:
    """Whether the layers of ``model`` can be run one by one here: BERT itself and what is built of its layers."""
    base = model.base_model
    if not isinstance(base, BertModel) or base.config.is_decoder:
        return False
    return not getattr(base.encoder.layer[0], "gradient_checkpointing", False)


def run_layer(
    layer: Any, hidden: torch.Tensor, attended: torch.Tensor | None, rows: torch.Tensor | None
) -> torch.Tensor:
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


def compiled_layer(backend: str = "inductor") -> RunLayer:
    """:func:`run_layer` through ``torch.compile``, for every length with one compilation."""
    return torch.compile(run_layer, dynamic=True, backend=backend)


class LeanEncoder:
    """Runs a model no further than what is read of it.

    A model that is not BERT-shaped runs whole, with the same result.

    Args:
        model: any encoder, with or without a head.
        run_layer: runs one layer; :func:`compiled_layer` gives a compiled one.
    """

    def __init__(self, model: PreTrainedModel, run_layer: RunLayer = run_layer) -> None:
        self.model = model
        self._run_layer = run_layer

    @property
    def reads_every_parameter(self) -> bool:
        """Whether all parameters of the model take part in :meth:`output`, as far as is known."""
        heads = BertForSequenceClassification, BertForTokenClassification
        return isinstance(self.model, heads) and is_bert_shaped(self.model)

    def hidden_states(
        self,
        inputs: dict[str, torch.Tensor],
        top: int,
        rows: torch.Tensor | None = None,
        padded: bool | None = None,
    ) -> list[torch.Tensor]:
        """Hidden states 0 (the embedding output) to ``top``; layers above, pooler and head do not run.

        Args:
            inputs: ``input_ids`` ``(B, T)``, perhaps ``attention_mask`` and ``token_type_ids``.
            top: the highest hidden state to compute.
            rows: positions ``(B, k)`` at which to compute the highest state; None for all. Other tokens of that layer
                cost their keys and values only.
            padded: whether the batch has pads; None to find out from the mask, for which a GPU has to be waited for.

        Returns:
            ``top + 1`` tensors ``(B, T, d)``, the last of them ``(B, k, d)`` where ``rows`` are given.
        """
        base = self.model.base_model
        if not is_bert_shaped(self.model):
            states = list(base(**inputs, output_hidden_states=True).hidden_states[: top + 1])
            return states if rows is None else [*states[:-1], _at(states[-1], rows)]
        mask = inputs.get("attention_mask")
        hidden = base.embeddings(inputs["input_ids"], inputs.get("token_type_ids"))
        if padded is None:
            padded = mask is not None and not bool(mask.all())
        attended = mask[:, None, None].bool() if mask is not None and padded else None
        states = [hidden]
        for index in range(top):
            last = index == top - 1
            states.append(self._run_layer(base.encoder.layer[index], states[-1], attended, rows if last else None))
        return states if top or rows is None else [_at(hidden, rows)]

    def output(
        self, inputs: dict[str, torch.Tensor], rows: torch.Tensor | None = None, padded: bool | None = None
    ) -> Any:
        """The model's raw output, as its own forward pass gives it.

        Args:
            inputs: see :meth:`hidden_states`.
            rows: positions ``(B, k)`` that the head reads in the top layer, the first of them that of ``[CLS]``; None
                for all. The last layer of a BERT classifier is computed there alone.
            padded: see :meth:`hidden_states`.
        """
        model: Any = self.model
        if not self.reads_every_parameter:
            return model(**inputs)
        states = self.hidden_states(inputs, model.config.num_hidden_layers, rows, padded)
        if isinstance(model, BertForTokenClassification):
            return TokenClassifierOutput(logits=model.classifier(model.dropout(states[-1])))
        pooled = model.base_model.pooler(states[-1])
        return SequenceClassifierOutput(logits=model.classifier(model.dropout(pooled)))


def _at(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``(B, T, d)`` at positions ``(B, k)``: ``(B, k, d)``."""
    return states.gather(1, rows[:, :, None].expand(-1, -1, states.shape[2]))


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
