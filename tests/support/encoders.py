"""A tiny random model of every type of encoder that can be pruned."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from hskd.encoders import base_type

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
TINY: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": _SIZES,
    "xlm-roberta": _SIZES,
    "camembert": _SIZES,
    "electra": _SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 24},
    "mpnet": _SIZES,
    "modernbert": _SIZES
    | {"local_attention": 6, "global_attn_every_n_layers": 2, "attention_dropout": 0.1, "mlp_dropout": 0.1},
    "nomic_bert": _SIZES | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
"""Sizes: 3 layers, 4 heads of 8, 24 neurons. In ModernBERT's second layer a token sees 3 others on either side."""

VOCABULARY = 60
PAD = 1
MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 2 + [0] * 10, [1] * 11 + [0]])
IDS = torch.randint(5, VOCABULARY, MASK.shape, generator=torch.Generator().manual_seed(1)).where(MASK.bool(), PAD)


def tiny(model_type: str, tagger: bool = False, **more: Any) -> PreTrainedModel:
    """Return a random classifier of sequences or tokens, in eval mode; it is the same at every call."""
    fields = {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "id2label": {0: "no", 1: "yes"},
        "label2id": {"no": 0, "yes": 1},
    }
    config = AutoConfig.for_model(model_type, **fields | TINY[model_type] | more)
    auto_class = AutoModelForTokenClassification if tagger else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class.from_config(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias") or "relative_attention_bias" in name or weight.dim() == 1:
                    # Initial biases are 0 and norms 1, so a test would not notice if they were lost.
                    weight.add_(torch.randn_like(weight) * 0.2)
    return model


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return four sequences of 12, 7, 2 and 11 tokens, with token types where the model has them."""
    given = {"input_ids": IDS, "attention_mask": MASK}
    if base_type(model.config) in ("bert", "electra", "nomic_bert"):
        given["token_type_ids"] = (torch.arange(IDS.shape[1]) > 4).long().expand_as(IDS) * MASK
    return given
