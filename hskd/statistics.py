"""How many seeds a t-test needs, for planning a grid and for judging one."""

from __future__ import annotations

import math

from scipy import special, stats

CONFIDENCE = 0.95
"""The confidence of intervals and tests where nothing else is asked for."""
POWER = 0.8
"""The probability with which the number of seeds asked for shows what there is to show."""


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
    """The least number of seeds at which a paired t-test shows ``difference`` with a power of 80 %.

    Args:
        spread: standard deviation of the difference between paired trials.
        difference: what the test is to show, in the same unit.
        sides: 1 or 2, of the test.
        confidence: of the test.
        fixed_variance: a part of the mean's variance that does not shrink with the number of seeds.
        fewest: the least answer.
        most: the greatest answer.

    Returns:
        None where ``most`` seeds are too few.
    """

    def is_enough(seeds: int) -> bool:
        own_variance = spread**2 / seeds
        error = math.sqrt(own_variance + fixed_variance)
        if error == 0:
            return True
        df = seeds - 1.0
        if fixed_variance > 0:  # Welch and Satterthwaite
            df = min((own_variance + fixed_variance) ** 2 / max(own_variance**2 / (seeds - 1), 1e-300), 1e6)
        critical = special.stdtrit(df, 1 - (1 - confidence) / sides)
        return float(stats.nct.sf(critical, df, difference / error)) >= POWER

    too_few, enough = fewest - 1, fewest
    while not is_enough(enough):  # more seeds never make it worse
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough
