"""Context in which training takes the fast path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from transformers import PreTrainedModel

from hskd.fast.dropout import cheap_dropout
from hskd.fast.embeddings import compact_embeddings
from hskd.fast.encoder import LeanEncoder, compiled_layer
from hskd.fast.layers import run_layer


@contextmanager
def fast_training(
    model: PreTrainedModel, token_ids: Iterable[np.ndarray], compile: bool = False
) -> Iterator[LeanEncoder]:
    """Make ``model`` train fast within this context, and restore its modules afterwards, with the trained weights.

    On a CPU, dropout draws cheap random numbers. On every device, the word embeddings are reduced to the tokens in the
    data. The training result changes only by rounding, and by which elements dropout drops.

    Args:
        model: any encoder with word embeddings, on the device on which it trains. A checkpoint that is saved within the
            context can be loaded only within another context for the same data.
        token_ids: all tokens that the model will see within the context.
        compile: whether to run the encoder's layers through ``torch.compile``.

    Yields:
        The encoder to give to :class:`~hskd.training.HeadModule` and :class:`~hskd.distill.trainer.HSKModule`.
    """
    with cheap_dropout(model), compact_embeddings(model, token_ids):
        yield LeanEncoder(model, compiled_layer() if compile else run_layer)
