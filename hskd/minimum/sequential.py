"""Group-sequential one-sided tests of a mean, which look at the data several times at the error rate of one look.

The level is spent over the looks by a function, fixed beforehand, of the share of the data seen (Lan and DeMets,
Biometrika 70, 1983). The boundaries are those of a normal mean, by numerical integration over the previous looks
(Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969). Because the spread is estimated from the same few seeds,
each boundary is converted into the critical value of a t-test, at its nominal level times a factor common to all looks.
With a factor of 1 and looks from four seeds up, a test at 5 % would be wrong in up to 5.6 % of cases. The factor is
therefore determined on simulated series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special

from hskd.errors import HskdError

Spending = Literal["obrien_fleming", "pocock"]
"""How the level is spent: very little at the first looks (``obrien_fleming``), or about evenly (``pocock``)."""
Verdict = Literal["below", "above", "futile", "open", "undecided"]
"""``below`` and ``above``: the mean is shown to be below or above zero. ``futile``: more data would hardly show it to
be below. ``open``: the next look is still to come. ``undecided``: no look is left."""
FUTILE = 0.05
"""A test stops if its chance to end with ``below``, given the current mean, is smaller than this."""
_GRID = 401
"""Number of points of the numerical integration; must be odd."""
_WIDTH = 8.0
"""How far below zero the integration reaches, in standard deviations."""
_PATHS = 100_000
"""Number of simulated series of seeds on which the factor of the nominal levels is determined."""


def spent(share: float, level: float, spending: Spending) -> float:
    """Return the part of ``level`` that may be spent by the time a share of all data is seen.

    Args:
        share: above 0, at most 1.
        level: one-sided.
        spending: the spending function.
    """
    if spending == "pocock":
        return level * math.log(1 + (math.e - 1) * share)
    return float(2 * special.ndtr(-special.ndtri(1 - level / 2) / math.sqrt(share)))


@lru_cache(maxsize=256)
def boundaries(looks: tuple[int, ...], level: float, spending: Spending) -> tuple[float, ...]:
    """Return the critical values of a standard normal statistic, one for each look.

    Args:
        looks: sample sizes, ascending; the last is the largest.
        level: one-sided, of all looks together.
        spending: how the level is spent.
    """
    shares = [look / looks[-1] for look in looks]
    budget = [spent(share, level, spending) for share in shares]
    values = [float(-special.ndtri(budget[0]))]
    points, density = _first_density(shares[0], values[0])
    for i in range(1, len(shares)):
        step = shares[i] - shares[i - 1]
        weights = density * _simpson(points)
        exit_probability = budget[i] - budget[i - 1]

        def excess(
            value: float,
            i: int = i,
            step: float = step,
            points: np.ndarray = points,
            weights: np.ndarray = weights,
            exit_probability: float = exit_probability,
        ) -> float:
            beyond = special.ndtr((points - value * math.sqrt(shares[i])) / math.sqrt(step))
            return float(weights @ beyond) - exit_probability

        values.append(float(optimize.brentq(excess, -1.0, 40.0)))
        top = values[i] * math.sqrt(shares[i])
        onto = np.linspace(-_WIDTH * math.sqrt(shares[i]), top, _GRID)
        scaled = (onto[:, None] - points[None, :]) / math.sqrt(step)
        density = (np.exp(-0.5 * scaled**2) @ weights) / math.sqrt(2 * math.pi * step)
        points = onto
    return tuple(values)


def _first_density(share: float, value: float) -> tuple[np.ndarray, np.ndarray]:
    points = np.linspace(-_WIDTH * math.sqrt(share), min(value, _WIDTH) * math.sqrt(share), _GRID)
    return points, np.exp(-0.5 * points**2 / share) / math.sqrt(2 * math.pi * share)


def _simpson(points: np.ndarray) -> np.ndarray:
    weights = np.ones(len(points))
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return weights * (points[1] - points[0]) / 3


@lru_cache(maxsize=64)
def _criticals(looks: tuple[int, ...], level: float, spending: Spending) -> tuple[float, ...]:
    """Return the critical values of the t-statistics, one for each look."""
    nominal = special.ndtr(-np.array(boundaries(looks, level, spending)))
    degrees = np.array(looks) - 1
    paths = np.random.default_rng(0).normal(size=(_PATHS, looks[-1]))
    sums, squares = paths.cumsum(1)[:, degrees], (paths**2).cumsum(1)[:, degrees]
    n = np.array(looks)
    statistics = (sums / n) / np.sqrt((squares - sums**2 / n) / degrees / n)
    # For each path, the nominal level of its most extreme look relative to the boundary. The quantile of these
    # values is the factor.
    levels = special.stdtr(degrees, -statistics) / nominal
    factor = min(1.0, float(np.quantile(levels.min(1), level)))
    return tuple(float(-special.stdtrit(df, factor * p)) for df, p in zip(degrees, nominal, strict=True))


@dataclass(frozen=True)
class Plan:
    """The looks of a test, and how it spends its level over them.

    Attributes:
        looks: numbers of seeds, ascending.
        level: one-sided, of all looks together.
        spending: how the level is spent.

    Raises:
        HskdError: the looks do not ascend from 2 or more, or the level is not between 0 and 0.5.
    """

    looks: tuple[int, ...] = (4, 6, 8, 10, 12)
    level: float = 0.05
    spending: Spending = "pocock"

    def __post_init__(self) -> None:
        if not self.looks or self.looks[0] < 2 or any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise HskdError(f"looks {self.looks}: expected ascending numbers of seeds, of 2 or more.")
        if not 0 < self.level < 0.5:
            raise HskdError(f"level {self.level}: expected a number between 0 and 0.5, such as 0.05.")

    def critical(self, look: int) -> float:
        """Return the critical value of the t-statistic at a look, counted from 0."""
        return _criticals(self.looks, self.level, self.spending)[look]


@dataclass(frozen=True)
class Judgement:
    """The result of a sequential test.

    Attributes:
        verdict: see :data:`Verdict`.
        n: number of values used, that of the last look taken.
        mean: mean of these values; NaN if there was no look.
        low: one-sided lower confidence bound of the mean, at the plan's level over all looks.
        high: one-sided upper confidence bound, likewise.
    """

    verdict: Verdict
    n: int
    mean: float
    low: float
    high: float


def judge(values: Sequence[float], plan: Plan, least_spread: float = 0.0, stop_early: bool = True) -> Judgement:
    """Test look by look whether the mean of ``values`` is below zero, or above.

    Each of the two one-sided tests has the plan's level.

    Args:
        values: in order of arrival; values beyond the last look are ignored.
        plan: looks and level.
        least_spread: lower bound of the standard deviation, because a few scores on a small test set may be equal.
        stop_early: also stop if the mean can hardly be shown to be below zero any more. This makes no false claim more
            likely.
    """
    judgement = Judgement("open", 0, math.nan, -math.inf, math.inf)
    for look, n in enumerate(plan.looks):
        if n > len(values):
            return judgement
        sample = np.asarray(values[:n], float)
        mean = float(sample.mean())
        error = max(float(sample.std(ddof=1)), least_spread) / math.sqrt(n)
        critical = plan.critical(look)
        low, high = mean - critical * error, mean + critical * error
        verdict: Verdict = "below" if high < 0 else "above" if low > 0 else "open"
        if verdict == "open" and n == plan.looks[-1]:
            verdict = "undecided"
        elif verdict == "open" and stop_early and _chance(mean, error, look, plan) < FUTILE:
            verdict = "futile"
        judgement = Judgement(verdict, n, mean, low, high)
        if verdict != "open":
            return judgement
    return judgement


def _chance(mean: float, error: float, look: int, plan: Plan) -> float:
    """Return the probability that the last look shows the mean to be below zero, if the current mean is true."""
    if error == 0:
        return 1.0 if mean < 0 else 0.0
    share = plan.looks[look] / plan.looks[-1]
    statistic = -mean / error
    expected = statistic / math.sqrt(share)
    return float(special.ndtr((expected - plan.critical(len(plan.looks) - 1)) / math.sqrt(1 - share)))
