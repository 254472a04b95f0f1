"""The group-sequential test: known boundaries, and its error rate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hskd.errors import HskdError
from hskd.minimum.sequential import Plan, Spending, boundaries, judge, spent

EQUAL = (20, 40, 60, 80, 100)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Lan and DeMets, one-sided 0.025, five equal looks: values of the R packages ldbounds and gsDesign.
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_boundaries_are_the_published_ones(spending: Spending, published: tuple[float, ...]) -> None:
    assert boundaries(EQUAL, 0.025, spending) == pytest.approx(published, abs=2e-3)


def test_one_look_is_the_t_test() -> None:
    assert Plan((8,), 0.05).critical(0) == pytest.approx(1.894579, abs=1e-5)  # t(7), 95 %


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_the_whole_level_is_spent_at_the_end_and_more_as_time_goes(spending: Spending) -> None:
    shares = np.linspace(0.1, 1, 10)
    values = [spent(share, 0.05, spending) for share in shares]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.05)


def _rate(mean: float, plan: Plan, runs: int = 20_000) -> float:
    """Return how often a mean is claimed to be below zero, without stopping for futility."""
    rng = np.random.default_rng(1)
    values = rng.normal(mean, 1.0, (runs, plan.looks[-1]))
    claimed = np.zeros(runs, bool)
    for look, n in enumerate(plan.looks):
        sample = values[:, :n]
        bound = sample.mean(1) + plan.critical(look) * sample.std(1, ddof=1) / math.sqrt(n)
        claimed |= bound < 0
    return float(claimed.mean())


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
@pytest.mark.parametrize("level", [0.01, 0.05])
@pytest.mark.parametrize("looks", [(4, 6, 8, 10, 12), (3, 5, 8, 12), (5, 10)])
def test_few_seeds_do_not_make_it_wrong_more_often(spending: Spending, level: float, looks: tuple[int, ...]) -> None:
    rate = _rate(0.0, Plan(looks, level, spending))
    assert rate <= level + 3 * math.sqrt(level * (1 - level) / 20_000)
    assert rate >= 0.6 * level


def test_it_has_power_and_ends_early() -> None:
    assert _rate(-1.0, Plan()) > 0.85
    rng = np.random.default_rng(2)
    taken = [judge(rng.normal(-2.0, 1.0, 12), Plan()).n for _ in range(300)]
    assert np.mean(taken) < 6


def test_verdicts() -> None:
    plan = Plan((3, 6))
    assert judge([-1.0, -1.1], plan).verdict == "open"
    assert judge([-1.0, -1.1, -0.9], plan).verdict == "below"
    assert judge([1.0, 1.1, 0.9], plan).verdict == "above"
    assert judge([0.5, 1.1, -0.4], plan).verdict == "futile"
    assert judge([0.5, 1.1, -0.4], plan, stop_early=False).verdict == "open"
    assert judge([-0.5, 0.6, -0.7, 0.4, -0.6, 0.5], plan, stop_early=False).verdict == "undecided"


def test_what_comes_after_a_decision_changes_nothing() -> None:
    values = [-1.0, -1.1, -0.9]
    assert judge([*values, 50.0, 60.0, 70.0], Plan((3, 6))) == judge(values, Plan((3, 6)))


def test_bounds_hold_what_the_test_says() -> None:
    judgement = judge([-1.0, -1.1, -0.9], Plan((3, 6)))
    assert judgement.low < judgement.mean < judgement.high < 0


def test_equal_scores_are_not_proof() -> None:
    values = [-0.001] * 4
    assert judge(values, Plan((4, 8))).verdict == "below"
    assert judge(values, Plan((4, 8)), least_spread=0.01).verdict != "below"


@pytest.mark.parametrize("looks", [(), (1, 2), (4, 4), (6, 4)])
def test_looks_must_ascend(looks: tuple[int, ...]) -> None:
    with pytest.raises(HskdError, match="looks"):
        Plan(looks)


def test_a_level_is_a_small_probability() -> None:
    with pytest.raises(HskdError, match="level"):
        Plan(level=0.6)
