"""A grid that sweeps the share of the examples, their selection, and random layers per batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from grid.conftest import Write
from support.grid_lab import machine, run

from hskd.errors import HskdError
from hskd.grid.spec import Sweep, load_grid

LINES = (
    "seeds: 1",
    "sweeps: [{n: [1], k: [2], w: [0.25], e: [0.25, all], examples: [random, disagree, entropy]}, "
    "{n: [1], depth: [random], w: [0.25], e: [0.5]}]",
)


def test_a_sweep_of_shares() -> None:
    sweep = Sweep(w=(0.1,), e=(0.25, "all"), examples=("random", "disagree"))
    labels = [spec.label for spec in sweep.specs()]
    assert list(dict.fromkeys(labels)) == [
        "all_all_0.1w_0.25e",
        "all_all_0.1w_0.25e,examples=disagree",
        "all_all_0.1w",
    ]
    with pytest.raises(ValueError, match="examples chooses nothing where all is kept; say how much with e"):
        Sweep(w=(0.1,), examples=("entropy",))
    assert {"e", "examples"}.isdisjoint(Sweep(w=(0.1,)).model_dump())


def test_an_old_grid_is_what_it_was(write: Write) -> None:
    grid = load_grid(str(write()))
    assert set(grid.model_dump(mode="json")["sweeps"][0]).isdisjoint({"e", "examples"})
    specs = [trial.identity["spec"] for trial in grid.trials(machine())]
    assert all(spec is None or set(spec) == {"depth", "length", "width", "precision"} for spec in specs)


@pytest.mark.timeout(600)
def test_online_comes_to_what_offline_comes_to(write: Write, tmp_path: Path) -> None:
    scores = []
    for online in ("false", "true"):
        ran = run(write(*LINES, f"online: {online}", name=f"amounts-{online}"), tmp_path / online)
        assert (ran.progress.failed, len(ran.progress.done)) == ({}, 7)
        table = ran.table.set_index("spec")
        row = table.loc["1l_2t_0.25w_0.25e,examples=disagree"]
        assert (row["examples"], row["e"]) == ("disagree", "0.25")
        assert table.loc["1l_2t_0.25w", ["examples", "e"]].tolist() == ["", ""]
        assert row["hsk_epochs"] == table.loc["1l_2t_0.25w", "hsk_epochs"]
        assert row["bytes_per_example"] < table.loc["1l_2t_0.25w", "bytes_per_example"]
        scores.append(table.loc[table["arm"] == "spec", ["held_out_hsk_loss", "bytes_per_example"]].sort_index())
    offline, live = scores
    assert list(offline.index) == list(live.index) and len(live) == 5
    for spec in offline.index:
        assert live.loc[spec].tolist() == pytest.approx(offline.loc[spec].tolist(), rel=5e-2), spec


def test_what_the_head_does_not_have_is_refused_before_anything_runs(write: Write, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="length=entropy: ranks tokens by the teacher's prediction for each"):
        run(write("sweeps: [{k: [1], length: [entropy]}]"), tmp_path)
    assert not list(tmp_path.rglob("teachers"))
