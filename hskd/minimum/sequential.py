"""Group-sequential one-sided tests of a mean: look at the data several times, and be wrong as seldom as in one look.

The level is spent over the looks by a function of the share of the data seen, written down beforehand (Lan and DeMets,
Biometrika 70, 1983). The boundaries are those of a normal mean, by numerical integration over the looks before
(Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969). The spread is estimated from the same few seeds, so each
is turned into the critical value of a t-test, at its nominal level times a factor that is the same for all looks. With
the factor 1 and looks from four seeds up, a test at 5 % would be wrong in up to 5.6 %; the factor is found on simulated
series.
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
"""How the level is spent: hardly at the first looks, or about evenly."""
Verdict = Literal["below", "above", "futile", "open", "undecided"]
"""``below`` and ``above``: the mean is, by the test. ``futile``: more data would hardly show it below. ``open``: the
next look is still to come. ``undecided``: there is none left."""
FUTILE = 0.05
"""A test stops where the chance of a positive end, if things go on as they look, is less."""
_GRID = 401
"""Points of the numerical integration; an odd number."""
_WIDTH = 8.0
"""Standard deviations that the integration goes down from zero."""
_PATHS = 100_000
"""Simulated series of seeds on which the factor of nominal levels is found."""


def spent(share: float, level: float, spending: Spending) -> float:
    """The part of ``level`` that may be spent until a share of all data is seen.

    Args:
        share: above 0, at most 1.
        level: one-sided.
        spending: the function.
    """
    if spending == "pocock":
        return level * math.log(1 + (math.e - 1) * share)
    return float(2 * special.ndtr(-special.ndtri(1 - level / 2) / math.sqrt(share)))


@lru_cache(maxsize=256)
def boundaries(looks: tuple[int, ...], level: float, spending: Spending) -> tuple[float, ...]:
    """Critical values of a standard normal statistic, one for each look.

    Args:
        looks: sample sizes, ascending; the last is the largest.
        level: one-sided, of all looks together.
        spending: how it is spent.
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
    """Critical values of the t-statistics, one for each look."""
    nominal = special.ndtr(-np.array(boundaries(looks, level, spending)))
    degrees = np.array(looks) - 1
    paths = np.random.default_rng(0).normal(size=(_PATHS, looks[-1]))
    sums, squares = paths.cumsum(1)[:, degrees], (paths**2).cumsum(1)[:, degrees]
    n = np.array(looks)
    statistics = (sums / n) / np.sqrt((squares - sums**2 / n) / degrees / n)
    # How far beyond its boundary the furthest look of a path is, as a nominal level; its quantile is the factor.
    levels = special.stdtr(degrees, -statistics) / nominal
    factor = min(1.0, float(np.quantile(levels.min(1), level)))
    return tuple(float(-special.stdtrit(df, factor * p)) for df, p in zip(degrees, nominal, strict=True))


@dataclass(frozen=True)
class Plan:
    """When a test looks at its data, and how it spends its level.

    Attributes:
        looks: numbers of seeds, ascending.
        level: one-sided, of all looks together.
        spending: how it is spent.

    Raises:
        HskdError: the looks are not ascending from 2 up, or the level is not between 0 and 0.5.
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
        """The critical value of the t-statistic at a look, counted from 0."""
        return _criticals(self.looks, self.level, self.spending)[look]


@dataclass(frozen=True)
class Judgement:
    """What a sequential test says.

    Attributes:
        verdict: see :data:`Verdict`.
        n: values used: those of the last look that was taken.
        mean: of these; NaN where there was no look.
        low: the least mean that is compatible, one-sided, at the plan's level over all looks.
        high: the greatest, likewise.
    """

    verdict: Verdict
    n: int
    mean: float
    low: float
    high: float


def judge(values: Sequence[float], plan: Plan, least_spread: float = 0.0, stop_early: bool = True) -> Judgement:
    """Test whether the mean of ``values`` is below zero, or above, look by look.

    The two one-sided tests have the plan's level each.

    Args:
        values: in the order in which they come; more than the last look takes are ignored.
        plan: looks and level.
        least_spread: the standard deviation is taken to be no smaller: a few scores on a small test set may be equal.
        stop_early: stop, too, where a mean below zero would hardly be shown any more. No wrong claim gets likelier.
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
    """The probability that the last look shows the mean below zero, if the mean is what it looks like now."""
    if error == 0:
        return 1.0 if mean < 0 else 0.0
    share = plan.looks[look] / plan.looks[-1]
    statistic = -mean / error
    expected = statistic / math.sqrt(share)
    return float(special.ndtr((expected - plan.critical(len(plan.looks) - 1)) / math.sqrt(1 - share)))
