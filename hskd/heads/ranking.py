"""Scores of rankings: average precision, reciprocal rank and nDCG at 10 of one query's candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CUTOFF = 10
"""Candidates that nDCG looks at."""


class RankingScores(NamedTuple):
    """The scores of one query, from 0 to 1."""

    average_precision: float
    reciprocal_rank: float
    ndcg_10: float


def ranking_scores(scores: NDArray[np.floating], grades: NDArray[np.integer]) -> RankingScores:
    """The scores of one query's candidates, of which at least one is relevant.

    Candidates of one score count in the worst of their orders, so that a model that cannot tell them apart gains
    nothing from the order of the file.

    Args:
        scores: the model's, ``(M,)``; the larger, the earlier in the ranking.
        grades: of each candidate, ``(M,)``; 0 for an irrelevant one. Any other is relevant, and is its gain in nDCG.
    """
    import numpy as np

    ranked = grades[np.lexsort((grades, -scores))]
    ranks = np.flatnonzero(ranked > 0) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    return RankingScores(float(precision.mean()), float(1 / ranks[0]), ndcg(ranked, grades))


def ndcg(ranked: NDArray[np.integer], grades: NDArray[np.integer]) -> float:
    """Normalised discounted cumulative gain of the first ten (Järvelin and Kekäläinen 2002); the gain is the grade.

    Args:
        ranked: grades in the order of a ranking, at least its first ten.
        grades: those of all candidates, in any order, at least one of them above 0.
    """
    import numpy as np

    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    first, ideal = ranked[:CUTOFF], np.sort(grades)[::-1][:CUTOFF]
    return float((first @ discounts[: len(first)]) / (ideal @ discounts[: len(ideal)]))
