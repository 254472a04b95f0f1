"""A grid whose trials run the teacher themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grid.conftest import Cli, Write
from support.grid_lab import OPTIONS, Ran, run

from hskd.results import load

ONE = "seeds: 1"


def _by_point(ran: Ran) -> dict[tuple[str, str], float]:
    table = ran.table[ran.table["seed"] == 0]
    return {(row.arm, row.spec): row.held_out_hsk_loss for row in table.itertuples() if row.arm in ("spec", "full")}


def test_online_comes_to_what_offline_comes_to(undisturbed: Ran, write: Write, tmp_path: Path) -> None:
    online = run(write(ONE, "online: true"), tmp_path / "online")
    stored, live = _by_point(undisturbed), _by_point(online)
    assert stored.keys() == live.keys()
    assert len(live) == 5
    for point, loss in stored.items():
        assert live[point] == pytest.approx(loss, rel=2e-2)  # a store of fp16 compared with states of fp32
    assert not [title for title in online.told.titles if title.startswith("store: one pass")]


def test_switches_that_need_the_teacher_do_something(write: Write, tmp_path: Path) -> None:
    plain = run(write(ONE, "online: true", name="plain"), tmp_path / "plain")
    switch = "training: {hsk_epochs: 2, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16"
    dropped = run(
        write(ONE, "online: true", switch + ", compat: [teacher_dropout]}", name="dropped"), tmp_path / "dropped"
    )
    one, other = _by_point(plain), _by_point(dropped)
    assert one.keys() == other.keys()
    assert not np.isclose(list(one.values()), list(other.values()), rtol=1e-6).any()


@pytest.mark.timeout(600)
def test_workers_run_it_and_say_what_failed(write: Write, cli: Cli, tmp_path: Path) -> None:
    file = write(ONE, "online: true", "sweeps: []", "none_lr: 1.0e+38", name="live")
    code, planned, err = cli("plan", file, *OPTIONS)
    assert code == 0, err
    assert "2 trials" in planned
    code, out, err = cli("run", file, *OPTIONS, "--workers", 2)
    assert code == 1
    assert "1 trials in" in out
    assert "none, seed 0: failed: HskdError: prediction stage: the" in " ".join(err.split())
    trials = tmp_path / "results/live/trials"
    [failed] = trials.glob("*.error.json")
    assert "hskd/training.py" in failed.read_text()
    assert load(trials.parent)["arm"].tolist() == ["full"]
