"""ROSITA: an encoder with fewer heads, narrower FFNs and factorised word embeddings, at the teacher's hidden size.

This is the pruned student of Liu et al. (ACL 2021, arXiv 2106.05691). Pruned from BERT with 6 layers, hidden size 768,
2 heads of size 64, 768 FFN neurons and rank 128, it has 14,465,282 parameters (vocabulary 30,522, two labels).

A student pruned from another encoder differs from that encoder in these sizes only. Its model type is ``rosita-`` plus
the encoder's type, unless the encoder's own type can have these sizes
(:func:`hskd.students.rosita.prune.pruned_config`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from hskd.encoders import ENCODERS, PRUNED, base_type

_AUTO_CLASSES = (AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification)


class RositaConfig(BertConfig):  # type: ignore[misc]  # untyped base
    """BERT configuration in which the heads need not fill the hidden size.

    ``num_attention_heads`` is the number of heads kept per layer, each ``attention_head_size`` wide.
    ``embedding_rank`` is the rank of the factorised word embeddings; None keeps them as one full matrix.
    """

    model_type = PRUNED

    attention_head_size: int = 64
    embedding_rank: int | None = None

    @property
    def embedding_size(self) -> int:
        """Width of the word embedding table.

        Without this attribute in its configuration, BERT requires that the number of heads divide the hidden size.
        """
        return self.embedding_rank or self.hidden_size


class FactorisedEmbedding(nn.Embedding):
    """Embedding table ``(vocabulary, rank)`` followed by a projection to the hidden size.

    It subclasses ``nn.Embedding`` because callers expect that type as a model's input embeddings.
    """

    def __init__(self, vocabulary: int, rank: int, hidden_size: int, padding_idx: int | None = None) -> None:
        super().__init__(vocabulary, rank, padding_idx=padding_idx)
        self.projection = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``(..., hidden_size)`` of the token ids ``input`` ``(...)``."""
        output: torch.Tensor = self.projection(super().forward(input))
        return output


