"""Intervals and bounds of means, and of ratios of means, over few seeds. This module is independent of trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hskd.statistics import CONFIDENCE, seeds_needed

MIN_SEEDS = 3
"""Fewest seeds for a verdict. Fewer say almost nothing about the variance."""
MOST_SEEDS = 1000
"""Most seeds that a message suggests."""


class Interval(NamedTuple):
    """A mean and its two-sided interval, in the unit of the values; the bounds are NaN where ``n`` < 2."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean with its variance and degrees of freedom.

    Attributes:
        mean: of ``n`` values; NaN where there is none.
        variance: of that mean, not of the values; NaN where ``n`` < 2.
        df: degrees of freedom of ``variance``.
        n: number of values.
        own: the part of ``variance`` that is estimated from the values, with ``n`` - 1 degrees of freedom.
    """

    mean: float
    variance: float
    df: float
    n: int
    own: float

    @classmethod
    def of(cls, values: ArrayLike, more_variance: float = 0.0, more_df: float = math.inf) -> Estimate:
        """Return the estimate of the mean of independent ``values`` ``(n,)``.

        Args:
            values: for example one per seed.
            more_variance: variance of the mean from another source, independent of the variation of the values.
            more_df: degrees of freedom of ``more_variance``. Those of the sum follow Welch and Satterthwaite.
        """
        array = np.asarray(values, dtype=np.float64)
        n = len(array)
        if n < 2:
            return cls(float(array.mean()) if n else math.nan, math.nan, math.nan, n, math.nan)
        own = float(array.var(ddof=1)) / n
        total = own + more_variance
        parts = own**2 / (n - 1) + more_variance**2 / more_df
        return cls(float(array.mean()), total, total**2 / parts if parts else n - 1.0, n, own)

    def _half(self, quantile: float) -> float:
        # More variance also brings more degrees of freedom, which could make the interval narrower. It must not.
        own = quantile_of_t(self.n - 1, quantile) * math.sqrt(self.own)
        return max(own, quantile_of_t(self.df, quantile) * math.sqrt(self.variance))

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided lower bound of the true mean."""
        return self.mean - self._half(confidence)

    def upper(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided upper bound of the true mean."""
        return self.mean + self._half(confidence)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the two-sided interval of the true mean."""
        half = self._half((1 + confidence) / 2)
        return Interval(self.mean, self.mean - half, self.mean + half, self.n)


def quantile_of_t(df: float, quantile: float) -> float:
    """Return the quantile of Student's t with ``df`` degrees of freedom (perhaps infinite); NaN where ``df`` is NaN."""
    return float(special.stdtrit(df, quantile))  # stats.t.ppf gives the same value and is 100 times slower


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the t-interval of the mean of ``values`` ``(n,)``."""
    return Estimate.of(values).interval(confidence)


def lower_bound(values: ArrayLike, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided lower t-bound of the true mean of ``values`` ``(n,)``; NaN where n < 2."""
    return Estimate.of(values).lower(confidence)


def upper_bound(values: ArrayLike, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper t-bound of the true mean of ``values`` ``(n,)``; NaN where n < 2."""
    return Estimate.of(values).upper(confidence)


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return Fieller's interval of mean(numerator) / mean(denominator), paired value by value, ``(n,)`` each.

    The interval holds every ratio ``r`` for which the mean of ``numerator - r * denominator`` is within its t-limits
    of 0. Its coverage is therefore exact. It is bounded only if the denominator's mean is significantly different from
    0; otherwise the bounds are NaN.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return ratio_of(Estimate.of(top), Estimate.of(bottom), Estimate.of(top - bottom), confidence)


def ratio_of(
    numerator: Estimate, denominator: Estimate, difference: Estimate, confidence: float = CONFIDENCE
) -> Interval:
    """Return Fieller's interval (see :func:`ratio_interval`) from estimates.

    ``difference`` is the estimate of numerator - denominator. The covariance follows from the three variances, and the
    degrees of freedom are the fewest of the three.
    """
    y, x = numerator.mean, denominator.mean
    n = min(numerator.n, denominator.n)
    # Below rounding error, the denominator counts as 0.
    ratio = y / x if abs(x) > 1e-12 else math.nan
    covariance = (numerator.variance + denominator.variance - difference.variance) / 2
    df = min(numerator.df, denominator.df, difference.df)
    squared = quantile_of_t(df, (1 + confidence) / 2) ** 2
    a = x**2 - squared * denominator.variance
    b = x * y - squared * covariance
    c = y**2 - squared * numerator.variance
    if not a > 0 or math.isnan(ratio):
        return Interval(ratio, math.nan, math.nan, n)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval(ratio, (b - root) / a, (b + root) / a, n)


def seeds_to_show_no_loss(loss: Estimate, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the number of seeds at which a one-sided test shows a loss of 0 to be below ``limit``, with 80 % power.

    Args:
        loss: an estimate, whose spread between seeds is taken as the true one. The rest of its variance does not shrink
            with more seeds.
        limit: the allowed loss.
        confidence: of the test.

    Returns:
        None where ``MOST_SEEDS`` are too few, ``limit`` is not positive, or the spread is unknown.
    """
    if not limit > 0 or math.isnan(loss.own):
        return None
    return seeds_needed(
        math.sqrt(loss.own * loss.n),
        limit,
        sides=1,
        confidence=confidence,
        fixed_variance=max(loss.variance - loss.own, 0.0),
        fewest=MIN_SEEDS,
        most=MOST_SEEDS,
    )


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values, in the given order.

    They control the family-wise error rate under any dependence. NaN (a test that could not be made) stays NaN and does
    not count.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = [index for index in np.argsort(values, kind="stable") if not np.isnan(values[index])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted
