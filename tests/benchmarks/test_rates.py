"""Tables of what a search of rates has tried."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.rates import SETTING, add_rows

NONE = dict(zip(SETTING, ("small", 500, "none", 4, 2, None, 1e-4), strict=True))


def test_a_row_takes_the_place_of_one_of_the_same_setting_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "search.csv"
    add_rows(path, pd.DataFrame([NONE | {"seed": 101, "dev_score": 0.7}]), SETTING)
    again = [NONE | {"seed": 101, "dev_score": 0.8}, NONE | {"seed": 100, "dev_score": 0.6}]
    table = add_rows(path, pd.DataFrame(again), SETTING)
    assert table[["seed", "dev_score"]].to_numpy().tolist() == [[100, 0.6], [101, 0.8]]
    assert pd.read_csv(path)["dev_score"].tolist() == [0.6, 0.8]
    assert [file.name for file in tmp_path.iterdir()] == ["search.csv"]
