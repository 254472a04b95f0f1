"""A grid of codecs, means of tokens and another loss, from a store and online."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from grid.conftest import Write
from support.grid_lab import run

from hskd.analysis.report.page import write_report
from hskd.grid.spec import load_grid
from hskd.selectors.base import Tokens
from hskd.spec import HSKSpec, Shape
from hskd.store.amount import measure
from hskd.store_format.layout import ArraySpec

LINES = (
    "seeds: 1",
    "sweeps: [{n: [2], w: [0.25], width: [pca, pq], width.entries: [8]}, {k: [1], length: [pool, gradient]}]",
    "training: {hsk_epochs: 2, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16, "
    "hsk_loss: standardised}",
)


def test_a_report_tells_codecs_apart(write: Write, tmp_path: Path) -> None:
    specs = {
        "1l_1t_0.25w": "attention_no_sep, magnitude",
        "2l_all_0.25w,width=pca": "all tokens, pca",
        "2l_all_0.5w,width=pca,rotate=true,precision=int2": "all tokens, pca, rotate=true, int2",
        "2l_all_0.25w,width=pq,entries=8": "all tokens, pq, entries=8",
        "2l_1t_0.25w,length=pool,width=pca": "pool, pca",
        "2l_all_all,depth=reverse": "reverse, all tokens, all neurons",
    }
    ran = run(write("sweeps: []", f"include: {list(specs)}", name="look"), tmp_path)
    index = write_report(ran.out)
    points = pd.read_csv(index.parent / "tables" / "points.csv").set_index("name")
    strategies = {name: points.at[HSKSpec.parse(name).label, "strategy"].removeprefix("l_top=1.0, ") for name in specs}
    assert strategies == specs
    full = points.at["full", "bytes_per_example"]
    assert points["bytes_share"].tolist() == pytest.approx((points["bytes_per_example"] / full).tolist())
    assert {"full", "full,precision=int2", "full,depth=reverse"} <= set(points.index)
    assert points.at["full,precision=int2", "bytes_share"] < 0.3
    page = index.read_text(encoding="utf-8")
    assert "Score against bytes" in page and "share of full&#39;s bytes in fp16" in page
    for name in ("curve", "curve_values"):
        assert (index.parent / "figures" / f"{name}.png").is_file()


@pytest.mark.parametrize("name", ["codec-small", "codec-wide", "codec-tinybert"])
def test_a_preset_of_codecs_compares_them_at_equal_bytes_with_full_in_fp16(name: str) -> None:
    grid = load_grid(name)
    assert (grid.seed_list, [full.label for full in grid.fulls()]) == (tuple(range(10)), ["all_all_all"])
    specs = grid.specs()
    assert {spec.width.selector for spec in specs} == {"magnitude", "projection", "pca", "pq", "rvq"}
    assert {spec.precision.selector for spec in specs} == {"fp16", "int4", "int2"}
    assert {spec.length.selector for spec in specs} == {"left", "attention_no_sep", "gradient", "pool"}
    examples, length = 2_000, 27  # about those of mr
    ids = np.arange(examples)
    words = np.tile(np.array([101, *[2_000] * (length - 2), 102], np.int32), examples)
    tokens = Tokens(ids, np.arange(examples + 1) * length, words, sep_id=102)
    shape, target = Shape(3, 6, 384, 30_522), ArraySpec("example", torch.float32, 2)
    sizes = [measure(spec, tokens, shape, 64, target).bytes_per_example for spec in specs]
    assert all(300 < size < 440 for size in sizes[:13])
    assert all(2_800 < size < 3_000 for size in sizes[13:])


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
