"""Run one layer of an encoder, at selected tokens only, for each supported type of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hskd.fast.dropout import CheapDropout


@dataclass(frozen=True)
class Surroundings:
    """Inputs of a layer other than the hidden states.

    Attributes:
        attended: attention mask, ``(B or 1, heads or 1, T or 1, T)``: True where a token may attend to another, or a
            number that is added to the score. None if every token may attend to all.
        turn: cosines and sines ``(1, T, d)`` of rotary positions, which rotate queries and keys; None for encoders
            without rotary positions.
    """

    attended: torch.Tensor | None = None
    turn: tuple[torch.Tensor, torch.Tensor] | None = None

    def at(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Return ``attended`` for the tokens at positions ``rows`` ``(B, k)``; None for all tokens."""
        attended = self.attended
        if attended is None or rows is None or attended.shape[2] == 1:
            return attended
        heads, tokens = attended.shape[1], attended.shape[3]
        index = rows[:, None, :, None].expand(-1, heads, -1, tokens)
        return attended.expand(len(rows), -1, -1, -1).gather(2, index)


ALL = Surroundings()
RunLayer = Callable[[Any, torch.Tensor, Surroundings, torch.Tensor | None], torch.Tensor]
"""Runs one encoder layer as :func:`run_layer` does."""