class SlicedBiasAttention(MPNetSelfAttention):  # type: ignore[misc]  # untyped base
    """MPNet's attention in one layer of a pruned MPNet, in which each layer keeps different heads.

    In MPNet, each head has a bias for each distance, and all layers share these biases. The pruned model stores the
    biases of all its layers' heads side by side, ``(buckets, layers * heads)``, and each layer uses its own columns.
    """

    def __init__(self, config: PretrainedConfig, index: int) -> None:
        super().__init__(config)
        self.index = index

    def sliced(self, position_bias: torch.Tensor) -> torch.Tensor:
        """Return this layer's part of ``position_bias``, the bias of all layers ``(B, layers * heads, T, T)``."""
        return position_bias.narrow(1, self.index * self.num_attention_heads, self.num_attention_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **options: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Run MPNet's attention with this layer's part of ``position_bias``, the bias of all layers."""
        own_bias = None if position_bias is None else self.sliced(position_bias)
        output: tuple[torch.Tensor, ...] = super().forward(
            hidden_states, attention_mask, own_bias, output_attentions, **options
        )
        return output


@contextmanager
def _one_head(config: PretrainedConfig) -> Iterator[None]:
    """Set a single attention head in ``config`` within the context.

    When encoders are built, they require that the number of heads divide the hidden size.
    """
    heads = config.num_attention_heads
    config.num_attention_heads = 1
    try:
        yield
    finally:
        config.num_attention_heads = heads


def _reshape(body: Any, config: Any) -> None:
    """Replace, in place, the modules of ``body`` that need other sizes than the encoder's type gives them."""
    parts = ENCODERS[base_type(config)]
    words = body.get_input_embeddings()
    if config.embedding_rank is not None:
        body.set_input_embeddings(
            FactorisedEmbedding(
                words.num_embeddings, config.embedding_rank, words.embedding_dim, padding_idx=words.padding_idx
            )
        )
    heads, size = config.num_attention_heads, config.attention_head_size
    width = heads * size
    for index, layer in enumerate(parts.of(body)):
        if base_type(config) == "mpnet":
            with _one_head(config):
                layer.attention.attn = SlicedBiasAttention(config, index)
        attention = layer.get_submodule(parts.attention)
        sizes = {"num_attention_heads": heads, "n_heads": heads, "attention_head_size": size, "head_dim": size}
        for name, value in (sizes | {"all_head_size": width, "scaling": size**-0.5}).items():
            if hasattr(attention, name):
                setattr(attention, name, value)
        for path in parts.projections:
            _swap(layer, path, config.hidden_size, width * (3 // len(parts.projections)))
        _swap(layer, parts.attended, width, config.hidden_size)
    if base_type(config) == "mpnet":
        bias = body.encoder.relative_attention_bias
        body.encoder.relative_attention_bias = nn.Embedding(bias.num_embeddings, config.num_hidden_layers * heads)


def _swap(layer: nn.Module, path: str, inputs: int, outputs: int) -> None:
    """Replace a linear layer with a new one of the given sizes, which has a bias if the old one has."""
    parent, _, name = path.rpartition(".")
    bias = layer.get_submodule(path).bias is not None
    setattr(layer.get_submodule(parent), name, nn.Linear(inputs, outputs, bias=bias))


class RositaModel(BertModel):  # type: ignore[misc]  # untyped base
    """Pruned BERT encoder without a head."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        _reshape(self, config)
        self.post_init()  # Called again to initialise the new modules.


class RositaForSequenceClassification(BertForSequenceClassification):  # type: ignore[misc]  # untyped base
    """Pruned BERT with a head for classification or regression of sequences. It inherits BERT's forward pass."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig) -> None:
        super().__init__(config)
        _reshape(self.bert, config)
        self.post_init()


class RositaForTokenClassification(BertForTokenClassification):  # type: ignore[misc]  # untyped base
    """Pruned BERT with a head that classifies every token. It inherits BERT's forward pass."""

    config: RositaConfig
    config_class = RositaConfig

    def __init__(self, config: RositaConfig) -> None:
        super().__init__(config)
        _reshape(self.bert, config)
        self.post_init()


def _pruned_config(base: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """Return the configuration class of a pruned encoder, a subclass of ``base`` (see :class:`RositaConfig`)."""

    class Config(base):  # type: ignore[valid-type,misc]  # dynamic base
        model_type = f"{PRUNED}-{base.model_type}"

        attention_head_size: int = 64
        embedding_rank: int | None = None

    if not hasattr(base, "head_dim"):
        # Rotary embeddings read their size from head_dim.
        Config.head_dim = property(lambda config: config.attention_head_size)  # type: ignore[attr-defined]
    return _named(Config, f"Rosita{base.__name__}")


def _pruned_model(base: type[PreTrainedModel], config_class: type[PretrainedConfig]) -> type[PreTrainedModel]:
    """Return a subclass of the model ``base``, with or without a head, that has the sizes in its ``config_class``."""

    class Model(base):  # type: ignore[valid-type,misc]  # dynamic base
        def __init__(self, config: PretrainedConfig, **options: Any) -> None:
            with _one_head(config):
                super().__init__(config, **options)
            _reshape(self.base_model, config)
            self.post_init()

    Model.config_class = config_class
    return _named(Model, f"Rosita{base.__name__}")


def _named(made: type, name: str) -> type:
    """Name the class ``made`` and add it to this module: config.json stores the name, and pickle looks it up."""
    made.__name__ = made.__qualname__ = name
    made.__module__ = __name__
    globals()[name] = made
    return made


def register_rosita() -> None:
    """Register the pruned model types with the Auto classes and ``pipeline``, so that no remote code is needed."""
    bert = (RositaModel, RositaForSequenceClassification, RositaForTokenClassification)
    AutoConfig.register(PRUNED, RositaConfig, exist_ok=True)
    for auto_class, model in zip(_AUTO_CLASSES, bert, strict=True):
        auto_class.register(RositaConfig, model, exist_ok=True)
    AutoTokenizer.register(RositaConfig, fast_tokenizer_class=BertTokenizerFast, exist_ok=True)
    for model_type in ENCODERS:
        if model_type != "bert":
            base = CONFIG_MAPPING[model_type]
            config_class = _pruned_config(base)
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
            for auto_class in _AUTO_CLASSES:
                model = _pruned_model(auto_class._model_mapping[base], config_class)
                auto_class.register(config_class, model, exist_ok=True)


register_rosita()
