from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.trial_tables import rescored, study

from hskd.analysis.stats.joint import next_byte, pareto, surface
from hskd.analysis.table import studies

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
CORNER = ["1l_1t_0.1w", "2l_1t_0.1w", "1l_2t_0.1w", "1l_1t_0.2w"]
"""A point, and a neighbour with twice the bytes along each dimension."""


def scores(means: dict[str, float], seeds: int = 5, noise: float = 0.001) -> dict[str, list[float]]:
    random = np.random.default_rng(3)
    return {name: list(mean + noise * random.standard_normal(seeds)) for name, mean in means.items()}


def test_the_surface_is_the_mean_at_each_amount_with_all_as_the_most() -> None:
    made = scores(
        {"2l_8t_0.1w": 0.7, "2l_10t_0.1w": 0.71, "2l_all_0.1w,width=magnitude": 0.72, "full": 0.73, "none": 0.6}
    )
    made["2l_8t_0.1w"][0] = np.nan
    table = surface(study(made)).set_index("name")
    assert list(table.index) == ["2l_8t_0.1w", "2l_10t_0.1w", "2l_all_0.1w", "full"]
    assert list(table["k"].cat.categories) == ["8", "10", "all"]
    assert table.loc["2l_8t_0.1w", "score"] == pytest.approx(np.nanmean(made["2l_8t_0.1w"]))
    assert table["n_seeds"].tolist() == [4, 5, 5, 5]


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    means = {"none": 0.6, "1l_1t_0.1w": 0.59, "1l_8t_0.1w": 0.7, "2l_8t_0.1w": 0.69, "2l_8t_0.5w": 0.72, "full": 0.71}
    table = pareto(study(scores({**means, "shuffled": 0.9, "gold": 0.95}))).set_index("name")
    on_front = {"none", "1l_8t_0.1w", "2l_8t_0.5w"}  # not gold or shuffled, which keep no HSK of their example
    assert set(table.index[table["front"]]) == on_front
    assert set(table.index[table["front_kept"]]) == on_front


def test_without_counted_values_no_point_is_on_that_front() -> None:
    made = study(scores({"none": 0.6, "1l_8t_0.1w": 0.7}))
    table = pareto(type(made).of(made.trials.drop(columns="kept_values")))
    assert table["front"].all() and not table["front_kept"].any()


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 0.9), min_size=6, max_size=6))
def test_the_front_rises_and_covers_every_point(means: list[float]) -> None:
    names = ["none", "1l_1t_0.1w", "1l_8t_0.1w", "2l_8t_0.1w", "2l_8t_0.5w", "full"]
    table = pareto(study({name: [mean] for name, mean in zip(names, means, strict=True)}))
    front = table[table["front"]].sort_values("bytes_per_example")
    assert front["mean"].is_monotonic_increasing
    for row in table.to_dict("records"):
        assert front[front["bytes_per_example"] <= row["bytes_per_example"]]["mean"].max() >= row["mean"]


def test_a_neighbour_has_more_of_one_dimension_and_all_else_equal() -> None:
    means = dict.fromkeys([*CORNER, "1l_8t_0.1w", "3l_1t_0.1w", "2l_2t_0.1w", "1l_2t_0.1w,length=left"], 0.5)
    means |= dict.fromkeys(["1l_1t_0.1w,precision=fp32", "2l_1t_0.1w,l_top=5", "1l_all_0.1w,width=magnitude"], 0.5)
    table = next_byte(study(scores(means | {"1l_1t_0.1w": 0.7})))
    found = table[table["from_name"] == "1l_1t_0.1w"].set_index("dimension")["to_name"].to_dict()
    assert found == dict(zip(("depth", "length", "width"), CORNER[1:], strict=True)) | {
        "precision": "1l_1t_0.1w,precision=fp32"
    }


def test_what_keeps_all_of_a_dimension_is_a_neighbour_whatever_its_selector() -> None:
    table = next_byte(study(scores({"2l_8t_0.5w": 0.7, "2l_all_0.5w,width=magnitude": 0.71, "2l_8t_all": 0.72})))
    [row] = table[table["dimension"] == "length"].to_dict("records")
    assert (row["from_name"], row["to_name"]) == ("2l_8t_0.5w", "2l_all_0.5w")
    assert set(table.loc[table["dimension"] == "width", "to_name"]) == {"2l_8t_all"}


def test_a_gain_is_paired_by_seed_and_counted_per_doubling() -> None:
    made = scores({"1l_1t_0.1w": 0.7, "1l_8t_0.1w": 0.76})
    [row] = next_byte(study(made)).to_dict("records")
    interval = stats.ttest_rel(made["1l_8t_0.1w"], made["1l_1t_0.1w"]).confidence_interval(0.95)
    gain = np.mean(made["1l_8t_0.1w"]) - np.mean(made["1l_1t_0.1w"])
    assert [row["gain"], row["low"], row["high"]] == pytest.approx([gain, interval.low, interval.high])
    assert row["gain_per_doubling"] == pytest.approx(gain / 3)
    assert row["extra_bytes"] == pytest.approx(7 * study(made).points.at["1l_1t_0.1w", "bytes_per_example"])
    assert (row["verdict"], row["n"]) == ("only neighbour", 5)


def test_the_best_buy_beats_every_other_dimension() -> None:
    means = dict(zip(CORNER, (0.7, 0.72, 0.75, 0.71), strict=True))
    table = next_byte(study(scores(means))).set_index("to_name")
    start = table[table["from_name"] == CORNER[0]]
    assert start["verdict"].to_dict() == {CORNER[1]: "not the best", CORNER[2]: "best buy", CORNER[3]: "not the best"}
    table = next_byte(study(scores(means | {CORNER[1]: 0.75}))).set_index("to_name")
    assert set(table.loc[table["from_name"] == CORNER[0], "verdict"]) == {"undetermined"}


def test_losing_least_is_no_buy() -> None:
    table = next_byte(study(scores(dict(zip(CORNER, (0.7, 0.6, 0.69, 0.6), strict=True)))))
    assert set(table["verdict"]) == {"undetermined"}


def test_one_seed_buys_nothing() -> None:
    table = next_byte(study(scores(dict(zip(CORNER, (0.7, 0.72, 0.75, 0.71), strict=True)), seeds=1)))
    assert set(table["verdict"]) == {"undetermined"} and table["low"].isna().all()


def test_equal_dimensions_give_a_best_buy_in_at_most_5_per_cent() -> None:
    names = [f"{n}l_{k}t_{w}w" for n in (1, 2) for k in (1, 2) for w in (0.1, 0.2)]
    base, random, runs = study(scores(dict.fromkeys(names, 0.5))), np.random.default_rng(5), 500
    doublings = np.log2(base.points.loc[names, "bytes_per_example"].to_numpy())
    bought = 0
    for _ in range(runs):
        drawn = 0.5 + 0.01 * doublings / doublings.max() + 0.005 * random.standard_normal((5, len(names)))
        bought += (next_byte(rescored(base, drawn, names))["verdict"] == "best buy").any()
    assert bought <= runs * 0.05 + 3 * np.sqrt(runs * 0.05 * 0.95)


def test_the_committed_results_have_a_front() -> None:
    [made] = studies(DEMO)
    table = next_byte(made)
    front = pareto(made)
    assert {"none", "full"} <= set(front.loc[front["front"], "name"])
    assert isinstance(table, pd.DataFrame) and not (table["verdict"] == "best buy").any()  # three seeds are too few
