"""Metrics of rankings: average precision, reciprocal rank and nDCG at 10 of one query's candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CUTOFF = 10
"""Number of candidates, from the first, that nDCG takes into account."""


class RankingScores(NamedTuple):
    """The metrics of one query, each from 0 to 1."""

    average_precision: float
    reciprocal_rank: float
    ndcg_10: float


def ranking_scores(scores: NDArray[np.floating], grades: NDArray[np.integer]) -> RankingScores:
    """Return the metrics of one query's candidates, at least one of which must be relevant.

    Candidates with equal scores are ranked in the worst possible order. A model that cannot distinguish them therefore
    gains nothing from the order of the file.

    Args:
        scores: the model's scores, ``(M,)``; larger scores are ranked first.
        grades: grade of each candidate, ``(M,)``. A grade of 0 means irrelevant. A larger grade means relevant, and is
            the candidate's gain in nDCG.
    """
    import numpy as np

    ranked = grades[np.lexsort((grades, -scores))]
    ranks = np.flatnonzero(ranked > 0) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    return RankingScores(float(precision.mean()), float(1 / ranks[0]), ndcg(ranked, grades))


def ndcg(ranked: NDArray[np.integer], grades: NDArray[np.integer]) -> float:
    """Return the normalised discounted cumulative gain of the first ten (Järvelin and Kekäläinen 2002).

    The gain of a candidate is its grade.

    Args:
        ranked: grades in the order of a ranking, at least its first ten.
        grades: grades of all candidates, in any order, at least one of them above 0.
    """
    import numpy as np

    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    first, ideal = ranked[:CUTOFF], np.sort(grades)[::-1][:CUTOFF]
    return float((first @ discounts[: len(first)]) / (ideal @ discounts[: len(ideal)]))
