"""Augmented data from the command line to the losses: which stages train on it, and the origin of its targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.distill_lab import Lab

from hskd.cli.app import main
from hskd.cli.options import TaskOptions
from hskd.cli.setting import load_examples
from hskd.distill.trainer import PredictionTrainer
from hskd.errors import HskdError
from hskd.tasks import load_task, tokenize
from hskd.tasks.augment import AUGMENTED
from hskd.teachers.forward import teacher_forward

SENTENCES = ["a warm and dull story", "great and poor acting", "i loved this drab film", "the minute is bright"]
DISTILL = ["--spec", "1l_1t_0.5w,precision=fp32", "--hsk-epochs", 1, "--prediction-epochs", 1, "--batch-size", 10]


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    file = tmp_path / "extra.csv"
    rows = [f"{sentence},a label that nobody knows" for sentence in SENTENCES]
    file.write_text("\n".join(["sentence,mood", *rows]) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def task(lab: Lab, data_folder: Path) -> list[object]:
    """The options of the task."""
    columns = ["--text-columns", "sentence", "--label-column", "mood"]
    machine = ["--dtype", "fp32", "--device", "cpu"]
    return ["--task", "custom", "--data", data_folder, *columns, *machine, "--work", lab.root / "cli"]


@pytest.fixture
def hskd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``hskd`` and return exit code and messages."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capfd.readouterr().err

    return run


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    """Return the teacher's logits by example id, as the prediction stage gets them."""
    told: dict[int, np.ndarray] = {}
    original = PredictionTrainer.batch_loss

    def recorded(self: PredictionTrainer, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        assert "labels" not in batch
        told.update(zip(batch["example_ids"].tolist(), batch["target"].numpy(), strict=True))
        return original(self, model, batch)

    monkeypatch.setattr(PredictionTrainer, "batch_loss", recorded)
    return told


def test_distil_with_augmented_sentences(
    lab: Lab,
    data_folder: Path,
    extra: Path,
    task: list[object],
    hskd: Callable[..., tuple[int, str]],
    targets: dict[int, np.ndarray],
    tmp_path: Path,
) -> None:
    more = [*task, "--augment", extra]
    store = tmp_path / "store"
    extend = ["--extend", lab.root / "superset", "--out", store]
    code, err = hskd("store", "extract", "--teacher", lab.root / "teacher", *extend, *more)
    assert code == 0 and "extract: 4 steps" in err, err
    data = load_task("custom", str(data_folder), ["sentence"], "mood", str(extra))
    splits = tokenize(data, lab.teacher.tokenizer, tmp_path / "tokens")
    both = splits["train"].followed_by(splits[AUGMENTED])
    output = teacher_forward(lab.teacher.model, both.collate(range(68)), both.sep_id, (), (), head=lab.task.head)
    assert output.target is not None
    expected = output.target.numpy()
    results = {}
    for name, source in (("offline", ["--store", store]), ("online", ["--teacher", lab.root / "teacher"])):
        targets.clear()
        out = tmp_path / name
        code, err = hskd("distill", "--student", lab.root / "rosita", *source, *DISTILL, *more, "--out", out)
        assert code == 0, err
        results[name] = result = json.loads((out / "result.json").read_text())
        assert (result["train_examples"], result["augmented_examples"]) == (68, 4)
        assert [result["stages"][stage]["examples"] for stage in ("hsk", "prediction")] == [68, 68]
        assert result["stages"]["hsk"]["steps"] == 7
        assert result["kept_values"] == 68 * 16  # one layer, one token, half of 32 neurons, of every sentence
        assert set(targets) == set(both.ids.tolist())
        np.testing.assert_allclose([targets[id] for id in both.ids.tolist()], expected, rtol=1e-3, atol=1e-4)
    assert results["offline"]["data"] == results["online"]["data"] == both.fingerprint != lab.train.fingerprint
    found, wanted = (results[name]["stages"]["hsk"]["last_loss"] for name in ("offline", "online"))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_store_without_them_does_not_serve(
    lab: Lab, extra: Path, task: list[object], hskd: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    store = ["--store", lab.root / "superset", "--augment", extra, "--out", tmp_path / "out"]
    code, err = hskd("distill", "--student", lab.root / "rosita", *store, *DISTILL, *task)
    assert code == 2 and "4 of 68 examples are not in this store of 64" in " ".join(err.split())


def test_gold_is_refused(
    lab: Lab, extra: Path, task: list[object], hskd: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Augmented examples have no labels, and the teacher's labels would not be gold."""
    gold = ["--arm", "gold", "--augment", extra, "--out", tmp_path / "out"]
    code, err = hskd("distill", "--student", lab.root / "rosita", *gold, *DISTILL, *task)
    assert code == 2 and "the arm gold learns from labels, and the training examples have none" in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_teacher_and_importance_see_the_real_examples_alone(lab: Lab, data_folder: Path, extra: Path) -> None:
    torch.set_num_threads(1)
    shared = {"task": "custom", "data": str(data_folder), "text_columns": "sentence", "label_column": "mood"}
    options = TaskOptions(**shared, work=lab.root / "cli", train_examples=20, augment=str(extra))  # type: ignore[arg-type]
    teacher = str(lab.root / "teacher")
    splits = load_examples(options, teacher).for_student
    assert set(splits) == {"train", "dev", "test"}
    assert len(splits["train"]) == 20 and splits["train"].labels is not None and splits["train"].real is None
    splits = load_examples(options, teacher, augmented=True).for_student
    assert set(splits) == {"train", "dev", "test"}
    assert len(splits["train"]) == 24 and splits["train"].real == 20 and splits["train"].labels is None
    np.testing.assert_array_equal(splits["train"].ids[:20], lab.train.first(20).ids)
    with pytest.raises(HskdError, match="nowhere: no such file"):
        load_examples(options.model_copy(update={"augment": "nowhere"}), teacher, augmented=True)
