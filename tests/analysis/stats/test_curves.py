from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.trial_tables import study, table

from hskd.analysis.stats.curves import contrast, marginal_utility, points
from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import Study, studies
from hskd.errors import HskdError

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
NONE, SMALL, LARGE, FULL = (
    [0.750, 0.760, 0.752],
    [0.772, 0.774, 0.775],
    [0.779, 0.790, 0.781],
    [0.780, 0.792, 0.785],
)
SCORES = {"none": NONE, "1l_8t_0.1w": SMALL, "2l_8t_0.5w": LARGE, "full": FULL}


def test_points_equal_a_hand_computation() -> None:
    found = points(study(SCORES)).set_index("name")
    row = found.loc["1l_8t_0.1w"]
    interval = stats.ttest_1samp(SMALL, 0).confidence_interval(0.95)
    assert (row["mean"], row["low"], row["high"], row["n"]) == pytest.approx(
        (np.mean(SMALL), interval.low, interval.high, 3)
    )
    paired = stats.ttest_rel(SMALL, NONE).confidence_interval(0.95)
    above = row[["above_none", "above_none_low", "above_none_high"]].astype(float)
    assert above.tolist() == pytest.approx([np.mean(np.subtract(SMALL, NONE)), paired.low, paired.high])
    gained, gap = np.subtract(SMALL, NONE), np.subtract(FULL, NONE)
    assert row["relative"] == pytest.approx(gained.mean() / gap.mean())
    assert stats.ttest_1samp(gained - row["relative_low"] * gap, 0).pvalue == pytest.approx(0.05)
    assert row["kept_per_example"] == pytest.approx(1 / 4 * 8 / 27 * 0.1 * 4 * 27 * 384, abs=1)


def test_points_rise_from_none_to_full_and_these_anchor_the_share_of_the_gap() -> None:
    found = points(study(SCORES))
    assert found["name"].tolist() == [*SCORES]
    assert found["fraction"].is_monotonic_increasing
    anchors = found.set_index("name")[["relative", "relative_low", "relative_high"]]
    assert anchors.loc["none"].tolist() == pytest.approx([0, 0, 0])
    assert anchors.loc["full"].tolist() == pytest.approx([1, 1, 1])


def test_a_confidence_widens() -> None:
    sure, surer = points(study(SCORES)), points(study(SCORES), 0.99)
    assert (surer["low"] < sure["low"]).all()
    assert (surer["relative_high"] >= sure["relative_high"]).all()


def test_one_seed_carries_no_interval() -> None:
    found = points(study({name: values[:1] for name, values in SCORES.items()}))
    bounds = [column for column in found if column.endswith(("low", "high"))]
    assert found[bounds].isna().all(axis=None)
    assert found[["mean", "above_none", "relative"]].notna().all(axis=None)
    assert (found["n"] == 1).all()


def test_without_none_or_full_what_needs_them_is_left_open() -> None:
    found = points(study({"1l_8t_0.1w": SMALL, "full": FULL}))
    assert found[["above_none", "above_none_low", "relative"]].isna().all(axis=None)
    found = points(study({"1l_8t_0.1w": SMALL, "none": NONE}))
    assert found["above_none"].notna().all()
    assert found["relative"].isna().all()


def test_without_a_gap_the_share_of_it_is_unbounded() -> None:
    found = points(study(SCORES | {"full": [0.751, 0.758, 0.755]})).set_index("name")
    assert math.isnan(found.loc["1l_8t_0.1w", "relative_low"])


def test_a_spec_closes_no_share_of_a_gap_that_runs_the_other_way() -> None:
    found = points(study(SCORES | {"full": [score - 0.1 for score in NONE]}))
    assert found["above_none"].notna().all()
    assert found[["relative", "relative_low", "relative_high"]].isna().all(axis=None)


def test_seeds_that_one_of_them_lacks_do_not_count() -> None:
    made = study({"none": [0.7, 0.72], "1l_8t_0.1w": [0.75, 0.77, 0.99], "full": [0.8, 0.81, math.nan]})
    row = points(made).set_index("name").loc["1l_8t_0.1w"]
    assert (row["n"], row["above_none"]) == (3, pytest.approx(0.05))
    assert contrast(made, {"1l_8t_0.1w": 1, "none": -1}).n == 2


