from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.trial_tables import LADDER, rescored, study

from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.sufficiency import Sufficiency, minimum_sufficient
from hskd.analysis.table import Study, studies
from hskd.errors import HskdError

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
NOISE = 0.001 * np.array([[-1, 0.5, 0, 1, -0.5], [0.5, 1, -1, -0.5, 0], [0, -1, 0.5, 1, -0.5], [1, 0, -0.5, -1, 0.5]])
"""Differences of each point to full, by seed: mean 0, deviation 0.08 points."""


def losing(*losses: float, gap: float = 0.03, seeds: int = 5, noise: float = 1.0) -> Study:
    """Return a study whose four specs have these losses against full (shares of 1)."""
    shared = 0.79 + 0.01 * np.arange(seeds)
    scores = {"none": shared - gap + 2 * noise * NOISE[0, :seeds], "full": shared}
    for name, loss, own in zip(LADDER, losses, NOISE, strict=False):
        scores[name] = shared - loss + noise * own[:seeds]
    return study({name: list(values) for name, values in scores.items()})


def ask(made: Study, **how: float) -> Sufficiency:
    [answer] = minimum_sufficient(made, **how)  # type: ignore[arg-type]
    return answer


def test_the_smallest_shown_to_lose_less_is_enough_and_the_largest_shown_to_lose_more_is_not() -> None:
    answer = ask(losing(0.02, 0.005, 0.001, 0.0))
    assert (answer.verdict, answer.name, answer.above) == ("sufficient", LADDER[2], LADDER[0])
    assert answer.tests["name"].tolist() == ["none", *losing(0, 0, 0, 0).ladder("")[0]]
    assert answer.tests["verdict"].tolist() == [
        "insufficient",
        "insufficient",
        "not resolved",
        "sufficient",
        "sufficient",
    ]
    row = answer.tests.iloc[3]
    assert row["loss"] == pytest.approx(0.001)
    # Computed from 0.79 points of deviation and the 95 % quantile of t with 4 degrees of freedom.
    half = 2.131847 * np.std(NOISE[2], ddof=1) / math.sqrt(5)
    assert (row["low"], row["high"], row["n"]) == (pytest.approx(0.001 - half), pytest.approx(0.001 + half), 5)
    assert answer.fraction == pytest.approx(2 / 4 * 8 / 27 * 0.5)
    assert answer.bytes_per_example == pytest.approx(answer.fraction * 80_000)
    assert answer.gap.mean == pytest.approx(0.03)
    assert answer.sentence == (
        "Enough: 2l_8t_0.5w (7.4 % of full HSK, 5,926 bytes an example). It loses 0.1 points against full; the loss is "
        "at most 0.18 points, so less than 0.5 points (5 seeds). 1l_1t_0.1w (0.093 %) is not enough: it loses more "
        "than 0.5 points. (95 % confidence, on these very test examples.)"
    )


def test_the_walk_down_ends_at_the_first_that_fails() -> None:
    answer = ask(losing(0.0, 0.0, 0.005, 0.0))
    assert (answer.verdict, answer.name, answer.above) == ("sufficient", "2l_all_0.5w", "none")


def test_all_are_enough() -> None:
    answer = ask(losing(0.0, 0.0, 0.0, 0.0))
    assert (answer.name, answer.above) == (LADDER[0], "none")
    assert "not enough" not in answer.sentence


def test_where_the_largest_loses_more_nothing_below_full_is_enough() -> None:
    answer = ask(losing(0.025, 0.02, 0.015, 0.01))
    assert (answer.verdict, answer.name, answer.fraction) == ("all", "full", 1.0)
    assert answer.above == "2l_all_0.5w"
    assert "Even 2l_all_0.5w (25 %) loses 1 point against full; the loss is at least 0.92 points" in answer.sentence


def test_what_scores_above_full_is_said_to_gain() -> None:
    answer = ask(losing(0.02, 0.01, 0.0, -0.002))
    assert "It loses 0 points against full" in answer.sentence
    answer = ask(losing(0.02, 0.01, 0.01, -0.002))
    assert "It gains 0.2 points over full; the loss is at most -0.12 points, so less than" in answer.sentence


def test_a_share_of_the_gap_is_another_margin() -> None:
    answer = ask(losing(0.02, 0.012, 0.0061, 0.001), share=0.3)
    assert (answer.verdict, answer.name, answer.above) == ("sufficient", LADDER[2], LADDER[1])
    assert (answer.margin, answer.limit) == ("30 % of the gap", pytest.approx(0.009))
    assert answer.tests["loss"].tolist() == pytest.approx([0.03, 0.02, 0.012, 0.0061, 0.001])
    assert "less than 30 % of the gap (0.9 points)" in answer.sentence


@settings(max_examples=40)
@given(st.floats(0.05, 0.9), st.integers(0, 1000))
def test_a_share_is_tested_seed_by_seed(share: float, random_state: int) -> None:
    """Tests the contrast (full - c) - share (full - none) against 0."""
    rng = np.random.default_rng(random_state)
    made = losing(0.02, 0.01, 0.005, 0.0)
    names = ["none", *made.ladder("")[0], "full"]
    scores = np.array([0.75, 0.76, 0.77, 0.785, 0.79, 0.79]) + 0.004 * rng.standard_normal((5, 6))
    tests = ask(rescored(made, scores, names), share=share).tests
    for i, verdict in enumerate(tests["verdict"]):
        beyond = scores[:, 5] - scores[:, i] - share * (scores[:, 5] - scores[:, 0])
        less = stats.ttest_1samp(beyond, 0, alternative="less").pvalue < 0.05
        more = stats.ttest_1samp(beyond, 0, alternative="greater").pvalue < 0.05
        assert verdict == ("sufficient" if less else "insufficient" if more else "not resolved")


