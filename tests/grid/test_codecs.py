"""A grid of codecs, means of tokens and another loss, from a store and with the teacher in the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from grid.conftest import Write
from support.grid_lab import run

LINES = (
    "seeds: 1",
    "sweeps: [{n: [2], w: [0.25], width: [pca, pq], width.entries: [8]}, {k: [1], length: [pool, gradient]}]",
    "training: {hsk_epochs: 2, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16, "
    "hsk_loss: standardised}",
)


def test_online_comes_to_what_offline_comes_to(write: Write, tmp_path: Path) -> None:
    losses = []
    for online in ("false", "true"):
        ran = run(write(*LINES, f"online: {online}", name=f"codecs-{online}"), tmp_path / online)
        assert (ran.progress.failed, len(ran.progress.done)) == ({}, 6)
        table = ran.table.set_index("spec")
        assert set(table.loc[table["arm"] != "none", "hsk_loss"]) == {"standardised"}
        assert table.loc["2l_all_0.25w,width=pq,width.entries=8", "width.entries"] == "8"
        losses.append(table.loc[table["arm"] == "spec", "held_out_hsk_loss"].sort_index())
    offline, live = losses
    assert list(offline.index) == list(live.index) and len(live) == 4
    for spec, loss in offline.items():
        assert live[spec] == pytest.approx(loss, rel=5e-2), spec
