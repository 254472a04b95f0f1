from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hskd.analysis.stats.intervals import (
    MOST_SEEDS,
    Estimate,
    holm,
    lower_bound,
    ratio_interval,
    seeds_to_show_no_loss,
    t_interval,
    upper_bound,
)
from hskd.statistics import POWER

FINE = st.floats(-1, 1).map(lambda value: round(value, 4))


def test_a_mean_has_the_t_interval() -> None:
    values = [0.752, 0.762, 0.772]
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.302653, the 95 % one 2.919986.
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert t_interval(values) == pytest.approx((0.762, 0.762 - half, 0.762 + half, 3), abs=1e-8)
    half = 2.919986 * 0.01 / math.sqrt(3)
    assert (lower_bound(values), upper_bound(values)) == pytest.approx((0.762 - half, 0.762 + half), abs=1e-8)


@given(st.lists(FINE, min_size=2, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_it_is_the_interval_of_the_library(values: list[float], confidence: float) -> None:
    if len(set(values)) == 1:
        assert t_interval(values, confidence)[:3] == pytest.approx((values[0],) * 3, abs=1e-12)
        return
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert t_interval(values, confidence)[1:3] == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.7]])
def test_one_value_carries_no_interval(values: list[float]) -> None:
    mean, low, high, n = t_interval(values)
    assert (n, math.isnan(low), math.isnan(high)) == (len(values), True, True)
    assert mean == 0.7 if values else math.isnan(mean)
    assert math.isnan(lower_bound(values)) and math.isnan(upper_bound(values))


@given(st.lists(FINE, min_size=2, max_size=6), st.floats(0, 0.1), st.integers(1, 2000))
def test_another_source_of_variance_never_narrows(values: list[float], variance: float, df: int) -> None:
    seeds, both = Estimate.of(values), Estimate.of(values, variance, df)
    assert both.df >= seeds.df - 1e-9 or both.df >= df - 1e-9
    assert both.interval().low <= seeds.interval().low + 1e-12
    assert both.upper(0.9) >= seeds.upper(0.9) - 1e-12


def test_degrees_of_freedom_follow_welch_and_satterthwaite() -> None:
    a, b = [1.0, 2.0, 4.0], [3.0, 3.5, 5.0, 9.0, 2.0]
    expected = stats.ttest_ind(a, b, equal_var=False)
    both = Estimate.of(a, float(np.var(b, ddof=1)) / len(b), len(b) - 1)
    assert both.df == pytest.approx(expected.df)


def test_a_ratio_has_fiellers_interval() -> None:
    rng = np.random.default_rng(0)
    bottom = 0.03 + 0.004 * rng.standard_normal(6)
    top = 0.6 * bottom + 0.003 * rng.standard_normal(6)
    ratio, low, high, n = ratio_interval(top, bottom)
    assert (ratio, n) == (pytest.approx(top.mean() / bottom.mean()), 6)
    assert low < ratio < high
    # By definition, the paired test just fails to reject at each bound.
    for bound in (low, high):
        assert stats.ttest_1samp(top - bound * bottom, 0).pvalue == pytest.approx(0.05)


def test_a_ratio_to_nothing_is_unbounded() -> None:
    _, low, high, _ = ratio_interval([0.01, 0.02, 0.03], [0.001, -0.002, 0.002])
    assert math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, ratio_interval([0.1, 0.2], [0.0, 0.0])[:3]))
    assert all(map(math.isnan, ratio_interval([0.1], [0.2])[1:3]))


def test_the_same_over_the_same_is_one() -> None:
    assert ratio_interval([0.03, 0.031, 0.029], [0.03, 0.031, 0.029])[:3] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("spread", "limit"), [(0.004, 0.005), (0.01, 0.005), (0.02, 0.005)])
def test_the_seeds_asked_for_have_the_power(spread: float, limit: float) -> None:
    values = spread * np.array([-1, 0, 1.0])
    needed = seeds_to_show_no_loss(Estimate.of(values), limit)
    assert needed is not None

    def power(n: int) -> float:
        scores = np.random.default_rng(n).normal(0, spread, (20_000, n))
        upper = scores.mean(axis=1) + stats.t.ppf(0.95, n - 1) * scores.std(axis=1, ddof=1) / n**0.5
        return float((upper < limit).mean())

    error = 3 * math.sqrt(0.8 * 0.2 / 20_000)
    assert power(needed) > POWER - error
    if needed > 3:
        assert power(needed - 1) < POWER + error


def test_no_number_of_seeds_does_where_the_examples_leave_the_doubt() -> None:
    values = [-0.001, 0.0, 0.001]
    assert seeds_to_show_no_loss(Estimate.of(values, 0.005**2, 500), 0.005) is None
    assert seeds_to_show_no_loss(Estimate.of(values, 0.001**2, 500), 0.005) == 3
    assert seeds_to_show_no_loss(Estimate.of(values), 0.0) is None
    assert seeds_to_show_no_loss(Estimate.of([-1, 0, 1.0]), 0.005) is None, f"more than {MOST_SEEDS}"


def test_holm_equals_a_hand_computation() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.6])[[0, 2]] == pytest.approx([1.0, 1.0])
    assert np.isnan(holm([0.5, math.nan])[1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
