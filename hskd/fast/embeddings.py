"""Train only the embedding rows of tokens that occur in the data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


class CompactEmbedding(nn.Module):
    """Embedding that holds only some rows of its table, and one row of ones that is trained with them.

    Args:
        embedding: the full embedding, which is not changed. Its forward pass may do more than look up rows.
        tokens: ids of the rows to hold, ``(R,)`` int64. Any other id raises an ``IndexError``.
    """

    rows: torch.Tensor
    """Row of each token id of the full table; out of range for tokens without a row here."""

    def __init__(self, embedding: nn.Embedding, tokens: torch.Tensor) -> None:
        super().__init__()
        whole = embedding.weight.detach()
        rows = torch.full((len(whole),), len(tokens) + 1, device=whole.device)
        rows[tokens] = torch.arange(len(tokens), device=whole.device)
        self.register_buffer("rows", rows, persistent=False)
        self.tokens = tokens
        witness = torch.ones((1, whole.shape[1]), device=whole.device)
        self.embedding = copy.deepcopy(embedding)
        self.embedding.weight = nn.Parameter(torch.cat([whole[tokens], witness]))
        if embedding.padding_idx is not None:
            self.embedding.padding_idx = int(rows[embedding.padding_idx])

    @property
    def weight(self) -> torch.Tensor:
        """The rows, ``(R + 1, d)``. The last one started as ones, and records the weight decay."""
        return self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the same embeddings of ``token_ids`` as the full embedding."""
        output: torch.Tensor = self.embedding(self.rows[token_ids])
        return output

    @torch.no_grad()
    def copy_to(self, embedding: nn.Embedding) -> None:
        """Write the trained rows into the full embedding. Its other rows decay as the row of ones did."""
        trained = self.weight.detach()
        table = embedding.weight.detach() * trained[-1]
        table[self.tokens] = trained[:-1]
        embedding.load_state_dict({**self.embedding.state_dict(), "weight": table})


@contextmanager
def compact_embeddings(model: PreTrainedModel, token_ids: Iterable[np.ndarray]) -> Iterator[None]:
    """Reduce ``model`` to the word embeddings of ``token_ids`` within the context, and restore the full table after it.

    This is exact up to rounding: if no example has a token, its row gets no gradient, and under AdamW it only decays.
    One row of ones is trained with the others. Its final value is the factor by which all left-out rows decay, whatever
    the schedule. In a small model, most parameters are such rows. Clearing their gradients, clipping and updating them
    would take much of a training step.

    Args:
        model: any model with word embeddings. A checkpoint that is saved within the context can be loaded only within
            another context for the same data.
        token_ids: all tokens that the model will see within the context.
    """
    embedding: nn.Embedding = model.get_input_embeddings()
    special = [] if embedding.padding_idx is None else [embedding.padding_idx]
    used = torch.from_numpy(np.unique(np.concatenate([np.unique(ids) for ids in token_ids] + [special]))).long()
    compact = CompactEmbedding(embedding, used.to(embedding.weight.device))
    model.set_input_embeddings(compact)
    try:
        yield
    finally:
        compact.copy_to(embedding)
        model.set_input_embeddings(embedding)
