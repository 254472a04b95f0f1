"""Cut a narrower BERT out of a teacher's body: where a general student starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel

from hskd.tasks import TokenizedSplit


@dataclass(frozen=True, eq=False)
class Start:
    """A narrow student, and the map from its hidden states to the teacher's; None where the widths are equal."""

    student: PreTrainedModel
    projection: nn.Linear | None


def narrow(body: PreTrainedModel, layers: int, width: int, heads: int, ffn: int, split: TokenizedSplit) -> Start:
    """A BERT of these sizes whose hidden states, through the projection, resemble the body's."""
    config = body.config
    student = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=getattr(config, "type_vocab_size", 2),
            pad_token_id=config.pad_token_id,
        )
    )
    projection = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None
    return Start(student, projection)
