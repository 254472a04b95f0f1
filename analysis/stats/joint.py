"""Studies in which several dimensions vary: the surface of scores, the Pareto front, and the best next step."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from hskd.analysis.stats.curves import points
from hskd.analysis.stats.intervals import holm, t_interval
from hskd.analysis.stats.points import COMPARED, Parts, as_kept
from hskd.analysis.stats.strategies import UNDETERMINED, paired_test
from hskd.analysis.table import Study
from hskd.spec import DIMENSIONS
from hskd.statistics import CONFIDENCE

BEST, WORSE, ONLY = "best buy", "not the best", "only neighbour"
FRONT_ARMS = ("spec", "full", "none")
"""Arms that may be on the front. *shuffled* takes bytes but holds no knowledge of its example."""

_COLUMNS = ["from_name", "dimension", "to_name", "extra_bytes", "gain", "low", "high", "gain_per_doubling", "n"]


def surface(study: Study) -> pd.DataFrame:
    """Return the mean score over seeds at each combination of amounts.

    Returns:
        A row per point of the arms *spec* and *full*, by rising amounts: name, strategy, precision, n and k (layers and
        tokens, as ordered categories of text with ``all`` last), w (share of the neurons), fraction, bytes_per_example,
        score (mean, a share of 1), n_seeds. Points without amounts, such as explicit layer pairs, are left out.
    """
    kept = study.points[study.points["arm"].isin(["spec", "full"])]
    kept = kept[kept.index.isin(study.parts) & kept["w"].notna()]
    scores = study.scores[kept.index]
    columns = ["strategy", "precision", "n", "k", "w", "fraction", "bytes_per_example"]
    table = kept[columns].assign(score=scores.mean(), n_seeds=scores.notna().sum())
    for column in ("n", "k"):
        amounts = table[column].replace("", "all")
        table[column] = pd.Categorical(amounts, sorted(amounts.unique(), key=_amount), ordered=True)
    order = ["strategy", "precision", "n", "k", "w"]
    return table.rename_axis("name").reset_index().sort_values(order, kind="stable", ignore_index=True)


def pareto(study: Study, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return the points of a study, and which of them are on the Pareto front.

    A point is off the front if another point keeps no more and scores no less, and is better in one of the two. This is
    the front of the measured means: noise lifts some points onto it and pushes others off.

    Returns:
        The table of :func:`~hskd.analysis.stats.curves.points` with two more columns: ``front`` (score against bytes an
        example) and ``front_kept`` (score against kept values an example; False where the table does not say). Only the
        arms *spec*, *full* and *none* can be on a front.
    """
    table = points(study, confidence)
    may = table["arm"].isin(FRONT_ARMS).to_numpy()
    for column, amount in (("front", "bytes_per_example"), ("front_kept", "kept_per_example")):
        table[column] = may & _undominated(table[amount].where(may), table["mean"].where(may))
    return table


def next_byte(study: Study, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return, for each point of the front, the gain from a little more of each dimension, and the best buy.

    The neighbour along a dimension is the point with the next larger amount there and everything else equal. A
    dimension that is kept whole needs no selector, so there any selector matches.

    Dimensions are compared in pairs at each front point, by the score gained per doubling of bytes, paired by seed.
    The p-values are adjusted (Holm) over all these contrasts of the table. So at most ``1 - confidence`` of studies get
    any false best buy.

    Points are on the front partly by luck, so the gains from them tend to be too low. This bias cancels in the contrast
    of two dimensions that increase the bytes by the same factor.

    Returns:
        A row per front point and dimension that has a neighbour: from_name, dimension, to_name; extra_bytes (an
        example); gain, low, high (shares of 1: mean and paired t-interval, of this row alone); gain_per_doubling (NaN
        where the neighbour takes no more bytes); n (seeds); p_holm (the largest over its contrasts with the other
        dimensions, NaN where there is none); verdict: ``best buy`` (it gains, and beats every other dimension), ``not
        the best`` (another is), ``only neighbour`` (nothing to compare with), else ``undetermined``.
    """
    parts = {name: as_kept(point_parts) for name, point_parts in study.parts.items()}
    stored = study.points["bytes_per_example"]
    front = pareto(study, confidence)
    rows: list[dict[str, Any]] = []
    rates: list[pd.Series[float]] = []
    for start in [name for name in front.loc[front["front"], "name"] if name in parts]:
        for dimension in DIMENSIONS:
            end = _neighbour(start, dimension, parts, stored)
            if end is None:
                continue
            gains = (study.scores[end] - study.scores[start]).dropna()
            doublings = math.log2(stored[end] / stored[start])
            rates.append(gains / doublings if doublings > 0 else gains * math.nan)
            row = (start, dimension, end, stored[end] - stored[start], *t_interval(gains, confidence)[:3])
            rows.append(dict(zip(_COLUMNS, (*row, rates[-1].mean(), len(gains)), strict=True)))
    return _judged(pd.DataFrame(rows, columns=_COLUMNS), rates, 1 - confidence)


def _judged(table: pd.DataFrame, rates: list[pd.Series[float]], alpha: float) -> pd.DataFrame:
    """Return ``table`` with the columns p_holm and verdict; ``rates`` are its gains per doubling, by seed."""
    pairs = [
        pair
        for _, rows in table.groupby("from_name", sort=False)
        for pair in combinations(rows.index[rows["gain_per_doubling"].notna()], 2)
    ]
    tests = [paired_test((rates[a] - rates[b]).dropna().to_numpy(), 1 - alpha) for a, b in pairs]
    adjusted = holm([p for *_, p in tests])
    highest = np.full(len(table), math.nan)
    beaten = np.zeros((len(table), len(table)), bool)
    for (a, b), (mean, *_), p in zip(pairs, tests, adjusted, strict=True):
        highest[[a, b]] = np.fmax(highest[[a, b]], p)
        better, worse = (a, b) if mean > 0 else (b, a)
        beaten[better, worse] = p < alpha
    verdicts = pd.Series(UNDETERMINED, index=table.index)
    for _, rows in table.groupby("from_name", sort=False):
        index = rows.index
        if len(index) == 1:
            verdicts[index] = ONLY
        for best in index[rows["gain"] > 0]:
            if len(index) > 1 and beaten[best, index.drop(best)].all():
                verdicts[index] = WORSE
                verdicts[best] = BEST
    return table.assign(p_holm=highest, verdict=verdicts)


def _neighbour(start: str, dimension: str, parts: dict[str, Parts], stored: pd.Series[float]) -> str | None:
    """Return the point with the next larger amount along ``dimension`` and everything else equal, or None."""
    here = parts[start]
    more = [
        (there[dimension].amount, stored[name], name)
        for name, there in parts.items()
        if there[dimension].amount > here[dimension].amount
        # More bits mean another selector of precision, and a dimension that is kept whole has no selector.
        and (dimension == "precision" or there[dimension].strategy in (here[dimension].strategy, ""))
        and all(there[other] == here[other] for other in COMPARED if other != dimension)
    ]
    return min(more)[2] if more else None


def _undominated(amount: pd.Series[float], score: pd.Series[float]) -> np.ndarray:
    """Return which points no other point beats, ``(n,)`` bool. A point with a NaN is False and beats nothing."""
    x, y = amount.to_numpy(dtype=np.float64), score.to_numpy(dtype=np.float64)
    no_worse = (x[:, None] <= x) & (y[:, None] >= y)
    better = (x[:, None] < x) | (y[:, None] > y)
    return ~(no_worse & better).any(axis=0) & ~np.isnan(x + y)


def _amount(text: str) -> float:
    return math.inf if text == "all" else float(text)
