"""Training examples from the store itself: token ids, lengths and ids are in it, so that no text is needed."""

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
    """The examples that a store was extracted from, as the tokenizer gave them, without their labels.

    The same ids, tokens and order as ``tokenize`` makes of the texts, so the same batches. The store does not hold
    token types; they follow from the separators, and the data fingerprint in the manifest tells whether rightly:

        store = hskd.Store.open("s3://bucket/store")
        train = hskd.store_examples(store)
        source = hskd.StoreSource(store, train, student_layers=3)

    Args:
        store: any store.
        token_types: whether the student's tokenizer gives token types, as BERT's does and RoBERTa's does not.

    Raises:
        HskdError: the token types follow another rule than BERT's.
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
    # A single sentence in which someone wrote [SEP] looks like a pair.
    single = replace(plain, token_type_ids=np.zeros(len(plain.input_ids), np.uint8))
    for split in (pairs, single):
        if split.fingerprint == origin.data:
            return split
    if plain.fingerprint == origin.data:  # the teacher has none
        return pairs
    raise HskdError(
        f"{store.folder}: the token types of its examples follow another rule than BERT's (0 up to the first "
        "separator, then 1), so they cannot be told from the store; give the data instead of --no-data."
    )


def _segments(split: TokenizedSplit) -> NDArray[np.uint8]:
    """For every token, 0 up to and including its example's first separator, then 1."""
    separators = np.cumsum(split.input_ids == split.sep_id)
    before = separators - (split.input_ids == split.sep_id)
    first = before[split.offsets[:-1]]
    return (before > np.repeat(first, split.lengths)).astype(np.uint8)


def store_task(store: Store) -> Task:
    """The task that a store was extracted for, as far as training from the store needs it.

    Labels and length are the store's. Metrics and the epochs of the HSK stage are those of the task of that name, and
    for the user's own files those of ``custom``.

    Raises:
        HskdError: the kind of head that the store names is not known here.
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
