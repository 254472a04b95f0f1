"""Random examples have the lengths of real ones, and random stores have the format of the engine's."""

from pathlib import Path

import numpy as np
import pytest

from hskd.benchmarks.count_lengths import counted
from hskd.benchmarks.data import (
    EPOCH_BATCHES,
    LENGTHS_FILE,
    draw_lengths,
    epoch_lengths,
    examples_for,
    make_split,
    spec_store,
    superset_store,
    vocabulary_of,
)
from hskd.distill.source import StoreSource
from hskd.io import read_json
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.tasks import bucketed_batches

SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=64, vocab_size=30522)
SPECS = [HSKSpec(), HSKSpec.parse("4l_10t_0.1w")]


@pytest.mark.parametrize("task", ["cola", "sst2", "rte"])
def test_lengths_are_those_of_the_official_files(task: str, glue: Path) -> None:
    assert read_json(LENGTHS_FILE)[task] == counted(task, glue)


@pytest.mark.parametrize("setting", ["cola", "sst2", "rte"])
def test_a_short_epoch_has_the_batches_of_a_real_one(setting: str) -> None:
    lengths = epoch_lengths(setting, batch=32, batches=6)
    wide = lengths.reshape(6, 32).max(axis=1)
    shuffled = np.random.default_rng(0).permutation(lengths)
    batches = bucketed_batches(shuffled, 32, seed=0, epoch=3)
    assert sorted(shuffled[rows].max() for rows in batches) == sorted(wide)
    real = draw_lengths(setting, EPOCH_BATCHES * 32).reshape(-1, 32).max(axis=1)
    assert wide.mean() == pytest.approx(real.mean(), rel=0.05)


def test_drawn_lengths_follow_the_table() -> None:
    table = read_json(LENGTHS_FILE)["cola"]
    assert draw_lengths("cola", table["examples"]).mean() == pytest.approx(table["mean_length"], abs=0.005)
    assert set(draw_lengths("short", 5)) == {12}


def test_examples_use_the_vocabulary_and_the_padding_of_their_setting(tmp_path: Path) -> None:
    split = make_split("pad128", draw_lengths("pad128", 40), tmp_path / "tokens")
    assert set(split.input_ids) <= set(vocabulary_of("pad128"))
    assert split.collate(range(4))["input_ids"].shape == (4, 128)
    assert len(set(split.ids)) == 40
    for i in range(40):
        tokens = split.input_ids[split.offsets[i] : split.offsets[i + 1]]
        assert (tokens[0], tokens[-1]) == (split.cls_id, split.sep_id)


@pytest.mark.parametrize(
    "label",
    [
        "1l_10t_0.1w",
        "all_all_all",
        "2l_3t_0.5w,width=uniform",
        "2l_all_0.25w,width=pca",
        "1l_all_0.25w,width=pq,width.entries=16",
        "1l_3t_0.25w_0.5e,width=rvq,width.entries=8",
    ],
)
def test_a_random_store_is_laid_out_as_a_derived_one(label: str, tmp_path: Path) -> None:
    split, spec = make_split("cola", draw_lengths("cola", 60), tmp_path / "tokens"), HSKSpec.parse(label)
    mine = spec_store(tmp_path / "mine", split, spec, SHAPE)
    superset = superset_store(tmp_path / "superset", split, SPECS, SHAPE)
    derived = derive(superset, spec, SHAPE.student_layers, tmp_path / "derived")
    assert mine.manifest.plan == derived.manifest.plan
    assert mine.manifest.bytes == derived.manifest.bytes
    assert mine.rows_with_hsk.tolist() == derived.rows_with_hsk.tolist()
    batch = split.collate(mine.rows_with_hsk[:8])
    kept, expected = (StoreSource(store, split, SHAPE.student_layers).kept(batch) for store in (mine, derived))
    assert kept.counts.tolist() == expected.counts.tolist()
    assert kept.values.shape == expected.values.shape
    assert (kept.positions < batch["attention_mask"].sum(1).repeat_interleave(kept.counts)[:, None]).all()
    if kept.neurons is not None and kept.neurons.dim() == 3:
        assert (kept.neurons.diff(dim=2) > 0).all()


def test_a_store_of_so_many_mebibytes(tmp_path: Path) -> None:
    count = examples_for(1, "cola", HSKSpec(), SHAPE)
    split = make_split("cola", draw_lengths("cola", count), tmp_path / "tokens")
    assert spec_store(tmp_path / "store", split, HSKSpec(), SHAPE).manifest.bytes == pytest.approx(2**20, rel=0.02)
