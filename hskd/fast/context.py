"""The one context through which training takes the fast path."""

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
    """Within this context, ``model`` trains fast; afterwards it is whole again, with what it has learnt.

    On a CPU its dropout draws cheap random numbers, and its word embeddings are cut down to the tokens that the data
    has. Neither changes what is learnt, but for rounding and for which elements dropout drops.

    Args:
        model: any encoder with word embeddings, on the device on which it trains. What is saved within the context,
            such as a checkpoint, can be loaded only within another one of the same data.
        token_ids: all tokens that the model will see within the context.
        compile: run the encoder's layers through ``torch.compile``.

    Yields:
        The encoder to give to :class:`~hskd.training.HeadModule` and :class:`~hskd.distill.trainer.HSKModule`.
    """
    with cheap_dropout(model), compact_embeddings(model, token_ids):
        yield LeanEncoder(model, compiled_layer() if compile else run_layer)
