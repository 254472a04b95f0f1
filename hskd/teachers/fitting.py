"""Check, before training, that a model accepts the tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedModel

from hskd.errors import HskdError
from hskd.runtime import autocast
from hskd.tasks import TokenizedSplit, model_inputs


def require_fit(name: str, model: PreTrainedModel, splits: Iterable[TokenizedSplit], dtype: str = "fp32") -> None:
    """Refuse a model that cannot run on the examples of ``splits`` or does not give one hidden state per token.

    The longest and the shortest example of each split are run as one batch.

    Args:
        name: the model's name, for messages.
        model: the model, with or without a head. It is put into eval mode.
        splits: the examples, tokenised by the model's tokenizer.
        dtype: fp32, or bf16 for autocast.

    Raises:
        HskdError: the model does not fit; the message says why.
    """
    model.eval()
    for split in splits:
        if not len(split):
            continue
        _require_embeddings(name, model, split)
        batch = split.collate([int(split.lengths.argmax()), int(split.lengths.argmin())])
        device = next(model.parameters()).device
        try:
            with torch.no_grad(), autocast(dtype, device):
                output = model(**model_inputs(batch, device), output_hidden_states=True)
        except Exception as error:  # Models raise errors of any type.
            complaint = " ".join(str(error).split()) or type(error).__name__
            raise HskdError(
                f"{name}: cannot run on {split.lengths.max()} tokens of its tokenizer ({complaint}). Either weights, "
                "configuration and tokenizer do not belong to the same model, or it takes fewer tokens (--max-length)."
            ) from error
        states, width = getattr(output, "hidden_states", None) or (), batch["input_ids"].shape[1]
        for layer, state in enumerate(states):
            if state.dim() != 3 or state.shape[1] != width:
                raise HskdError(
                    f"{name}: its hidden state {layer} has {state.shape[1]} positions for {width} tokens; a "
                    f"{model.config.model_type} joins tokens, but distillation needs one state per token. Use an "
                    "encoder that does not join tokens, such as a BERT."
                )


def _require_embeddings(name: str, model: PreTrainedModel, split: TokenizedSplit) -> None:
    """Refuse token ids and token types for which the model has no embeddings."""
    table = model.get_input_embeddings()
    count = int(getattr(table, "num_embeddings", 0) or len(table.weight))
    for what, highest in (("token", int(split.input_ids.max(initial=0))), ("pad token", split.pad_id)):
        if not 0 <= highest < count:
            raise HskdError(
                f"{name}: its tokenizer gives the {what} {highest}, and it has embeddings for {count} tokens; weights "
                "and tokenizer do not belong to the same model."
            )
    kinds = getattr(model.config, "type_vocab_size", None)
    if split.token_type_ids is not None and kinds:
        highest = int(np.max(split.token_type_ids, initial=0))
        if highest >= kinds:
            raise HskdError(
                f"{name}: its tokenizer tells two texts apart by {highest + 1} token types, and it has embeddings for "
                f"{kinds}; use a model that was made for pairs of texts."
            )
