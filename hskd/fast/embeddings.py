"""Training only the embedding rows that the data has."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


class CompactEmbedding(nn.Module):
    """An embedding that holds only some rows of its table, and one row of ones that is trained along.

    Args:
        embedding: the whole embedding, which stays as it is. It may do more than look up rows.
        tokens: ids of the rows to hold, ``(R,)`` int64. Any other id raises an ``IndexError``.
    """

    rows: torch.Tensor
    """Row of each token id of the whole table; out of range where it is not held."""

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
        """The rows that are held, ``(R + 1, d)``; the last one is the witness of the decay."""
        return self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the whole embedding gives for ``token_ids``."""
        output: torch.Tensor = self.embedding(self.rows[token_ids])
        return output

    @torch.no_grad()
    def copy_to(self, embedding: nn.Embedding) -> None:
        """Write what was learnt into the whole embedding; its other rows decay as the witness did."""
        trained = self.weight.detach()
        table = embedding.weight.detach() * trained[-1]
        table[self.tokens] = trained[:-1]
        embedding.load_state_dict({**self.embedding.state_dict(), "weight": table})


@contextmanager
def compact_embeddings(model: PreTrainedModel, token_ids: Iterable[np.ndarray]) -> Iterator[None]:
    """Within this context, ``model`` holds only the word embeddings of ``token_ids``; afterwards it is whole again.

    This is exact, to rounding: a row of which no example has the token gets no gradient, and under AdamW it only
    decays. One row of ones is trained along. What the decay leaves of it is what it leaves of every row left out,
    whatever the schedule. In a small model most parameters are such rows, and clearing their gradients, clipping and
    updating them is much of a step.

    Args:
        model: any model with word embeddings. What is saved within the context can be loaded only within another.
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
