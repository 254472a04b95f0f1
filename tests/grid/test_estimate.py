"""Estimates of ``hskd grid plan``, compared with the run that follows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from grid.conftest import Cli, Write
from scipy import stats
from support.grid_lab import OPTIONS, TRIALS, Ran, Recorder, run, trials_of

from hskd.grid.estimate import GridPlan, estimate
from hskd.grid.run import GridStatus
from hskd.results import unpack
from hskd.statistics import seeds_needed

HEADER = 4096
"""Bytes that the header of a shard may take."""


@pytest.mark.parametrize(
    ("effect", "pairs"),
    # These are G*Power's a priori sample sizes of the two-sided paired t-test at 5 % and 80 %.
    [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10), (1.2, 8)],
)
def test_seeds_needed_are_those_of_the_tables(effect: float, pairs: int) -> None:
    assert seeds_needed(spread=1.0, difference=effect, sides=2) == pairs
    assert seeds_needed(spread=0.02, difference=0.02 * effect, sides=2) == pairs


@pytest.mark.parametrize(("spread", "difference"), [(0.01, 0.01), (0.01, 0.006), (0.012, 0.02)])
def test_seeds_needed_have_the_power_in_a_simulation(spread: float, difference: float) -> None:
    def power(seeds: int) -> float:
        gaps = np.random.default_rng(0).normal(difference, spread, size=(20_000, seeds))
        return float((stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05).mean())

    needed = seeds_needed(spread, difference, sides=2)
    assert power(needed) > 0.79
    assert power(needed - 1) < 0.81


def test_seeds_needed_grow_with_spread_and_shrink_with_difference() -> None:
    spreads = [seeds_needed(spread, 0.01, sides=2) for spread in np.linspace(0.001, 0.05, 12)]
    differences = [seeds_needed(0.01, difference, sides=2) for difference in np.linspace(0.002, 0.2, 12)]
    assert spreads == sorted(spreads)
    assert differences == sorted(differences, reverse=True)
    assert min(spreads + differences) >= 2
    assert seeds_needed(0.0, 0.01, sides=2) == 2
    assert seeds_needed(1e-6, 0.5, sides=2) == 2


def planned(file: Path, out: Path, work: Path) -> GridPlan:
    grid, trials = trials_of(file)
    return estimate(grid, trials, GridStatus.of(trials, out), out, work, 0.005, Recorder())


def shards(work: Path) -> list[int]:
    return [path.stat().st_size for path in (work / "stores").rglob("*.safetensors")]


def test_the_disk_needed_is_what_the_stores_take(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    plan = planned(grid_file, tmp_path / "out", tmp_path / "work")
    taken = shards(undisturbed.work)
    assert len(taken) == 2 + 5 + 1, "two supersets, five specs, full HSK of the held-out examples"
    assert plan.store_bytes <= sum(taken) <= plan.store_bytes + len(taken) * HEADER
    assert plan.free_bytes > 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work" / "teachers").exists(), "a plan makes nothing"


def test_the_disk_needed_by_precisions_and_students(write: Write, tmp_path: Path) -> None:
    file = write(
        "students: [{layers: 2, heads: 2, ffn: 24, importance_examples: 32}, {layers: 3, heads: 1, ffn: 8}]",
        "sweeps: [{precision: [fp32, bf16], w: [0.5]}, {k: [2], length: [left]}]",
        "training: {hsk_epochs: 1, prediction_epochs: 1, batch_size: 32}",
        "arms: [gold, shuffled]",
        "seeds: 1",
    )
    plan = planned(file, tmp_path / "out", tmp_path / "work")
    ran = run(file, tmp_path)
    assert not ran.progress.failed
    taken = shards(ran.work)
    assert plan.store_bytes <= sum(taken) <= plan.store_bytes + len(taken) * HEADER


def test_plan_before_anything_is_done(grid_file: Path, cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("plan", grid_file, "--out", "out", "--work", "work", *OPTIONS)
    assert code == 0, err
    assert "tiny: 12 trials, 2 seeds" in out
    assert all(label in out for label in ("none", "full", "1l_1t_0.25w", "2l_3t_0.25w", "100 %"))
    assert out.count("0/2") == 6
    assert "done: 0 of 12; failed before: 0" in out
    assert re.search(r"disk for stores: [\d.]+ KiB; free: [\d.]+ \w+", out)
    assert re.search(r"time: about \d+ minutes for 12 trials", out)
    assert "seeds: unknown: no pilot yet" in out
    assert not (tmp_path / "out").exists()


def test_plan_after_a_pilot(undisturbed: Ran, grid_file: Path, cli: Cli) -> None:
    places = ["--out", undisturbed.out, "--work", undisturbed.work]
    code, out, _ = cli("plan", grid_file, *places, "--difference", 2, *OPTIONS)
    assert code == 0
    assert out.count("2/2") == 6
    assert f"done: {TRIALS} of {TRIALS}" in out
    assert "time: nothing to do" in out
    found = re.search(
        r"seeds: (\d+) to see 2 points between a spec and full HSK \(95 % confidence, 80 % power; "
        r"paired spread ([\d.]+) points, from 2 seeds\)",
        out,
    )
    assert found, out
    table = undisturbed.table.pivot_table(index="seed", columns="spec", values="score")
    gaps = table.drop(columns=["", "all_all_all"]).sub(table["all_all_all"], axis=0)
    spread = gaps.std(ddof=1).mean()
    assert float(found[2]) == pytest.approx(100 * spread, abs=0.005)
    assert int(found[1]) == seeds_needed(spread, 0.02, sides=2)


@pytest.mark.parametrize("kept", [["none"], ["none", "full"], ["spec"], ["none", "spec", "full"]], ids=" ".join)
def test_plan_of_a_pilot_that_says_nothing_yet(
    undisturbed: Ran, grid_file: Path, kept: list[str], cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.out, tmp_path / "out")
    unpack(tmp_path / "out")
    for row in undisturbed.table.itertuples():
        if row.arm not in kept or row.seed > 0:
            (tmp_path / "out" / "trials" / f"{row.trial}.json").unlink()
    code, out, err = cli("plan", grid_file, "--out", "out", "--work", undisturbed.work, *OPTIONS)
    assert code == 0, err
    assert "seeds: unknown: the spread between paired seeds needs two or more" in out
