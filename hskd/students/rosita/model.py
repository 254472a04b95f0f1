"""ROSITA: a BERT with fewer heads, narrower FFNs and factorised word embeddings, at the teacher's hidden size.

The pruned student of Liu et al. (ACL 2021, arXiv 2106.05691). With 6 layers, hidden size 768, 2 heads of 64, FFN 768
and rank 128 it has 14,465,282 parameters (vocabulary 30,522, two labels).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
)


class RositaConfig(BertConfig):  # type: ignore[misc]  # untyped base
    """A BERT configuration in which the heads need not fill the hidden size.

    ``num_attention_heads`` counts the heads kept per layer, each ``attention_head_size`` wide. ``embedding_rank`` is
    the rank of the word embeddings; None leaves them one full matrix.
    """

    model_type = "rosita"

    attention_head_size: int = 64
    embedding_rank: int | None = None

    @property
    def embedding_size(self) -> int:
        """Width of the word embedding table.

        BERT demands that the heads divide the hidden size unless its configuration has this attribute.
        """
        return self.embedding_rank or self.hidden_size


class FactorisedEmbedding(nn.Embedding):
    """A ``(vocabulary, rank)`` table followed by a projection to the hidden size.

    It is an ``nn.Embedding`` so that everything which asks a model for its input embeddings finds one.
    """

    def __init__(self, vocabulary: int, rank: int, hidden_size: int, padding_idx: int | None = None) -> None:
        super().__init__(vocabulary, rank, padding_idx=padding_idx)
        self.projection = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(..., hidden_size)`` of the token ids ``input`` ``(...)``."""
        output: torch.Tensor = self.projection(super().forward(input))
        return output


def _reshape(bert: BertModel, config: RositaConfig) -> None:
    """Swap, in place, the modules of ``bert`` that BERT shapes otherwise than ``config`` says."""
    if config.embedding_rank is not None:
        bert.embeddings.word_embeddings = FactorisedEmbedding(
            config.vocab_size, config.embedding_rank, config.hidden_size, config.pad_token_id
        )
    width = config.num_attention_heads * config.attention_head_size
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        attention.attention_head_size = config.attention_head_size
        attention.all_head_size = width
        attention.scaling = config.attention_head_size**-0.5
        attention.query = nn.Linear(config.hidden_size, width)
        attention.key = nn.Linear(config.hidden_size, width)
        attention.value = nn.Linear(config.hidden_size, width)
        layer.attention.output.dense = nn.Linear(width, config.hidden_size)


class RositaModel(BertModel):  # type: ignore[misc]  # untyped base
    """The encoder alone."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        _reshape(self, config)
        self.post_init()  # once more: it draws the weights of the new modules


class RositaForSequenceClassification(BertForSequenceClassification):  # type: ignore[misc]  # untyped base
    """The encoder with a classification (or regression) head. All of BERT's forward pass is inherited."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig) -> None:
        super().__init__(config)
        _reshape(self.bert, config)
        self.post_init()


class RositaForTokenClassification(BertForTokenClassification):  # type: ignore[misc]  # untyped base
    """The encoder with a head that classifies every token. All of BERT's forward pass is inherited."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig) -> None:
        super().__init__(config)
        _reshape(self.bert, config)
        self.post_init()


def register_rosita() -> None:
    """Make the Auto classes and ``pipeline`` know the ``rosita`` model type, so that no remote code is needed."""
    AutoConfig.register("rosita", RositaConfig, exist_ok=True)
    AutoModel.register(RositaConfig, RositaModel, exist_ok=True)
    AutoModelForSequenceClassification.register(RositaConfig, RositaForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(RositaConfig, RositaForTokenClassification, exist_ok=True)
    AutoTokenizer.register(RositaConfig, fast_tokenizer_class=BertTokenizerFast, exist_ok=True)


register_rosita()
