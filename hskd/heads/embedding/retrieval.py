"""Metrics of retrieval: which passages of a corpus the vectors of queries rank first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hskd.heads.ranking import CUTOFF, ndcg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NDCG, MRR = "ndcg_10", "mrr_10"
_NONE = -1
_AT_A_TIME = 256
"""Number of queries that are compared with the corpus at a time."""


def retrieval_labels(documents: int, queries: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> list[list[int]]:
    """Return the labels of a corpus and of the queries that follow it: lists of ``1 + 2 J`` numbers each.

    ``J`` is the largest number of relevant documents of a query.

    Args:
        documents: number of texts in the corpus.
        queries: for each query, the document that is the query itself and is left out of its ranking, or -1; and the
            relevant documents, at least one, each with its grade.

    Returns:
        For each document, -1 throughout. For each query, its own document, then pairs of document and grade, padded
        with -1.
    """
    width = 1 + 2 * max(len(relevant) for _, relevant in queries)
    rows = [[_NONE] * width for _ in range(documents)]
    for itself, relevant in queries:
        numbers = [itself, *(number for pair in relevant for number in pair)]
        rows.append(numbers + [_NONE] * (width - len(numbers)))
    return rows


def corpus_size(labels: NDArray[np.integer]) -> int:
    """Return the number of documents, which are the first rows."""
    import numpy as np

    return int(np.argmax(labels[:, 1] != _NONE))


def query_scores(vectors: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return nDCG and reciprocal rank at 10 of each query, ``(R, 2)``; the rows of documents are 0.

    Args:
        vectors: normalised vectors, ``(R, D)``: the corpus, then the queries.
        labels: see :func:`retrieval_labels`.
    """
    import numpy as np

    size = corpus_size(labels)
    scores = np.zeros((len(labels), 2), np.float32)
    most = min(CUTOFF, size)
    for start in range(size, len(labels), _AT_A_TIME):
        similarities = vectors[start : start + _AT_A_TIME] @ vectors[:size].T
        for row, cosines in enumerate(similarities, start):
            itself, relevant = labels[row, 0], labels[row, 1:].reshape(-1, 2)
            if itself != _NONE:
                cosines[itself] = -np.inf
            first = np.argpartition(-cosines, most - 1)[:most]
            first = first[np.lexsort((first, -cosines[first]))]
            grades = {document: grade for document, grade in relevant.tolist() if document != _NONE}
            ranked = np.array([grades.get(document, 0) for document in first.tolist()])
            hits = np.flatnonzero(ranked)
            reciprocal_rank = 1 / (hits[0] + 1) if len(hits) else 0.0
            scores[row] = ndcg(ranked, np.array(list(grades.values()))), reciprocal_rank
    return scores
