"""Two processes under ``accelerate launch`` do the same as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file
from support import together
from support.calls import extraction
from support.distill_lab import Lab, arguments, weights
from transformers import BertTokenizerFast

from hskd.artifacts import build
from hskd.cli.app import main
from hskd.errors import HskdError, MismatchError
from hskd.io import read_json
from hskd.paper.departures import Departures
from hskd.store.extract import extract
from hskd.store.reader import Store
from hskd.store_format.layout import shard_name
from hskd.teachers.loading import Teacher
from hskd.training import HeadModule, Predictor

TESTS = Path(__file__).parent
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", *LAUNCH, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=800)


@pytest.fixture(scope="module")
def task(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = ["--task", "custom", "--data", str(data_folder), "--text-columns", "sentence", "--label-column", "mood"]
    work = str(tmp_path_factory.mktemp("work"))
    return [*words, "--work", work, "--device", "cpu", "--dtype", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def one(lab: Lab, task: list[str], tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("one")
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_bert(num_hidden_layers=4, **dry).save_pretrained(out / "body")
    tokenizer.save_pretrained(out / "body")
    (out / "made").mkdir()
    torch.set_num_threads(1)
    together.everything(lab, out, task, out / "made")
    together.run_trial(lab, out / "made" / "undisturbed")
    return out


@pytest.fixture(scope="module")
def two(one: Path, lab: Lab, data_folder: Path, task: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes."""
    out = tmp_path_factory.mktemp("two")

    together.begin_extraction(lab, out / "begun", batches=5)
    assert (out / "begun.partial" / shard_name(0)).is_file()
    found = launch(TESTS / "support" / "together.py", "all", lab.root, data_folder, one, out, *task)
    assert found.returncode == 0, found.stderr
    return out


