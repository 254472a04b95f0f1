"""Forward pass of an encoder that computes only the results that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hskd.encoders import Parts, base_type, parts_of
from hskd.fast.layers import LAYERS, RunLayer, Surroundings, at, run_layer


def runs_by_layer(model: PreTrainedModel) -> bool:
    """Return whether the layers of ``model`` can be run one by one, as for the types in :mod:`hskd.encoders`."""
    parts = parts_of(model)
    if parts is None:
        return False
    layer = parts.of(model.base_model)[0]
    return type(layer).__name__ in LAYERS and not getattr(layer, "gradient_checkpointing", False)


def compiled_layer(backend: str = "inductor") -> RunLayer:
    """Return :func:`~hskd.fast.layers.run_layer` through ``torch.compile``, with one compilation for all lengths."""
    return torch.compile(run_layer, dynamic=True, backend=backend)


class LeanEncoder:
    """Runs only the parts of a model whose results are read.

    A model whose layers cannot be run one by one runs completely, with the same result.

    Args:
        model: any encoder, with or without a head.
        run_layer: the function that runs one layer; :func:`compiled_layer` returns a compiled one.
    """

    def __init__(self, model: PreTrainedModel, run_layer: RunLayer = run_layer) -> None:
        self.model = model
        self._run_layer = run_layer

    @property
    def reads_every_parameter(self) -> bool:
        """Whether :meth:`output` is known to use all parameters of the model."""
        heads = "ForSequenceClassification", "ForTokenClassification"
        return type(self.model).__name__.endswith(heads) and runs_by_layer(self.model)

    def hidden_states(
        self,
        inputs: dict[str, torch.Tensor],
        top: int,
        rows: torch.Tensor | None = None,
        padded: bool | None = None,
    ) -> list[torch.Tensor]:
        """Return hidden states 0 (the embedding output) to ``top``. Layers above, pooler and head do not run.

        Args:
            inputs: ``input_ids`` ``(B, T)``, optionally ``attention_mask`` and ``token_type_ids``.
            top: the highest hidden state to compute.
            rows: positions ``(B, k)`` at which to compute the highest state; None for all. For the other tokens, that
                layer computes only keys and values.
            padded: whether the batch has pads; None to read it from the mask, which synchronises with a GPU.

        Returns:
            ``top + 1`` tensors ``(B, T, d)``. With ``rows``, the last one is ``(B, k, d)``.
        """
        base: Any = self.model.base_model
        parts = parts_of(base)
        if parts is None or not runs_by_layer(self.model):
            states = list(base(**inputs, output_hidden_states=True).hidden_states[: top + 1])
            return [*states[:-1], at(states[-1], rows)]
        hidden = embedded(base, inputs)
        mask = inputs.get("attention_mask")
        if padded is None:
            padded = mask is not None and not bool(mask.all())
        near = surroundings(base, hidden, mask if padded else None)
        layers = parts.of(base)
        states = [hidden]
        for index in range(top):
            last = index == top - 1
            kind = getattr(layers[index], "attention_type", "")
            states.append(self._run_layer(layers[index], states[-1], near[kind], rows if last else None))
        if top == len(layers) and (norm := final_norm(base, parts)) is not None:
            states[-1] = norm(states[-1])
        return states if top else [at(hidden, rows)]

    def output(
        self, inputs: dict[str, torch.Tensor], rows: torch.Tensor | None = None, padded: bool | None = None
    ) -> Any:
        """Return the model's raw output, as its own forward pass would.

        Args:
            inputs: see :meth:`hidden_states`.
            rows: positions ``(B, k)`` that the head reads in the top layer, with ``[CLS]`` first; None for all. The
                last layer of a classifier is computed only at these positions.
            padded: see :meth:`hidden_states`.
        """
        model: Any = self.model
        if not self.reads_every_parameter:
            return model(**inputs)
        if getattr(model.config, "classifier_pooling", "cls") != "cls":  # ModernBERT may pool all tokens
            rows = None
        states = self.hidden_states(inputs, model.config.num_hidden_layers, rows, padded)
        with _answering(model.base_model, states[-1]):
            return model(**inputs)


def embedded(base: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return hidden state 0 of a body, ``(B, T, d)``."""
    takes_types = hasattr(base.embeddings, "token_type_embeddings")
    types = (inputs.get("token_type_ids"),) if takes_types else ()
    hidden: torch.Tensor = base.embeddings(inputs["input_ids"], *types)
    return base.embeddings_project(hidden) if hasattr(base, "embeddings_project") else hidden  # ELECTRA's


def final_norm(base: Any, parts: Parts) -> Any:
    """Return the norm after the last layer; None if there is none."""
    return base.final_norm if parts.is_pre_norm else None


def surroundings(base: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> dict[str, Surroundings]:
    """Return the inputs of a body's layers other than hidden states, by the layers' ``attention_type``.

    Layers without an ``attention_type`` have the key ``""``.

    Args:
        base: the body.
        hidden: the embedding output, ``(B, T, d)``.
        mask: real tokens ``(B, T)``; None if there are no pads.
    """
    attended = mask[:, None, None].bool() if mask is not None else None
    model_type = base_type(base.config)
    if model_type == "mpnet":
        bias = base.encoder.compute_position_bias(hidden[:1])
        if attended is not None:
            bias = bias.masked_fill(~attended, torch.finfo(bias.dtype).min)
        return {"": Surroundings(bias.to(hidden.dtype))}
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    if model_type == "nomic_bert":
        return {"": Surroundings(attended, base.rotary_emb(hidden, positions[None]))}
    if model_type != "modernbert":
        return {"": Surroundings(attended)}
    kinds = set(base.config.layer_types)
    told = {kind: Surroundings(attended, base.rotary_emb(hidden, positions[None], kind)) for kind in kinds}
    reach = base.config.sliding_window
    if "sliding_attention" in kinds and hidden.shape[1] > reach + 1:
        near = ((positions[:, None] - positions).abs() <= reach)[None, None]
        told["sliding_attention"] = Surroundings(
            near if attended is None else near & attended, told["sliding_attention"].turn
        )
    return told


@contextmanager
def _answering(base: Any, states: torch.Tensor) -> Iterator[None]:
    """Make a body return ``states`` and their pooler output for every call within the context, for its head to read."""
    pooler: Callable[[torch.Tensor], torch.Tensor] | None = getattr(base, "pooler", None)
    answer = BaseModelOutputWithPooling(
        last_hidden_state=states, pooler_output=None if pooler is None else pooler(states)
    )
    base.forward = lambda *args, **options: answer
    try:
        yield
    finally:
        del base.forward
