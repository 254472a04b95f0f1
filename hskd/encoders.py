"""Where encoders keep the parts that hskd cuts, fits and runs one by one.

One description serves pruning, narrowing and the lean forward pass. It imports nothing of hskd, and
neither torch nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

PRUNED = "rosita"
"""Model type of a pruned BERT, and what the types of other pruned encoders begin with: ``rosita-roberta``."""


@dataclass(frozen=True)
class Parts:
    """Paths of an encoder's parts.

    Attributes:
        layers: the list of layers, from the body.
        attention: the module that computes attention, from a layer, as are all below.
        projections: linear maps to queries, keys and values; one for all three where they are packed, one after the
            other.
        attended: the linear map of the heads' outputs.
        neurons: linear maps to the FFN's neurons: two of one size where one gates the other, perhaps packed in one.
        packed: how many values of a neuron one of ``neurons`` gives.
        embedding_norm: the LayerNorm of the embeddings, from the body.
        output: the linear map of the FFN's neurons.
        ffn_field: the field of the configuration that counts the neurons.
        head_size_field: the field that sets the size of a head, where heads need not fill the hidden size.
        attended_norm: the LayerNorm behind ``attended`` and the residual connection; if ``is_pre_norm``, the one before
            attention.
        output_norm: the one behind ``output`` and the residual connection; if ``is_pre_norm``, the one before the FFN.
        is_pre_norm: whether norms stand before attention and FFN, and another one behind the last layer.
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
        """The layers of a body."""
        return body.get_submodule(self.layers)  # type: ignore[return-value]

    def linears(self, layer: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
        """Linear maps of a layer, by their paths."""
        return [layer.get_submodule(name) for name in names]  # type: ignore[misc]

    def head_rows(self, columns: torch.Tensor, width: int) -> torch.Tensor:
        """Rows of one of ``projections`` that make ``columns`` of the heads' outputs, which are ``width`` wide."""
        return _rows(columns, width, 3 // len(self.projections))

    def neuron_rows(self, neurons: torch.Tensor, count: int) -> torch.Tensor:
        """Rows of one of ``neurons`` that make some of ``count`` neurons."""
        return _rows(neurons, count, self.packed)

    def queries_keys_values(self, outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of what ``projections`` give."""
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
"""The encoders that can be pruned, narrowed and run layer by layer, by the name of their type in ``transformers``."""


ROTARY = ("modernbert", "nomic_bert")
"""Those of them that turn queries and keys by their positions: a head's columns cannot be mixed."""


def base_type(config: Any) -> str:
    """The type of model that a configuration is of; of a pruned student, the type that it was pruned from."""
    model_type = str(config.model_type)
    return "bert" if model_type == PRUNED else model_type.removeprefix(f"{PRUNED}-")


def parts_of(model: Any) -> Parts | None:
    """The parts of a model's body; None where its type is not described here, or it is a decoder."""
    config = model.base_model.config
    return None if getattr(config, "is_decoder", False) else ENCODERS.get(base_type(config))


def head_size(attention: nn.Module) -> int:
    """Width of a head of the module that computes attention in a layer."""
    return int(getattr(attention, "attention_head_size", None) or attention.head_dim)  # type: ignore[arg-type]
