"""Encoder that gives a normalised vector for each text, saved in the format of sentence-transformers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import ModelOutput

from hskd.artifacts import MODULES
from hskd.heads.embedding.layout import POOLINGS, read_layout
from hskd.io import write_json

DENSE_FILE = "model.safetensors"


@dataclass
class EmbeddingOutput(ModelOutput):  # type: ignore[misc]  # untyped base
    """Vectors ``(B, D)``, and all hidden states if they were requested."""

    embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class EmbeddingModel(PreTrainedModel):  # type: ignore[misc]  # untyped base
    """An encoder, pooling, a linear layer if the encoder's width differs from the vector size, and normalisation.

    Args:
        body: the encoder, without its pooler.
        pooling: ``cls``, ``mean`` or ``max`` over the real tokens.
        size: size of a vector.
        dense: whether to add the linear layer even if the sizes are equal.
    """

    config_class = PretrainedConfig
    base_model_prefix = "body"
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, body: PreTrainedModel, pooling: str, size: int, dense: bool = False) -> None:
        super().__init__(body.config)
        self.body = body
        self.pooling = pooling
        self.embedding_size = size
        width = body.config.hidden_size
        self.dense = nn.Linear(width, size) if dense or width != size else None
        # A model's fingerprint includes its label names, and has to distinguish poolings.
        self.config.id2label = {0: f"embedding ({pooling})"}
        self.config.label2id = {f"embedding ({pooling})": 0}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> EmbeddingOutput:
        """Return the vectors of padded texts ``(B, T)``. Pads are ignored."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.body(input_ids, attention_mask=attention_mask, output_hidden_states=output_hidden_states, **types)
        vectors = self.embed(output.last_hidden_state, attention_mask)
        return EmbeddingOutput(embedding=vectors, hidden_states=output.hidden_states)

    def embed(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the vectors ``(B, D)`` from the states of the top layer ``(B, T, d)``."""
        mask = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask
        real = mask[:, :, None].to(states.dtype)
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "max":
            pooled = states.masked_fill(real == 0, -torch.inf).amax(1)
        else:
            pooled = (states * real).sum(1) / real.sum(1)
        return F.normalize((pooled if self.dense is None else self.dense(pooled)).float(), dim=1)

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's input embeddings."""
        return self.body.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's input embeddings."""
        self.body.set_input_embeddings(value)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save everything that ``SentenceTransformer(folder)`` loads, except the tokenizer."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.body.save_pretrained(folder, **kwargs)
        names = ["Transformer", "Pooling", *(["Dense"] if self.dense is not None else []), "Normalize"]
        modules = [
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{name}",
                "type": f"sentence_transformers.models.{name}",
            }
            for index, name in enumerate(names)
        ]
        for module in modules[1:]:
            (folder / str(module["path"])).mkdir(exist_ok=True)
        pooling: dict[str, Any] = {"word_embedding_dimension": self.config.hidden_size}
        pooling |= {field: name == self.pooling for name, field in POOLINGS.items()}
        write_json(folder / "1_Pooling" / "config.json", pooling)
        if self.dense is not None:
            dense = {
                "in_features": self.dense.in_features,
                "out_features": self.dense.out_features,
                "bias": True,
                "activation_function": "torch.nn.modules.linear.Identity",
            }
            write_json(folder / "2_Dense" / "config.json", dense)
            weights = {f"linear.{name}": tensor.contiguous() for name, tensor in self.dense.state_dict().items()}
            save_file(weights, folder / "2_Dense" / DENSE_FILE)
        write_json(folder / MODULES, modules)


@dataclass(frozen=True)
class EmbeddingLoader:
    """Builds and loads an :class:`EmbeddingModel`, like an Auto class of ``transformers``.

    Attributes:
        size: vector size of a model that has no linear layer yet; 0 for the encoder's width.
    """

    size: int = 0

    def from_config(self, config: PretrainedConfig, **kwargs: Any) -> EmbeddingModel:
        """Return a model with random weights and mean pooling."""
        body = AutoModel.from_config(config, **kwargs, **_no_pooler(config))
        return EmbeddingModel(body, "mean", self.size or config.hidden_size)

    def from_pretrained(
        self,
        folder: str | Path,
        *,
        config: PretrainedConfig | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the model in a folder; ``output_loading_info`` also returns its missing and unexpected weights."""
        layout = read_layout(str(folder))
        # These options are for Auto classes that configure a head through the encoder's configuration.
        for name in ("num_labels", "id2label", "label2id"):
            kwargs.pop(name, None)
        if config is None:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(layout.encoder, local_files_only=kwargs.get("local_files_only", False))
        body, info = AutoModel.from_pretrained(
            layout.encoder, config=config, output_loading_info=True, **kwargs, **_no_pooler(config)
        )
        dense = None if layout.dense is None else load_file(layout.dense / DENSE_FILE)
        size = self.size or config.hidden_size
        if dense is not None:
            size = len(dense["linear.weight"])
        model = EmbeddingModel(body, layout.pooling, size, dense is not None)
        missing = {f"body.{name}" for name in info["missing_keys"]}
        if dense is not None and model.dense is not None:
            state = {name: dense.get(f"linear.{name}", torch.zeros(size)) for name in ("weight", "bias")}
            model.dense.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        elif model.dense is not None:
            missing |= {"dense.weight", "dense.bias"}
        loading_info = {
            "missing_keys": missing,
            "unexpected_keys": {name for name in info["unexpected_keys"] if "pooler" not in name},
            "mismatched_keys": {(f"body.{name}", *shapes) for name, *shapes in info["mismatched_keys"]},
        }
        model.eval()
        return (model, loading_info) if output_loading_info else model


def _no_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """Return the options that leave out an encoder's own pooler, which no vector depends on."""
    takes = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
