"""The labels beside a grid's results and the predictions are enough to score the trials again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.grid_lab import Ran, run

from hskd import results
from hskd.errors import CorruptionError, MismatchError
from hskd.grid.record import write_labels
from hskd.io import read_json, write_json
from hskd.results import LABELS_FILE, ResultsFolder
from hskd.tasks.task import Split

SPLITS = {
    "train": Split.of("train", [["a", "b"]], [0, 1]),
    "dev": Split.of("dev", [["c", "d"]], [1, 0]),
    "test": Split.of("test", [["e"]], None),
}


def test_a_grid_keeps_the_labels_of_what_it_scores(undisturbed: Ran) -> None:
    labels = np.load(undisturbed.out / LABELS_FILE)
    assert sorted(labels) == ["dev", "test"]
    for trial, score, dev_score in undisturbed.table[["trial", "score", "dev_score"]].itertuples(index=False):
        for split, expected in (("test", score), ("dev", dev_score)):
            logits = ResultsFolder(undisturbed.out).outputs([trial], split)[trial]
            assert (logits.argmax(axis=1) == labels[split]).mean() == pytest.approx(expected)


def test_no_trial_joins_results_of_other_labels(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    """This holds for results without a record of the labels that scored them."""
    shutil.copytree(undisturbed.root, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    results.unpack(out)
    files = sorted((out / "trials").glob("*.json"))
    for path in files[1:]:
        content = read_json(path)
        del content["inputs"], content["checksum"]
        write_json(path, content)
    for path in (files[0], files[0].with_suffix(".npz")):
        path.unlink()
    np.savez(out / LABELS_FILE, dev=np.zeros(3, int))
    [said] = run(grid_file, tmp_path).progress.failed.values()
    assert "labels.npz: holds the labels of other data" in said


def test_labels_that_no_result_is_scored_by_are_replaced(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.root, tmp_path, dirs_exist_ok=True)
    right = (tmp_path / "out" / LABELS_FILE).read_bytes()
    np.savez(tmp_path / "out" / LABELS_FILE, dev=np.zeros(3, int))
    run(grid_file, tmp_path)
    assert (tmp_path / "out" / LABELS_FILE).read_bytes() == right


def test_labels_are_written_once(tmp_path: Path) -> None:
    write_labels(tmp_path / "out", SPLITS)
    path = tmp_path / "out" / LABELS_FILE
    before = path.stat().st_ino
    write_labels(tmp_path / "out", SPLITS)
    assert path.stat().st_ino == before
    assert [file.name for file in path.parent.iterdir()] == [LABELS_FILE]
    with np.load(path) as kept:
        assert {name: kept[name].tolist() for name in kept} == {"dev": [1, 0]}


def test_other_labels_and_a_spoilt_file_are_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, SPLITS)
    other = SPLITS | {"dev": Split.of("dev", [["c", "d"]], [1, 1])}
    with pytest.raises(MismatchError, match=r"labels\.npz: holds the labels of other data"):
        write_labels(tmp_path, other)
    with pytest.raises(MismatchError, match="other data"):
        write_labels(tmp_path, SPLITS | {"test": Split.of("test", [["e"]], [0])})
    (tmp_path / LABELS_FILE).write_bytes(b"PK")
    with pytest.raises(CorruptionError, match=r"labels\.npz: cannot be read"):
        write_labels(tmp_path, SPLITS)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
