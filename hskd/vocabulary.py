"""Training only the embedding rows that the data touches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def touched_rows(model: PreTrainedModel, token_ids: Iterable[np.ndarray]) -> Iterator[None]:
    """Within, ``model`` holds only the word embeddings of ``token_ids``; afterwards it is whole again.

    Exact, to rounding: a row that no example touches has no gradient, and under AdamW it only decays. One row of
    ones is trained along; what the decay leaves of it is what it leaves of every row left out, whatever the
    schedule. In a small model most parameters are such rows, and clearing their gradients, clipping and updating
    them is much of a step.

    Args:
        model: any model with word embeddings. What is saved inside the context can be loaded only inside another.
        token_ids: all tokens that the model will see inside the context.
    """
    embedding: nn.Embedding = model.get_input_embeddings()
    whole = embedding.weight.detach()
    padding = embedding.padding_idx
    special = [] if padding is None else [padding]
    touched = torch.from_numpy(np.unique(np.concatenate([np.unique(ids) for ids in token_ids] + [special]))).long()
    touched = touched.to(whole.device)
    place = torch.full((len(whole),), len(touched) + 1, device=whole.device)  # out of range: an unexpected token fails
    place[touched] = torch.arange(len(touched), device=whole.device)
    witness = torch.ones((1, whole.shape[1]), device=whole.device)
    embedding.weight = nn.Parameter(torch.cat([whole[touched], witness]))
    embedding.padding_idx = None if padding is None else int(place[padding])

    def to_rows(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (place[args[0]], *args[1:])

    handle = embedding.register_forward_pre_hook(to_rows)
    try:
        yield
    finally:
        handle.remove()
        trained = embedding.weight.detach()
        restored = whole * trained[-1]
        restored[touched] = trained[:-1]
        embedding.weight = nn.Parameter(restored)
        embedding.padding_idx = padding
