"""A grid repeats trials whose inputs have changed, reports it, and keeps results of earlier versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD, GOOD
from grid.conftest import Cli, Write
from support.grid_lab import OPTIONS, Ran, run, trials_of

from hskd import results
from hskd.errors import CorruptionError
from hskd.grid.record import result_path
from hskd.grid.spec import load_grid
from hskd.io import read_json, write_json
from hskd.progress import Silent
from hskd.trials.workspace import Workspace

SMALL = ("seeds: 1", "sweeps: []")
"""Lines for two trials: none and full."""


@pytest.fixture
def comments(tmp_path: Path) -> Path:
    """One file with two label columns, in which 0 and 1 are exchanged."""
    rows = ["sentence,toxic,obscene"]
    for split, count in (("a", 60), ("b", 60)):
        for i in range(count):
            words, label = (GOOD, 1) if i % 2 else (BAD, 0)
            rows.append(f"{words[i // 2 % 4]} {split} {i},{label},{1 - label}")
    path = tmp_path / "comments.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def task(data: Path | str, column: str) -> str:
    return f'task: {{name: custom, data: "{data}", text_columns: [sentence], label_column: {column}}}'


def test_two_columns_of_one_file_have_two_teachers(write: Write, comments: Path, tmp_path: Path) -> None:
    teacher = 'teacher: {model: "BODY", settings: {epochs: 12, lr: 5.0e-3, batch_size: 16}}'
    model = load_grid(str(write())).teacher.model
    scores = {}
    for column in ("toxic", "obscene"):
        file = write(*SMALL, task(comments, column), teacher.replace("BODY", model), name=column)
        _, trials = trials_of(file)
        workspace = Workspace(tmp_path / "work", trials)  # one work folder for both
        metrics = workspace.teacher_metrics(Silent())
        assert metrics is not None
        scores[column] = metrics["dev"]["accuracy"]
    assert min(scores.values()) > 0.9, "a teacher of the other column is right on almost none"
    assert len([path for path in (tmp_path / "work" / "teachers").iterdir() if path.is_dir()]) == 2


def edited(out: Path, part: str, name: str) -> None:
    """Change the recorded inputs of every result in ``out``."""
    results.unpack(out)
    for path in (out / "trials").glob("*.json"):
        content = read_json(path)
        content.pop("checksum", None)
        content["inputs"][part][name] = "0" * 16
        write_json(path, content)


@pytest.mark.parametrize(
    ("part", "name"), [("trained", "labels"), ("trained", "model"), ("trained", "code of hskd"), ("scored", "dev")]
)
def test_what_is_of_other_contents_is_done_anew(
    undisturbed: Ran, grid_file: Path, tmp_path: Path, part: str, name: str
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(undisturbed.root, root)
    edited(root / "out", part, name)
    again = run(grid_file, root)
    done, _, total, news = again.told.news[0]
    assert (done, total, news) == (0, 12, "0 of 12 trials are done already")
    assert f"none, seed 0: is run again, because these changed: {name}" in again.told.said
    assert len(again.progress.done) == 12 and not again.progress.pending
    assert again.table["score"].tolist() == undisturbed.table["score"].tolist()
    for result in results.ResultsFolder(root / "out").results().values():
        assert result.inputs is not None and result.inputs[part][name] != "0" * 16


def test_status_names_what_is_of_other_contents(undisturbed: Ran, grid_file: Path, cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(undisturbed.root, root)
    places = ["status", grid_file, "--out", root / "out", "--work", root / "work", *OPTIONS]
    code, before, err = cli(*places)
    assert code == 0 and "12 done, 0 to do" in before and "changed" not in before, err
    edited(root / "out", "trained", "labels")
    code, after, err = cli(*places)
    assert code == 0, err
    assert after.count("changed: ") == 12
    assert "changed: none, seed 0: labels; `hskd grid run" in after


def test_results_of_a_version_that_recorded_no_contents_are_taken(
    undisturbed: Ran, grid_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(undisturbed.out, root / "out")
    results.unpack(root / "out")
    for path in (root / "out" / "trials").glob("*.json"):
        content = read_json(path)
        del content["inputs"], content["checksum"]
        write_json(path, content)
    again = run(grid_file, root)
    assert again.told.news[0][0] == 12 and not again.told.titles


def test_home_and_corrected_labels(
    write: Write, data_folder: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``~`` means home in a grid's file and after ``=``, and a corrected file counts as another file."""
    home = tmp_path / "home"
    shutil.copytree(data_folder, home / "mydata")
    shutil.copytree(load_grid(str(write())).teacher.model, home / "body")
    monkeypatch.setenv("HOME", str(home))
    teacher = "teacher: {model: ~/body, settings: {epochs: 1, lr: 3.0e-3, batch_size: 16}}"
    file = write(*SMALL, task("~/mydata", "mood"), teacher, name="home")
    _, first = trials_of(file)
    assert {*first[0].files} == {"data", "model"}
    # The teacher's model is given without ~, so that only task.data is given after =.
    places = ["run", file, "--out", "~/out", "--work=~/work", "--set", "task.data=~/mydata", *OPTIONS]
    code, _, err = cli(*places)
    assert code == 0, err
    assert (home / "out" / "trials.parquet").is_file() and not (tmp_path / "~").exists()
    labels = np.load(home / "out" / "labels.npz")["dev"]
    before = results.load(home / "out").set_index("arm")["score"]
    for split in ("train", "dev", "test"):
        path = home / "mydata" / f"{split}.csv"
        rows = [row.rpartition(",") for row in path.read_text(encoding="utf-8").splitlines()]
        other = {"positive": "negative", "negative": "positive"}
        path.write_text("".join(f"{text},{other.get(mood, mood)}\n" for text, _, mood in rows), encoding="utf-8")
    code, _, err = cli(*places)
    assert code == 0, err
    assert "0 of 2 trials are done already" in err
    assert np.array_equal(np.load(home / "out" / "labels.npz")["dev"], 1 - labels)
    after = results.load(home / "out").set_index("arm")["score"]
    assert sorted(after.index) == sorted(before.index)
    found = {result.config["files"]["data"] for result in results.ResultsFolder(home / "out").results().values()}  # type: ignore[index]
    assert len(found) == 1 and found != {first[0].files["data"]}


def test_a_damaged_result_is_refused_by_name(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(undisturbed.out, root / "out")
    results.unpack(root / "out")
    config = trials_of(grid_file)[1][0]
    path = result_path(root / "out", config)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metrics"]["test"]["score"] += 0.1
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CorruptionError, match=f"{config.id}.json: .* is not as it was written"):
        results.load(root / "out")
