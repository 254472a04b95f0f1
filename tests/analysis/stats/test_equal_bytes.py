"""Specs that take about the same bytes: which are grouped, and which are shown to be behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.trial_tables import rescored, study

from hskd.analysis.stats.equal_bytes import BEHIND, BEST_MEAN, GROUP_SPAN, equal_bytes, sentences
from hskd.analysis.stats.intervals import holm
from hskd.analysis.stats.strategies import UNDETERMINED
from hskd.analysis.table import Study

MEANS = {"none": 0.6, "1l_2t_0.1w": 0.70, "2l_1t_0.1w": 0.66, "1l_1t_0.2w": 0.699, "2l_8t_0.5w": 0.72, "full": 0.71}


def made(seeds: int = 10, noise: float = 0.002) -> Study:
    random = np.random.default_rng(3)
    return study({name: list(mean + noise * random.standard_normal(seeds)) for name, mean in MEANS.items()})


def test_specs_of_about_equal_bytes_are_held_against_the_best_mean() -> None:
    trials = made()
    table = equal_bytes(trials)
    assert table["name"].tolist()[0] == table["best"].unique().item() == "1l_2t_0.1w"
    assert set(table["name"]) == {"1l_2t_0.1w", "2l_1t_0.1w", "1l_1t_0.2w"}, "2l_8t_0.5w is alone at its bytes"
    rows = table.set_index("name")
    assert dict(rows["verdict"]) == {"1l_2t_0.1w": BEST_MEAN, "1l_1t_0.2w": UNDETERMINED, "2l_1t_0.1w": BEHIND}
    scores = trials.scores
    every = [("1l_2t_0.1w", "1l_1t_0.2w"), ("1l_2t_0.1w", "2l_1t_0.1w"), ("1l_1t_0.2w", "2l_1t_0.1w")]
    expected = holm([stats.ttest_rel(scores[a], scores[b]).pvalue for a, b in every])
    assert rows.loc[["1l_1t_0.2w", "2l_1t_0.1w"], "p_holm"].tolist() == pytest.approx(expected[:2].tolist())
    test = stats.ttest_rel(scores["1l_2t_0.1w"], scores["2l_1t_0.1w"]).confidence_interval(0.95)
    row = rows.loc["2l_1t_0.1w"]
    assert (row["behind_low"], row["behind_high"]) == pytest.approx((test.low, test.high))
    assert row["behind"] == pytest.approx((scores["1l_2t_0.1w"] - scores["2l_1t_0.1w"]).mean())
    [sentence] = sentences(table)
    assert "1l_2t_0.1w has the best mean of 3 specs, 70." in sentence
    assert "Shown to be behind it: 2l_1t_0.1w. Not shown to be behind: 1l_1t_0.2w." in sentence


def test_a_group_spans_half_a_doubling() -> None:
    table = made().trials
    sizes = dict(zip([name for name in MEANS if "_" in name], (100.0, 141.0, 142.0, 199.0), strict=True))
    table["bytes_per_example"] = table["spec"].map(sizes).fillna(table["bytes_per_example"])
    groups = equal_bytes(Study.of(table)).groupby("group")["bytes_per_example"].agg(["min", "max"])
    assert groups.to_numpy().tolist() == [[100, 141], [142, 199]]
    assert (groups["max"] <= GROUP_SPAN * groups["min"]).all()


def test_seeds_that_both_have_are_paired() -> None:
    table = made().trials
    few = table[~((table["spec"] == "2l_1t_0.1w") & (table["seed"] > 3))]
    trials = Study.of(few)
    row = equal_bytes(trials).set_index("name").loc["2l_1t_0.1w"]
    pair = trials.scores[["1l_2t_0.1w", "2l_1t_0.1w"]].dropna()
    assert (row["n"], len(pair)) == (4, 4)
    assert row["behind"] == pytest.approx((pair["1l_2t_0.1w"] - pair["2l_1t_0.1w"]).mean())


def test_one_seed_shows_nothing() -> None:
    table = equal_bytes(made(1))
    assert BEHIND not in set(table["verdict"]) and table["p_holm"].isna().all()
    assert len(table) == 3


def test_nothing_of_about_equal_bytes_gives_an_empty_table() -> None:
    table = equal_bytes(study({"none": [0.6], "1l_1t_0.1w": [0.7], "full": [0.7]}))
    assert table.empty and sentences(table) == []
    assert isinstance(table, pd.DataFrame) and "verdict" in table


def test_no_spec_is_falsely_behind_in_more_than_one_group_of_twenty() -> None:
    random = np.random.default_rng(5)
    specs = ["1l_2t_0.1w", "2l_1t_0.1w", "1l_1t_0.2w", "1l_2t_0.09w", "2l_1t_0.09w"]
    groups, seeds = 200, 5
    alike = study({name: [0.7] * seeds for name in specs})
    drawn = 0.7 + 0.01 * random.standard_normal((groups, seeds, len(specs)))
    wrong = sum(BEHIND in set(equal_bytes(rescored(alike, scores, specs))["verdict"]) for scores in drawn)
    assert stats.binomtest(wrong, groups, 0.05, alternative="greater").pvalue > 0.001
