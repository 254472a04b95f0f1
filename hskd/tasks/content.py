"""Fingerprints of labelled examples. They add the labels and metrics, which a split's own fingerprint leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hskd.hashing import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hskd.heads import Head
    from hskd.tasks.tokenized import TokenizedSplit


def labelled(head: Head, split: TokenizedSplit) -> str:
    """Return 16 hexadecimal digits that identify a split's examples, their order, their labels and the label names."""
    return fingerprint([split.fingerprint, head.kind, list(head.label_names), _labels(split.labels)])


def scored(head: Head, split: TokenizedSplit) -> str:
    """Return 16 hexadecimal digits that identify everything a score on a split depends on, apart from the model."""
    return fingerprint([labelled(head, split), list(head.metric_names)])


def used_tokens(splits: Iterable[TokenizedSplit]) -> list[NDArray[np.int32]]:
    """Return all token ids that batches of the splits can contain: those of the texts, and the pads."""
    token_ids: list[NDArray[np.int32]] = []
    for split in splits:
        token_ids += [split.input_ids, np.array([split.pad_id], np.int32)]
    return token_ids


def _labels(labels: NDArray[np.int64] | NDArray[np.float32] | None) -> str | None:
    if labels is None:
        return None
    plain = np.ascontiguousarray(labels, dtype="<f4" if labels.dtype.kind == "f" else "<i8")
    return hashlib.sha256(plain.data).hexdigest()
