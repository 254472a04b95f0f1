"""Training examples read from a store. It holds token ids, lengths and example ids, so training needs no text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hskd.errors import HskdError
from hskd.heads import head_of
from hskd.store.reader import Store
from hskd.tasks import Task, TokenizedSplit
from hskd.tasks.registry import TASKS


def store_examples(store: Store, token_types: bool = True) -> TokenizedSplit:
    """Return the tokenised examples that a store was extracted from, without labels.

    Example ids, tokens and order are those of ``tokenize`` on the texts, so the batches are the same. A store holds no
    token types. They are reconstructed from the separators and checked against the data fingerprint in the manifest:

        store = hskd.Store.open("s3://bucket/store")
        train = hskd.store_examples(store)
        source = hskd.StoreSource(store, train, student_layers=3)

    Args:
        store: any store.
        token_types: whether the student's tokenizer gives token types, as BERT's does and RoBERTa's does not.

    Raises:
        HskdError: the token types do not follow BERT's rule, so they cannot be reconstructed.
    """
    rows = np.arange(len(store))
    tokens = store.every_token(rows)
    special, origin = store.manifest.special_ids, store.manifest.origin
    plain = TokenizedSplit(
        ids=tokens.example_ids,
        offsets=tokens.offsets.astype(np.int64, copy=False),
        input_ids=tokens.input_ids.astype(np.int32),
        token_type_ids=None,
        labels=None,
        cls_id=special["cls"],
        sep_id=special["sep"],
        pad_id=special["pad"],
        max_length=origin.max_length,
        word_starts=store.word_starts(rows),
    )
    if not token_types:
        return plain
    pairs = replace(plain, token_type_ids=_segments(plain))
    # A single sentence whose text contains [SEP] looks like a pair.
    single = replace(plain, token_type_ids=np.zeros(len(plain.input_ids), np.uint8))
    for split in (pairs, single):
        if split.fingerprint == origin.data:
            return split
    if plain.fingerprint == origin.data:  # The teacher's tokenizer gives no token types.
        return pairs
    raise HskdError(
        f"{store.folder}: the token types of its examples follow another rule than BERT's (0 up to the first "
        "separator, then 1), so they cannot be read from the store; give the data instead of --no-data."
    )


def _segments(split: TokenizedSplit) -> NDArray[np.uint8]:
    """Return token types by BERT's rule: 0 up to and including an example's first separator, then 1."""
    separators = np.cumsum(split.input_ids == split.sep_id)
    before = separators - (split.input_ids == split.sep_id)
    first = before[split.offsets[:-1]]
    return (before > np.repeat(first, split.lengths)).astype(np.uint8)


def store_task(store: Store) -> Task:
    """Return the task that a store was extracted for, with everything that training from the store needs.

    Label names and maximum length are the store's. Metrics and HSK epochs come from the registered task of the same
    name, or are the defaults if there is none.

    Raises:
        HskdError: the store names an unknown kind of head.
    """
    origin, target = store.manifest.origin, store.manifest.target.array
    if (entry := TASKS.find(origin.task)) is not None:
        known = entry.task
        head = head_of(origin.head, origin.label_names, known.head.metric_names).for_target(target)
        return replace(known, head=head, max_length=origin.max_length)
    return Task(
        name=origin.task,
        text_columns=(),
        label_column="",
        head=head_of(origin.head, origin.label_names).for_target(target),
        hsk_epochs=10,
        max_length=origin.max_length,
    )
