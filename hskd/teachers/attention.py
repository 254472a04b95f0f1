"""Read attention during a forward pass: what ``[CLS]`` pays each token, and what each token receives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hskd.encoders import base_type
from hskd.errors import HskdError

OWN_ATTENTION = {
    "deberta": "DisentangledSelfAttention",
    "deberta-v2": "DisentangledSelfAttention",
    "megatron-bert": "MegatronBertSelfAttention",
    "mpnet": "MPNetSelfAttention",
    "rembert": "RemBertSelfAttention",
    "roformer": "RoFormerSelfAttention",
}
"""Types of model that compute all attention weights ``(B, heads, T, T)`` themselves -> class of the attention module.

The module passes the weights to its ``dropout``. All other types that can be read use the attention interface of
``transformers``.
"""

_READING = "hskd_reading"
_ANSWERED = ("sdpa", "eager")
"""Attention implementations that the fused one can replace, because they compute the same result."""


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Attention that was collected from some layers, ``(B, T)`` each, mean over heads.

    Attributes:
        paid: layer -> attention that ``[CLS]`` pays each token.
        received: layer -> attention that each token receives, after softmax, mean over the real tokens that pay it.
    """

    paid: dict[int, torch.Tensor] = field(default_factory=dict)
    received: dict[int, torch.Tensor] = field(default_factory=dict)


def attention_rows(
    model: PreTrainedModel, layers: Sequence[int], received: Sequence[int], mask: torch.Tensor, softmax: bool
) -> AbstractContextManager[AttentionRows]:
    """Collect attention during a forward pass: what ``[CLS]`` pays in ``layers``, what tokens receive in ``received``.

    Args:
        model: any encoder, with or without a head. A layer that the model uses several times, as ALBERT does, counts
            once for each use.
        layers: attention layers, counted from 1, from which to collect the attention that ``[CLS]`` pays.
        received: attention layers, counted from 1, from which to collect the attention that each token receives.
        mask: real tokens ``(B, T)``, bool.
        softmax: whether to collect the attention that ``[CLS]`` pays after softmax; otherwise the scores before it.

    Returns:
        A context for the forward pass. It gives the rows, which are complete after the pass.

    Raises:
        HskdError: the model's attention cannot be read. This may be known only when the context is left.
    """
    if not layers and not received:
        return nullcontext(AttentionRows())
    if name := OWN_ATTENTION.get(base_type(model.config)):
        if not softmax:
            raise HskdError(
                f"the attention scores of a {model.config.model_type} model cannot be read before softmax; "
                "leave out the --compat switch that asks for them."
            )
        return _own_rows(model, name, layers, received, mask)
    if not model.base_model._supports_sdpa or model.config._attn_implementation not in _ANSWERED:
        raise unreadable(model)
    return _interface_rows(model, _Reader(layers, received, mask, softmax))


def unreadable(model: PreTrainedModel) -> HskdError:
    """Return the error for a model whose attention cannot be read."""
    return HskdError(
        f"the attention of a {model.config.model_type} model cannot be read; use a length selector that needs none "
        "(left, cls, random): --spec 1l_10t_0.1w,length=left, or length: [left] in a grid; and with "
        "`hskd store extract` without --spec, --attention-layers none."
    )


def _mean_received(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the attention that each token receives ``(B, T)``: weights ``(B, heads, T, T)`` averaged over the payers.

    The mean is taken over heads and over real tokens.
    """
    shares = weights.mean(dim=1).masked_fill(~mask[:, :, None], 0)  # Weights of pads may be NaN.
    return shares.sum(dim=1) / mask.sum(dim=1, keepdim=True)


@contextmanager
def _own_rows(
    model: PreTrainedModel, name: str, layers: Sequence[int], received: Sequence[int], mask: torch.Tensor
) -> Iterator[AttentionRows]:
    """Collect attention from a model that computes all weights, by reading the input of its attention's dropout."""
    rows = AttentionRows()
    calls = 0

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls in layers:
            rows.paid[calls] = args[0][:, :, 0].detach().float().mean(dim=1)
        if calls in received:
            rows.received[calls] = _mean_received(args[0].detach().float(), mask)

    handles = [
        module.dropout.register_forward_pre_hook(keep)  # type: ignore[operator,union-attr]
        for module in model.modules()
        if any(cls.__name__ == name for cls in type(module).__mro__)
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
    _require_all(model, calls)


class _Reader:
    """Implements the attention interface of ``transformers`` by torch's fused attention, and collects rows.

    Fused attention returns no weights, and computing all weights for one row would be wasteful. The row of ``[CLS]`` is
    computed from the queries, keys and mask that the model passes to the interface. Rotary positions are already
    applied to them.
    """

    def __init__(self, layers: Sequence[int], received: Sequence[int], mask: torch.Tensor, softmax: bool) -> None:
        self.rows = AttentionRows()
        self.calls = 0
        self.causal = False
        self._layers, self._received = frozenset(layers), frozenset(received)
        self._mask, self._softmax = mask, softmax

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of fused attention, ``(B, T, heads, d)``, and None in place of the weights."""
        self.calls += 1
        is_causal = options.get("is_causal")
        self.causal |= bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if self.calls in self._layers:
            scores = self._scores(query[:, :, :1], key, attention_mask, options)
            self.rows.paid[self.calls] = (scores.softmax(dim=-1) if self._softmax else scores).mean(dim=1)[:, 0]
        if self.calls in self._received:
            weights = self._scores(query, key, attention_mask, options).softmax(dim=-1)
            self.rows.received[self.calls] = _mean_received(weights, self._mask)
        output: tuple[torch.Tensor, torch.Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output

    @torch.no_grad()
    def _scores(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, options: dict[str, Any]
    ) -> torch.Tensor:
        """Return scores before softmax ``(B, heads, Q, T)`` of the first ``Q`` queries and all keys.

        Queries and keys are ``(B, heads, ., d)``.
        """
        scaling = options.get("scaling")
        divisor = math.sqrt(query.shape[-1]) if scaling is None else 1 / scaling
        # In grouped-query attention, each head of keys and values serves several heads of queries.
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1) if key.shape[1] != query.shape[1] else key
        scores = torch.einsum("bhqd,bhtd->bhqt", query.float(), keys.float()) / divisor
        rows = query.shape[2]
        if (bias := options.get("position_bias")) is not None:
            scores = scores + bias[:, :, :rows]
        if attention_mask is not None:
            row = attention_mask[:, :, :rows]
            scores = scores.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else scores + row
        return scores.masked_fill(~self._mask[:, None, None], float("-inf"))


_reader: ContextVar[_Reader] = ContextVar("reader of attention")


def _attend(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return _reader.get().attend(*args, **options)


ALL_ATTENTION_FUNCTIONS.register(_READING, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(_READING, sdpa_mask)


@contextmanager
def _interface_rows(model: PreTrainedModel, reader: _Reader) -> Iterator[AttentionRows]:
    # The body may have a configuration of its own, separate from the configuration of the model with head.
    configs: list[PretrainedConfig] = list(
        {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}.values()
    )
    implementations = [config._attn_implementation for config in configs]
    token = _reader.set(reader)
    try:
        for config in configs:
            config._attn_implementation = _READING
        yield reader.rows
    finally:
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation = implementation
        _reader.reset(token)
    if reader.causal:
        raise unreadable(model)
    _require_all(model, reader.calls)


def _require_all(model: PreTrainedModel, calls: int) -> None:
    """Refuse a model whose attention calls do not match its number of layers, so that layers cannot be identified."""
    if calls != model.config.num_hidden_layers:
        raise unreadable(model)