def run_layer(
    layer: Any, hidden: torch.Tensor, surroundings: Surroundings = ALL, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """Run one encoder layer, ``(B, T, d)`` to ``(B, T, d)``, or to ``(B, k, d)`` at positions ``rows`` ``(B, k)``."""
    return LAYERS[type(layer).__name__](layer, hidden, surroundings, rows)


def at(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return ``states`` ``(B, T, d)`` at positions ``rows`` ``(B, k)``, as ``(B, k, d)``; None returns all."""
    return states if rows is None else states.gather(1, rows[:, :, None].expand(-1, -1, states.shape[2]))


def _run_bert(layer: Any, hidden: torch.Tensor, near: Surroundings, rows: torch.Tensor | None) -> torch.Tensor:
    attention = layer.attention.self
    asking = at(hidden, rows)
    context = _attend(
        _split(attention.query(asking), attention.attention_head_size),
        _split(attention.key(hidden), attention.attention_head_size),
        _split(attention.value(hidden), attention.attention_head_size),
        near.at(rows),
        attention.scaling,
        attention.dropout,
    )
    output: torch.Tensor = layer.attention.output(context, asking)
    output = layer.feed_forward_chunk(output)
    return output


def _run_distilbert(layer: Any, hidden: torch.Tensor, near: Surroundings, rows: torch.Tensor | None) -> torch.Tensor:
    attention = layer.attention
    asking = at(hidden, rows)
    context = _attend(
        _split(attention.q_lin(asking), attention.attention_head_size),
        _split(attention.k_lin(hidden), attention.attention_head_size),
        _split(attention.v_lin(hidden), attention.attention_head_size),
        near.at(rows),
        attention.scaling,
        attention.dropout,
    )
    attended = layer.sa_layer_norm(attention.out_lin(context) + asking)
    output: torch.Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
    return output


def _run_mpnet(layer: Any, hidden: torch.Tensor, near: Surroundings, rows: torch.Tensor | None) -> torch.Tensor:
    attention = layer.attention.attn
    asking = at(hidden, rows)
    if near.attended is not None and hasattr(attention, "sliced"):
        near = Surroundings(attention.sliced(near.attended))
    context = _attend(
        _split(attention.q(asking), attention.attention_head_size),
        _split(attention.k(hidden), attention.attention_head_size),
        _split(attention.v(hidden), attention.attention_head_size),
        near.at(rows),
        attention.attention_head_size**-0.5,
        attention.dropout,
    )
    attended = layer.attention.LayerNorm(layer.attention.dropout(attention.o(context)) + asking)
    output: torch.Tensor = layer.output(layer.intermediate(attended), attended)
    return output


def _run_modernbert(layer: Any, hidden: torch.Tensor, near: Surroundings, rows: torch.Tensor | None) -> torch.Tensor:
    attention = layer.attn
    normal = layer.attn_norm(hidden)
    if rows is None:
        packed = attention.Wqkv(normal).chunk(3, -1)
    else:
        biases = (None,) * 3 if attention.Wqkv.bias is None else attention.Wqkv.bias.chunk(3)
        read = (at(normal, rows), normal, normal)
        packed = [F.linear(*given) for given in zip(read, attention.Wqkv.weight.chunk(3), biases, strict=True)]
    query, key, value = (_split(states, attention.head_dim) for states in packed)
    query, key = _turned(query, key, near, rows)
    dropped = attention.attention_dropout if attention.training else 0.0
    context = _attend(query, key, value, near.at(rows), attention.head_dim**-0.5, dropped)
    attended = at(hidden, rows) + attention.out_drop(attention.Wo(context))
    output: torch.Tensor = attended + layer.mlp(layer.mlp_norm(attended))
    return output


def _run_nomic(layer: Any, hidden: torch.Tensor, near: Surroundings, rows: torch.Tensor | None) -> torch.Tensor:
    attention = layer.self_attn
    asking = at(hidden, rows)
    query = _split(attention.q_proj(asking), attention.head_dim)
    key = _split(attention.k_proj(hidden), attention.head_dim)
    value = _split(attention.v_proj(hidden), attention.head_dim)
    query, key = _turned(query, key, near, rows)
    dropped = attention.attention_dropout if attention.training else 0.0
    context = _attend(query, key, value, near.at(rows), attention.scaling, dropped)
    attended = layer.post_attention_layernorm(asking + layer.post_attention_dropout(attention.o_proj(context)))
    output: torch.Tensor = layer.post_mlp_layernorm(attended + layer.post_mlp_dropout(layer.mlp(attended)))
    return output


LAYERS: dict[str, RunLayer] = {
    "BertLayer": _run_bert,
    "RobertaLayer": _run_bert,
    "XLMRobertaLayer": _run_bert,
    "CamembertLayer": _run_bert,
    "ElectraLayer": _run_bert,
    "TransformerBlock": _run_distilbert,
    "MPNetLayer": _run_mpnet,
    "ModernBertEncoderLayer": _run_modernbert,
    "NomicBertLayer": _run_nomic,
}
"""Name of a layer's class -> function that runs such a layer."""


def _split(states: torch.Tensor, size: int) -> torch.Tensor:
    """Reshape ``(B, T, heads * size)`` to ``(B, heads, T, size)``."""
    return states.unflatten(2, (-1, size)).transpose(1, 2)


def _turned(
    query: torch.Tensor, key: torch.Tensor, near: Surroundings, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply rotary positions to queries ``(B, heads, k, d)`` and keys ``(B, heads, T, d)``."""
    assert near.turn is not None
    cosines, sines = (table.float() for table in near.turn)
    # Each query is rotated by its own position.
    own_cosines, own_sines = ((table[0][rows] if rows is not None else table)[:, None] for table in (cosines, sines))
    turned = (
        (states.float() * cosine + torch.cat(states.float().chunk(2, -1)[::-1], -1) * sine).to(states.dtype)
        for states, cosine, sine in (
            (query, own_cosines, _signed(own_sines)),
            (key, cosines[:, None], _signed(sines[:, None])),
        )
    )
    return next(turned), next(turned)


def _signed(sines: torch.Tensor) -> torch.Tensor:
    """Return the sines with the signs for a state whose two halves have been swapped."""
    first, second = sines.chunk(2, -1)
    return torch.cat([-first, second], -1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attended: torch.Tensor | None,
    scaling: float,
    dropout: Any,
) -> torch.Tensor:
    """Return the outputs of the heads, ``(B, k, heads * d)``.

    ``attended`` is as in :class:`Surroundings`. ``dropout`` is a module or a probability.
    """
    if not (isinstance(dropout, CheapDropout) and dropout.training):
        p = dropout if isinstance(dropout, float | int) else dropout.p if dropout.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attended, p, scale=scaling)
        return context.transpose(1, 2).flatten(2)
    # On a CPU with dropout, torch's own kernel does the same, but draws a random number for every pair of tokens.
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attended is not None:
        is_mask = attended.dtype == torch.bool
        scores = scores.masked_fill(~attended, torch.finfo(scores.dtype).min) if is_mask else scores + attended
    return torch.matmul(dropout(scores.softmax(-1)), value).transpose(1, 2).flatten(2)
