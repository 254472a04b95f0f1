"""Where each supported encoder type keeps its parts: layers, attention, feed-forward network and norms.

Pruning, narrowing and the lean forward pass share this description. The module imports nothing of hskd at run time,
nor any model code, and torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

PRUNED = "rosita"
"""Model type of a pruned BERT, and prefix of the types of other pruned encoders, such as ``rosita-roberta``."""


@dataclass(frozen=True)
class Parts:
    """Paths of an encoder's modules. ``layers`` and ``embedding_norm`` are relative to the body, others to a layer.

    Attributes:
        layers: the list of layers.
        attention: the module that computes attention.
        projections: the linear maps to queries, keys and values; a single map if it gives all three, concatenated.
        attended: the linear map of the concatenated heads' outputs.
        neurons: the linear maps to the FFN's neurons. In a gated FFN, there are two of the same size, or one that
            packs both.
        packed: number of values per neuron that one of ``neurons`` gives.
        embedding_norm: the LayerNorm of the embeddings.
        output: the linear map from the FFN's neurons.
        ffn_field: the configuration field with the number of neurons.
        head_size_field: the configuration field with the size of a head, if heads need not fill the hidden size.
        attended_norm: the LayerNorm after ``attended`` and the residual connection; with ``is_pre_norm``, the one
            before attention.
        output_norm: the LayerNorm after ``output`` and the residual connection; with ``is_pre_norm``, the one before
            the FFN.
        is_pre_norm: whether there are norms before attention and FFN, and another one after the last layer.
    """

    layers: str
    attention: str
    projections: tuple[str, ...]
    attended: str
    neurons: tuple[str, ...]
    output: str
    attended_norm: str
    output_norm: str
    embedding_norm: str = "embeddings.LayerNorm"
    packed: int = 1
    ffn_field: str = "intermediate_size"
    head_size_field: str | None = None
    is_pre_norm: bool = False

    def of(self, body: nn.Module) -> Sequence[Any]:
        """Return the layers of a body."""
        return body.get_submodule(self.layers)  # type: ignore[return-value]

    def linears(self, layer: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
        """Return linear maps of a layer, by their paths."""
        return [layer.get_submodule(name) for name in names]  # type: ignore[misc]

    def head_rows(self, columns: torch.Tensor, width: int) -> torch.Tensor:
        """Return the rows of a ``projections`` map that compute ``columns`` of the heads' ``width`` outputs."""
        return _rows(columns, width, 3 // len(self.projections))

    def neuron_rows(self, neurons: torch.Tensor, count: int) -> torch.Tensor:
        """Return the rows of a ``neurons`` map that compute the given neurons, out of ``count``."""
        return _rows(neurons, count, self.packed)

    def queries_keys_values(self, outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values, given the outputs of ``projections``."""
        return tuple(part for output in outputs for part in output.chunk(3 // len(outputs), -1))


def _rows(indices: torch.Tensor, count: int, blocks: int) -> torch.Tensor:
    import torch

    return torch.cat([indices + block * count for block in range(blocks)])


_BERT = Parts(
    layers="encoder.layer",
    attention="attention.self",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    attended="attention.output.dense",
    neurons=("intermediate.dense",),
    output="output.dense",
    attended_norm="attention.output.LayerNorm",
    output_norm="output.LayerNorm",
)
ENCODERS = dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT) | {
    "distilbert": Parts(
        layers="transformer.layer",
        attention="attention",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attended="attention.out_lin",
        neurons=("ffn.lin1",),
        output="ffn.lin2",
        attended_norm="sa_layer_norm",
        output_norm="output_layer_norm",
        ffn_field="hidden_dim",
    ),
    "mpnet": Parts(
        layers="encoder.layer",
        attention="attention.attn",
        projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attended="attention.attn.o",
        neurons=("intermediate.dense",),
        output="output.dense",
        attended_norm="attention.LayerNorm",
        output_norm="output.LayerNorm",
    ),
    "modernbert": Parts(
        layers="layers",
        attention="attn",
        projections=("attn.Wqkv",),
        attended="attn.Wo",
        neurons=("mlp.Wi",),
        output="mlp.Wo",
        attended_norm="attn_norm",
        output_norm="mlp_norm",
        embedding_norm="embeddings.norm",
        packed=2,
        is_pre_norm=True,
    ),
    "nomic_bert": Parts(
        layers="layers",
        attention="self_attn",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attended="self_attn.o_proj",
        neurons=("mlp.gate_proj", "mlp.up_proj"),
        output="mlp.down_proj",
        attended_norm="post_attention_layernorm",
        output_norm="post_mlp_layernorm",
        head_size_field="head_dim",
    ),
}
"""The encoders that can be pruned, narrowed and run layer by layer, by their model type in ``transformers``."""


ROTARY = ("modernbert", "nomic_bert")
"""The encoders with rotary position embeddings. In these, the columns of a head cannot be mixed."""


def base_type(config: Any) -> str:
    """Return the model type of a configuration; for a pruned student, the type that it was pruned from."""
    model_type = str(config.model_type)
    return "bert" if model_type == PRUNED else model_type.removeprefix(f"{PRUNED}-")


def parts_of(model: Any) -> Parts | None:
    """Return the parts of a model's body; None if its type is not in :data:`ENCODERS`, or if it is a decoder."""
    config = model.base_model.config
    return None if getattr(config, "is_decoder", False) else ENCODERS.get(base_type(config))


def head_size(attention: nn.Module) -> int:
    """Return the width of a head of an attention module."""
    return int(getattr(attention, "attention_head_size", None) or attention.head_dim)  # type: ignore[arg-type]
