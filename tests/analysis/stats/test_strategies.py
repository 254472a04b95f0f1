from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support.trial_tables import rescored, study

from hskd.analysis.stats.points import as_kept, taken_apart
from hskd.analysis.stats.strategies import UNDETERMINED, by_amount, compare_strategies, paired_test, winners
from hskd.spec import HSKSpec

LENGTH = [f"2l_{k}t_0.1w{change}" for k in (1, 3, 8) for change in ("", ",length=left", ",length=random")]


def noise(names: list[str], seeds: int = 5, random_state: int = 0) -> dict[str, list[float]]:
    random = np.random.default_rng(random_state)
    return {name: list(0.7 + 0.01 * random.standard_normal(seeds)) for name in names}


def test_a_pair_is_averaged_over_settings_then_tested_over_seeds() -> None:
    scores = noise(LENGTH)
    row = compare_strategies(study(scores)).set_index(["a", "b"]).loc[("attention_no_sep", "left")]
    a = np.mean([scores[f"2l_{k}t_0.1w"] for k in (1, 3, 8)], axis=0)
    b = np.mean([scores[f"2l_{k}t_0.1w,length=left"] for k in (1, 3, 8)], axis=0)
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    found = row[["difference", "low", "high", "p"]].tolist()
    assert found == pytest.approx([np.mean(a - b), interval.low, interval.high, test.pvalue])
    assert (row["dimension"], row["matched"], row["n"]) == ("length", 3, 5)


def test_each_amount_is_a_pair_of_its_own_and_all_are_one_family() -> None:
    scores = noise(LENGTH)
    table = by_amount(study(scores))
    assert table["amount"].tolist() == ["1", "3", "8"] * 3
    row = table[(table["amount"] == "3") & (table["b"] == "left")].iloc[0]
    assert row["p"] == pytest.approx(stats.ttest_rel(scores["2l_3t_0.1w"], scores["2l_3t_0.1w,length=left"]).pvalue)
    assert table["p_holm"].min() == pytest.approx(min(1, len(table) * table["p"].min()))


def test_what_keeps_the_same_is_not_compared() -> None:
    names = ["all_1t_all,length=left", "all_1t_all,length=cls", "all_all_all,length=attention", "full"]
    assert compare_strategies(study(noise([*names, "all_all_all,width=magnitude", "none"]))).empty
    # left and cls keep the same first token, attention another one. With all tokens, the neurons differ.
    names += ["all_1t_all,length=attention", "all_all_0.1w,width=magnitude", "all_all_0.1w,width=random"]
    pairs = compare_strategies(study(noise(names)))
    assert set(zip(pairs["a"], pairs["b"], strict=True)) == {
        ("left", "attention"),
        ("cls", "attention"),
        ("magnitude", "random"),
    }


def test_every_dimension_is_compared_at_equal_others() -> None:
    names = ["2l_3t_0.1w", "2l_3t_0.1w,l_top=5", "full", "full,l_top=5", "2l_3t_0.1w,precision=fp32"]
    table = compare_strategies(study(noise([*names, "1l_3t_0.1w,width=uniform"]))).set_index("dimension")
    assert table[["a", "b", "matched"]].loc["depth"].tolist() == ["l_top=1.0", "l_top=5", 2]
    assert table[["a", "b", "matched"]].loc["precision"].tolist() == ["fp16", "fp32", 1]
    assert "width" not in table.index and "length" not in table.index
    assert by_amount(study(noise(names))).query("dimension == 'precision'")["amount"].tolist() == ["2l_3t_0.1w"]


def test_a_spec_that_keeps_all_neurons_matches_whatever_its_selector() -> None:
    names = ["all_3t_all", "all_3t_all,width=magnitude,length=left"]
    assert compare_strategies(study(noise(names)))["matched"].tolist() == [1]


def test_only_a_complete_block_of_trials_counts() -> None:
    scores = noise(LENGTH)
    scores["2l_8t_0.1w"][4] = np.nan  # the grid stopped in its last seed
    row = compare_strategies(study(scores)).set_index(["a", "b"]).loc[("attention_no_sep", "left")]
    expected = np.mean(
        [np.subtract(scores[f"2l_{k}t_0.1w"], scores[f"2l_{k}t_0.1w,length=left"])[:4] for k in (1, 3, 8)], axis=0
    )
    assert (row["n"], row["matched"]) == (4, 3)
    assert row["difference"] == pytest.approx(expected.mean())
    scores["2l_8t_0.1w"] = [0.7, *[np.nan] * 4]  # a single trial does not discard all others
    row = compare_strategies(study(scores)).set_index(["a", "b"]).loc[("attention_no_sep", "left")]
    assert (row["n"], row["matched"]) == (5, 2)