def found(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return values


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", together.STAGES)
def test_training_follows_one_process(one: Path, two: Path, stage: str, accumulate: int) -> None:
    made = one / "made"
    whole, name = f"{stage} 1", f"{stage} {accumulate}"
    expected = found(made)[whole]
    assert len(expected["losses"]) == 2 * together.EPOCHS
    for folder in (made, two):
        values = found(folder)[name]
        assert values["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        state = load_file(folder / name / "w")
        for key, tensor in load_file(made / whole / "w").items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_example_once_an_epoch(one: Path, lab: Lab, two: Path, accumulate: int) -> None:
    everyone = sorted(lab.train.first(together.EXAMPLES).ids.tolist())
    for folder in (one / "made", two):
        for epoch in found(folder)[f"hsk {accumulate}"]["taken"]:
            assert sorted(example for part in epoch for example in part) == everyone
    for mine, others in found(two)[f"hsk {accumulate}"]["taken"]:
        assert len(mine) == 18 and len(others) == 17


def test_predictions(one: Path, two: Path) -> None:
    expected, rows = (torch.tensor(found(folder)["hsk 1"]["rows"]) for folder in (one / "made", two))
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01


def test_processes_draw_different_dropout(one: Path, two: Path) -> None:
    [expected], (first, second) = found(one / "made")["draws"], found(two)["draws"]
    assert first == expected != second


@pytest.mark.parametrize("name", ["whole", "begun", "store"])
def test_stores_have_the_same_bytes(one: Path, two: Path, name: str) -> None:
    expected, store = Store.open(one / "made" / name), Store.open(two / name)
    store.verify()
    assert store.manifest.fingerprint == expected.manifest.fingerprint
    assert store.manifest.shards == expected.manifest.shards
    if name != "store":
        assert len(store.manifest.shards) > 3


def test_one_process_ends_what_two_began(one: Path, two: Path, lab: Lab, tmp_path: Path) -> None:
    """Two killed processes each leave some shards of their own."""
    whole = Store.open(one / "made" / "whole")
    partial = tmp_path / "store.partial"
    shutil.copytree(two / "killed.partial", partial)
    kept = sorted(path.name for path in partial.glob("shard-*"))
    assert 0 < len(kept) < len(whole.manifest.shards)
    done: list[int] = []
    store = extract(
        lab.teacher,
        lab.task,
        lab.train,
        together.SUPERSET,
        tmp_path / "store",
        **extraction(done.append, batch_size=4, shard_bytes=together.SHARD),
    )
    assert store.manifest.fingerprint == whole.manifest.fingerprint
    spared = sum(shard.examples for shard in whole.manifest.shards if shard.file in kept)
    assert sum(done) == len(store) - spared


def test_a_teacher(one: Path, two: Path, lab: Lab) -> None:
    folders = (one / "made" / "teacher", two / "teacher")
    of_one, of_two = (read_json(folder / "metrics.json") for folder in folders)
    teachers = [Teacher.load(str(folder), lab.task).model for folder in folders]
    expected, rows = (Predictor(HeadModule(model, lab.task.head), "fp32").rows(lab.splits["dev"]) for model in teachers)
    assert rows == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert (of_one["processes"], of_two["processes"]) == (1, 2)
    assert of_two["metrics"]["dev"] == pytest.approx(of_one["metrics"]["dev"])
    assert not (two / "teacher" / "training").exists()


def test_a_killed_trial_of_two_goes_on(two: Path) -> None:
    assert weights(two / "resumed") == weights(two / "undisturbed")
    expected, found = (read_json(two / name / "result.json") for name in ("undisturbed", "resumed"))
    assert found["processes"] == expected["processes"] == found["accumulate"] == 2
    assert found["dev_scores"] == expected["dev_scores"] and len(expected["dev_scores"]) == 3
    assert {path.name for path in (two / "resumed").iterdir()} == {
        path.name for path in (two / "undisturbed").iterdir()
    }


def test_processes_are_part_of_a_trial(two: Path, lab: Lab) -> None:
    with pytest.raises(MismatchError, match="threads or processes"):
        together.run_trial(lab, two / "undisturbed")


def test_the_command(one: Path, task: list[str], tmp_path: Path) -> None:
    done = launch("-m", "hskd", *together.distill(one, task, tmp_path))
    assert done.returncode == 0, done.stderr
    expected, result = (read_json(folder / "trial" / "result.json") for folder in (one / "made", tmp_path))
    assert result["processes"] == 2 and "processes" not in expected
    assert result["dev_scores"] == pytest.approx(expected["dev_scores"])
    for stage in ("hsk", "prediction"):
        for field in ("first_loss", "last_loss"):
            assert result["stages"][stage][field] == pytest.approx(expected["stages"][stage][field], rel=1e-4)
        assert result["stages"][stage]["steps"] == expected["stages"][stage]["steps"] == 4
    # Only one of them prints.
    assert done.stdout.count("trial: ") == 1 and done.stderr.count("HSK stage: 4 steps") == 1


def test_one_that_fails_ends_all(one: Path, lab: Lab, data_folder: Path, task: list[str], tmp_path: Path) -> None:
    done = launch(TESTS / "support" / "together.py", "fail", lab.root, data_folder, one, tmp_path, *task)
    assert done.returncode != 0
    assert done.stderr.count("error: this process has had enough") == done.stderr.count("error: ") == 1
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_one_process_does_alone(
    one: Path, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["hskd", "store", "verify", str(one / "made" / "store")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert ("as written" in capsys.readouterr().out) == (rank == "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid", "plan", "demo"], "spread its trials with --workers or --ray"),
        (["teacher", "--out", "t", "--device", "cuda:1"], "2 processes take a device each"),
        (["distill", "--student", "s", "--out", "t"], "give either --store"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_several_processes_are_refused(
    words: list[str], message: str, rank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["hskd", *words])
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)  # the launcher ends this process meanwhile
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capfd.readouterr().err.count(f"{message}") == 1
    assert bool(waited) == (rank == "1")


def test_processes_that_have_not_met(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HskdError, match="not joined"):
        build(tmp_path / "artifact", lambda folder: None)


def test_settings_of_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="--batch-size 4: 1 processes with --accumulate 5 cut a batch into 5 parts"):
        arguments(tmp_path, batch_size=4, accumulate=5)
    with pytest.raises(HskdError, match=r"loose_masks: .*, which 1 processes with --accumulate 2 cut into parts"):
        Departures(["loose_masks"]).require_whole_batches(2, 1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # set by accelerate; --dtype decides
    assert arguments(tmp_path).mixed_precision == "no"