def test_rows_in_any_order_give_the_same_points() -> None:
    shuffled = table(SCORES).sample(frac=1, random_state=0)
    assert points(Study.of(shuffled)).equals(points(study(SCORES)))


def test_marginal_utility_is_the_paired_gain_of_a_doubling() -> None:
    found = marginal_utility(study(SCORES))
    assert list(zip(found["from_name"], found["to_name"], strict=True)) == [
        ("1l_8t_0.1w", "2l_8t_0.5w"),
        ("2l_8t_0.5w", "full"),
    ]
    row = found.iloc[0]
    assert row["at"] == pytest.approx(math.sqrt(row["low_x"] * row["high_x"]))
    gains = np.subtract(LARGE, SMALL) / math.log2(row["high_x"] / row["low_x"])  # ten times the HSK
    assert math.log2(row["high_x"] / row["low_x"]) == pytest.approx(math.log2(10))
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (row["gain"], row["low"], row["high"]) == pytest.approx((gains.mean(), interval.low, interval.high))
    assert row["n"] == 3


def test_points_closer_than_half_a_doubling_are_pooled() -> None:
    scores = {"all_8t_all": SMALL, "all_10t_all": LARGE, "all_20t_all": LARGE, "all_25t_all": FULL, "full": FULL}
    found = marginal_utility(study(scores), x="fraction")
    assert found[["from_name", "to_name"]].to_numpy().tolist() == [
        ["all_8t_all + all_10t_all", "all_20t_all + all_25t_all + full"]
    ]
    [low_x], [high_x] = found["low_x"], found["high_x"]
    assert low_x == pytest.approx(math.sqrt(8 * 10) / 27)
    assert high_x == pytest.approx((20 * 25 * 27) ** (1 / 3) / 27)
    gain = np.mean([LARGE, FULL, FULL], axis=0) - np.mean([SMALL, LARGE], axis=0)
    assert found["gain"].item() == pytest.approx(gain.mean() / math.log2(high_x / low_x))


def test_each_strategy_has_steps_of_its_own_that_end_with_full() -> None:
    scores = {"all_1t_all": SMALL, "all_8t_all": LARGE, "all_1t_all,length=left": NONE, "full": FULL, "none": NONE}
    found = marginal_utility(study(scores), x="bytes_per_example")
    assert found[["strategy", "to_name"]].to_numpy().tolist() == [
        ["attention_no_sep", "all_8t_all"],
        ["attention_no_sep", "full"],
        ["left", "full"],
    ]
    assert found["high_x"].iloc[-1] == 80_000
    with pytest.raises(HskdError, match="by: 'n' is no column of amounts"):
        marginal_utility(study(scores), x="n")


def test_a_lone_point_has_no_marginal_utility() -> None:
    found = marginal_utility(study({"1l_8t_0.1w": SMALL}))
    assert found.empty
    assert "gain" in found


def test_answers_never_narrow_an_interval() -> None:
    [demo] = studies(DEMO)
    answers = Answers.read(demo.folder, demo)
    assert answers is not None
    here, anew = points(demo), points(demo, answers=answers)
    assert here[["name", "mean", "above_none", "relative"]].equals(anew[["name", "mean", "above_none", "relative"]])
    for column in ("", "above_none_", "relative_"):
        # A missing bound counts as the widest.
        low, high = (anew[f"{column}{end}"].fillna(side * math.inf) for end, side in (("low", -1), ("high", 1)))
        assert (low <= here[f"{column}low"].fillna(-math.inf) + 1e-12).all()
        assert (high >= here[f"{column}high"].fillna(math.inf) - 1e-12).all()
    # With 2,030 examples, a score is itself uncertain by about a point.
    widest = (anew["high"] - anew["low"]).min()
    assert widest > 2 * 1.96 * math.sqrt(0.77 * 0.23 / 2030) * 0.9
