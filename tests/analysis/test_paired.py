from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.paired import above


def table(**scores: list[float]) -> pd.DataFrame:
    rows = [
        {"arm": "spec" if name not in ("none", "full") else name, "spec": name, "seed": seed, "score": score}
        for name, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_is_the_paired_t_interval() -> None:
    none, full = [0.70, 0.74, 0.72, 0.71], [0.75, 0.78, 0.78, 0.74]
    [row] = above(table(none=none, full=full)).to_dict("records")
    test = stats.ttest_rel(full, none)
    interval = test.confidence_interval(0.95)
    assert (row["arm"], row["n"]) == ("full", 4)
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(
        [np.mean(np.subtract(full, none)), interval.low, interval.high]
    )


def test_seeds_that_one_of_them_lacks_do_not_count() -> None:
    found = above(table(none=[0.7, 0.72], a=[0.75, 0.78, 0.99])).iloc[0]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(0.055)


def test_one_seed_carries_no_interval() -> None:
    assert above(table(none=[0.7], full=[0.8])).empty
    assert above(table(full=[0.8, 0.9])).empty