def test_amounts_may_be_ordered_by_bytes() -> None:
    answer = ask(losing(0.02, 0.005, 0.001, 0.0), by="bytes_per_example")
    assert answer.tests["amount"].iloc[-1] == pytest.approx(20_000)
    assert answer.name == LADDER[2]


def test_each_strategy_has_its_own_answer() -> None:
    shared = [0.79, 0.8, 0.81]
    scores = {
        "none": [0.75, 0.761, 0.769],
        "full": shared,
        "all_3t_all": [0.789, 0.7991, 0.81],
        "all_3t_all,length=random": [0.769, 0.779, 0.79],
    }
    by_strategy = {answer.strategy: answer for answer in minimum_sufficient(study(scores))}
    assert by_strategy["attention_no_sep"].verdict == "sufficient"
    assert by_strategy["random"].verdict == "all"
    assert by_strategy["random"].sentence.startswith("Nothing below full is enough (random), of what was tried.")


@pytest.mark.parametrize(
    ("made", "says", "gap_shown"),
    [
        (study({"none": [0.7] * 3, LADDER[0]: [0.7] * 3}), "no full arm", None),
        (study({"full": [0.7] * 3, LADDER[0]: [0.7] * 3}), "no none arm", None),
        (losing(0.0, 0.0, 0.0, 0.0, seeds=2), "too few seeds: full and none share 2 seeds", None),
        (losing(0.0, 0.0, 0.0, 0.0, seeds=1), "too few seeds: full and none share 1 seed,", None),
        (losing(0.0, 0.0, 0.0, 0.0, gap=0.006), "no gap: full scores 0.6 points above none, at least 0.45", False),
        (losing(0.01, 0.0, 0.01, 0.0), r"not ordered: 2l_8t_0.5w .* while 1l_8t_0.1w .* less HSK, loses less", True),
        (losing(0.02, 0.01, 0.006, 0.005), "not resolved: 2l_all_0.5w .25 %., .* loses 0.5 points", True),
        (
            study({"none": [0.7, 0.71, 0.72], "full": [0.75, 0.76, 0.77], "all_all_all,length=random": [0.7] * 3}),
            "less HSK",
            None,
        ),
    ],
)
def test_undetermined_says_why(made: Study, says: str, gap_shown: bool | None) -> None:
    answer = ask(made)
    assert answer.gap_shown is gap_shown
    assert (answer.verdict, answer.name) == ("undetermined", "")
    assert math.isnan(answer.fraction)
    assert re.search(says, answer.reason)
    assert answer.sentence.startswith("Undetermined: ")


def test_without_a_gap_none_itself_may_be_enough() -> None:
    answer = ask(losing(0.0, 0.0, 0.0, 0.0, gap=0.0))
    assert "None itself is enough at this margin: full gains at most 0.15 points" in answer.reason
    assert "None itself" not in ask(losing(0.0, 0.0, 0.0, 0.0, gap=0.005)).reason
    assert "not shown to be more than 0." in ask(losing(0.0, 0.0, 0.0, 0.0, gap=0.0), share=0.2).reason


def test_what_is_not_resolved_asks_for_seeds_and_keeps_what_is_shown() -> None:
    answer = ask(losing(0.02, 0.01, 0.006, 0.004, noise=5))
    assert answer.verdict == "undetermined"
    assert answer.above == LADDER[1]
    assert answer.seeds_needed is not None and answer.seeds_needed > 5
    assert f"If it loses nothing, {answer.seeds_needed} seeds would show that (80 % power)." in answer.reason
    assert "1l_8t_0.1w (0.74 %) is not enough" in answer.sentence


def test_a_largest_amount_of_too_few_seeds_is_named() -> None:
    scores = {"none": [0.75, 0.761, 0.769], "full": [0.79, 0.8, 0.81], LADDER[0]: [0.79, 0.80]}
    answer = ask(study(scores))
    assert (answer.verdict, answer.seeds_needed) == ("undetermined", None)
    assert answer.reason.startswith("too few seeds: 1l_1t_0.1w (0.093 %), the largest amount below full, shares 2")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"margin": 50.0}, "margin: 50.0 is out of range"),
        ({"share": 1.5}, "share: 1.5 is out of range"),
        ({"confidence": 95.0}, "confidence: 95.0 is out of range"),
        ({"by": "seconds"}, "by: 'seconds' is no column"),
    ],
)
def test_a_question_out_of_range_is_refused(how: dict[str, float], says: str) -> None:
    with pytest.raises(HskdError, match=says):
        ask(losing(0.0), **how)


def test_answers_make_the_claim_one_for_new_examples() -> None:
    [demo] = studies(DEMO)
    answers = Answers.read(demo.folder, demo)
    [here], [anew] = minimum_sufficient(demo, 0.015), minimum_sufficient(demo, 0.015, answers=answers)
    assert here.sentence.endswith("on these very test examples.)")
    assert anew.sentence.endswith("for new test examples like these.)")
    assert (anew.tests["high"] >= here.tests["high"] - 1e-12).all()
    assert (anew.tests["low"] <= here.tests["low"] + 1e-12).all()
    [small] = minimum_sufficient(demo, 0.001, answers=answers)
    assert small.seeds_needed is None
    assert "it takes more test examples" in small.reason


def test_a_study_without_specs_has_no_answer() -> None:
    assert minimum_sufficient(study({"none": [0.7], "full": [0.8]})) == []
