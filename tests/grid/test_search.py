"""Tables of what a search of rates has tried."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from hskd.cli.grid import app
from hskd.errors import HskdError
from hskd.grid.search import SEARCH_KEYS, add_none_trials, add_rows

RESULTS = Path(__file__).resolve().parents[2] / "results"
NONE = dict(zip(SEARCH_KEYS, ("small", 500, "none", 4, 2, None, 1e-4), strict=True))


def test_a_row_takes_the_place_of_one_of_the_same_setting_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "search.csv"
    add_rows(path, pd.DataFrame([NONE | {"seed": 101, "dev_score": 0.7}]), SEARCH_KEYS)
    again = [NONE | {"seed": 101, "dev_score": 0.8}, NONE | {"seed": 100, "dev_score": 0.6}]
    table = add_rows(path, pd.DataFrame(again), SEARCH_KEYS)
    assert table[["seed", "dev_score"]].to_numpy().tolist() == [[100, 0.6], [101, 0.8]]
    assert pd.read_csv(path)["dev_score"].tolist() == [0.6, 0.8]
    assert [file.name for file in tmp_path.iterdir()] == ["search.csv"]


def test_a_rate_that_is_no_number_is_refused() -> None:
    done = CliRunner().invoke(app, ["search", "demo", "--none-lr", "4e-4,fast"])
    assert isinstance(done.exception, HskdError)
    assert "--none-lr 4e-4,fast" in str(done.exception)


def test_none_at_its_rates_is_added_to_a_table(tmp_path: Path) -> None:
    table = tmp_path / "none.csv"
    scores = add_none_trials([RESULTS / "sst2-joint"], table)
    committed = pd.read_csv(RESULTS / "rates" / "none.csv").set_index(["grid", "none_lr", "seed"])
    added = pd.read_csv(table).set_index(["grid", "none_lr", "seed"])
    pd.testing.assert_frame_equal(added, committed.loc[added.index])
    assert scores[("score", "count")].sum() == len(added) > 0
