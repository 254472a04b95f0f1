"""The committed results: nothing is missing, the tables are those of the trials, the reports those of the tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from analysis.report import report
from benchmarks.none_rates import none_trials
from hskd.artifacts import read_json
from hskd.results import GRID_FILE, load

RESULTS = Path(__file__).resolve().parents[1] / "results"
MADE_HERE = ("demo", "demo-quick")
COMMITTED = sorted(path.parent for path in RESULTS.glob("*/trials.csv") if path.parent.name not in MADE_HERE)
REPORTED = [folder for folder in COMMITTED if (folder / "report").is_dir()]
TRIED = pd.read_csv(RESULTS / "rates" / "none.csv")  # none at several rates, of several grids


def test_there_are_results() -> None:
    assert {"demo-3-seeds", "mr-joint"} <= {folder.name for folder in REPORTED}


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_no_arm_has_fewer_seeds_than_it_claims(folder: Path) -> None:
    grid = read_json(folder / GRID_FILE)
    table = load(folder)
    assert sorted(table["trial"]) == sorted(grid["trials"])
    seeds = grid["seeds"] if isinstance(grid["seeds"], int) else len(grid["seeds"])
    counts = Counter((row.student, row.arm, row.spec) for row in table.itertuples())
    assert min(counts.values()) >= seeds


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_table_is_that_of_the_trials(folder: Path) -> None:
    made = load(folder).to_csv(index=False)
    assert (folder / "trials.csv").read_text(encoding="utf-8") == made


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
def test_the_report_is_made_of_the_table(folder: Path, tmp_path: Path) -> None:
    report(folder, tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = folder / "report"
    assert made == sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    for path in made:
        if path.suffix == ".csv":  # another processor may differ in the last digit
            pd.testing.assert_frame_equal(pd.read_csv(tmp_path / path), pd.read_csv(kept / path), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(TRIED["grid"])))
def test_the_table_of_rates_holds_the_grid_s_own_none(name: str) -> None:
    own = none_trials(RESULTS / name).set_index(["grid", "none_lr", "seed"]).sort_index()
    kept = TRIED.set_index(["grid", "none_lr", "seed"]).sort_index()
    pd.testing.assert_frame_equal(kept.loc[own.index], own)
    rates = TRIED[TRIED["grid"] == name].groupby("none_lr")["score"].mean()
    used = read_json(RESULTS / name / GRID_FILE)["none_lr"]
    assert rates[used] > rates.max() - 0.0015, "none has a rate that is better for it, by more than a tenth of a point"