def test_one_seed_decides_nothing() -> None:
    table = compare_strategies(study(noise(LENGTH, seeds=1)))
    assert table["p"].isna().all() and (table["verdict"] == UNDETERMINED).all()
    assert "1 shared seed, so no interval" in winners(table)["length"][1]


def test_equal_differences_do_not_pass_for_certainty() -> None:
    mean, low, _, p = paired_test(np.array([0.003, 0.003, 0.003]), 0.95)
    assert (mean, p) == (pytest.approx(0.003), 0.25) and np.isnan(low)
    assert paired_test(np.zeros(9), 0.95)[3] == 1


def test_the_winner_beats_every_other() -> None:
    scores = noise(LENGTH)
    for name in scores:
        scores[name] = [score + 0.1 * ("=" not in name) for score in scores[name]]
    winner, sentence = winners(compare_strategies(study(scores)))["length"]
    assert winner == "attention_no_sep"
    assert sentence.startswith("attention_no_sep beats every other strategy: ")
    assert " left by " in sentence and " random by " in sentence
    scores["2l_1t_0.1w,length=left"] = [0.99, 0.97, 0.98, 0.95, 0.99]  # as far ahead here as behind elsewhere
    winner, sentence = winners(compare_strategies(study(scores)))["length"]
    assert winner == UNDETERMINED
    assert sentence.startswith("Undetermined: attention_no_sep beats random by ") and "which is not shown" in sentence


def test_a_strategy_never_met_keeps_the_winner_open() -> None:
    names = ["2l_3t_0.1w", "2l_3t_0.1w,length=left", "2l_1t_0.1w,length=random", "2l_1t_0.1w,length=left"]
    scores = noise(names)
    scores["2l_3t_0.1w"] = list(np.add(scores["2l_3t_0.1w"], 0.2))
    winner, sentence = winners(compare_strategies(study(scores)))["length"]
    assert winner == UNDETERMINED and "was never tried at the same amount as random" in sentence


def test_no_difference_gives_a_winner_in_at_most_5_per_cent() -> None:
    """Family-wise error: three strategies at two amounts, with 5 seeds that shift all trials of a seed."""
    runs, any_pair, any_amount, wins = 500, 0, 0, 0
    names = [name for name in LENGTH if "8t" not in name]
    base = study(noise(names))
    random = np.random.default_rng(7)
    for _ in range(runs):
        scores = 0.7 + 0.01 * random.standard_normal((5, 1)) + 0.005 * random.standard_normal((5, len(names)))
        drawn = rescored(base, scores, names)
        table = compare_strategies(drawn)
        any_pair += (table["verdict"] != UNDETERMINED).any()
        any_amount += (by_amount(drawn)["verdict"] != UNDETERMINED).any()
        wins += winners(table)["length"][0] != UNDETERMINED
    limit = runs * 0.05 + 3 * np.sqrt(runs * 0.05 * 0.95)
    assert any_pair <= limit and any_amount <= limit and wins <= any_pair
    assert any_pair > 0  # the test does reject sometimes, as it should


def test_a_real_difference_is_found() -> None:
    """One point ahead with a deviation of half a point, over 5 seeds and three amounts, is detected in most runs."""
    base, random = study(noise(LENGTH)), np.random.default_rng(8)
    ahead = np.array([0.01 * ("=" not in name) for name in LENGTH])
    drawn = [0.7 + ahead + 0.005 * random.standard_normal((5, len(LENGTH))) for _ in range(60)]
    found = [winners(compare_strategies(rescored(base, scores, LENGTH)))["length"][0] for scores in drawn]
    assert found.count("attention_no_sep") >= 40
    assert set(found) <= {"attention_no_sep", UNDETERMINED}


@given(
    st.sampled_from(["1l_3t_0.1w", "all_all_all", "2l_all_0.5w", "all_1t_all,length=left"]),
    st.sampled_from(["", ",length=attention", ",width=random", ",width=random,width.seed=3", ",l_top=5"]),
)
def test_parts_say_all_of_a_spec(short: str, change: str) -> None:
    other = HSKSpec.parse("1l_3t_0.1w,l_top=4,precision=fp32")
    spec = HSKSpec.parse(short + change)
    parts = taken_apart(spec.label)
    assert parts is not None and parts != taken_apart(other.label)
    assert as_kept(as_kept(parts)) == as_kept(parts)
    assert taken_apart("not a spec") is None
