"""The number of seeds that a t-test needs, for planning and evaluating a grid."""

from __future__ import annotations

import math

from scipy import special, stats

CONFIDENCE = 0.95
"""The default confidence level of intervals and tests."""
POWER = 0.8
"""The statistical power at the required number of seeds: the probability of detecting an existing difference."""


def seeds_needed(
    spread: float,
    difference: float,
    sides: int,
    *,
    confidence: float = CONFIDENCE,
    fixed_variance: float = 0.0,
    fewest: int = 2,
    most: int = 10_000,
) -> int | None:
    """Return the smallest number of seeds at which a paired t-test detects ``difference`` with a power of 80 %.

    Args:
        spread: standard deviation of the difference between paired trials.
        difference: the difference to detect, in the same unit.
        sides: 1 for a one-sided test, 2 for a two-sided test.
        confidence: confidence level of the test.
        fixed_variance: the part of the mean's variance that does not shrink with the number of seeds.
        fewest: the smallest possible result.
        most: the largest possible result.

    Returns:
        The number of seeds; None if ``most`` seeds are too few.
    """

    def is_enough(seeds: int) -> bool:
        own_variance = spread**2 / seeds
        error = math.sqrt(own_variance + fixed_variance)
        if error == 0:
            return True
        df = seeds - 1.0
        if fixed_variance > 0:  # degrees of freedom by Welch and Satterthwaite
            df = min((own_variance + fixed_variance) ** 2 / max(own_variance**2 / (seeds - 1), 1e-300), 1e6)
        critical = special.stdtrit(df, 1 - (1 - confidence) / sides)
        return float(stats.nct.sf(critical, df, difference / error)) >= POWER

    too_few, enough = fewest - 1, fewest
    while not is_enough(enough):  # More seeds never reduce the power, so bisection finds the smallest number.
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough
