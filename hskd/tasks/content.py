"""Fingerprints of labelled examples: what a split's own fingerprint leaves out is what a result may depend on, too."""

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
    """16 hexadecimal digits that stand for a split's examples in their order, their labels, and what these mean."""
    return fingerprint([split.fingerprint, head.kind, list(head.label_names), _labels(split.labels)])


def scored(head: Head, split: TokenizedSplit) -> str:
    """16 hexadecimal digits that stand for all that the scores on a split depend on, but the model."""
    return fingerprint([labelled(head, split), list(head.metric_names)])


def used_tokens(splits: Iterable[TokenizedSplit]) -> list[NDArray[np.int32]]:
    """All token ids that batches of the splits may have: those of their texts, and the pads between them."""
    token_ids: list[NDArray[np.int32]] = []
    for split in splits:
        token_ids += [split.input_ids, np.array([split.pad_id], np.int32)]
    return token_ids


def _labels(labels: NDArray[np.int64] | NDArray[np.float32] | None) -> str | None:
    if labels is None:
        return None
    plain = np.ascontiguousarray(labels, dtype="<f4" if labels.dtype.kind == "f" else "<i8")
    return hashlib.sha256(plain.data).hexdigest()
