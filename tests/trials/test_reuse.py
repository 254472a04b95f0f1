"""Existing artifacts are reused only if all their inputs are the same, by content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from support.calls import CPU_RUN, Calls
from support.distill_lab import Lab, weights
from transformers import BertTokenizerFast

import hskd
from hskd import hashing
from hskd.errors import MismatchError
from hskd.heads import SequenceClassification
from hskd.io import read_json
from hskd.spec import HSKSpec
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.tasks.content import labelled, scored
from hskd.teachers.finetune import finetune, teacher_metrics
from hskd.teachers.loading import Teacher, model_content
from hskd.teachers.settings import TeacherSettings
from hskd.trials.config import GivenStudent, TaskPlan, TeacherPlan, TrialConfig
from hskd.trials.result import TrialResult
from hskd.trials.settings import DistillSettings

ONE = TeacherSettings(epochs=1, lr=3e-3, batch_size=16)
OTHER_MOOD = {"positive": "negative", "negative": "positive"}


def trained() -> Calls:
    """Progress that fails at the first training step."""

    def step() -> None:
        raise AssertionError("trained")

    return Calls(step)


def swapped(data: Path, to: Path, *splits: str) -> Path:
    """Return a copy of the data in which the labels of some splits are exchanged."""
    shutil.copytree(data, to)
    for split in splits:
        path = to / f"{split}.csv"
        rows = [row.rpartition(",") for row in path.read_text(encoding="utf-8").splitlines()]
        lines = [f"{text},{OTHER_MOOD.get(mood, mood)}" for text, _, mood in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def exchange(data: Path, *splits: str) -> None:
    """Exchange the labels of some splits in place."""
    other = swapped(data, data.with_name(data.name + "-other"), *splits)
    shutil.rmtree(data)
    other.rename(data)


@pytest.fixture
def data(data_folder: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    shutil.copytree(data_folder, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def body(tmp_path: Path, tokenizer: BertTokenizerFast) -> Path:
    make_bert().save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    return tmp_path / "body"


def opened(data: Path, tokenizer: BertTokenizerFast, tokens: Path) -> tuple[Task, dict[str, TokenizedSplit]]:
    loaded = load_task("custom", str(data), ["sentence"], "mood")
    return loaded.task, tokenize(loaded, tokenizer, tokens)


# Fingerprints


def test_a_fingerprint_is_of_labels_names_order_and_metrics(lab: Lab) -> None:
    split, head = lab.train, lab.task.head
    assert isinstance(head, SequenceClassification) and split.labels is not None
    keys = {
        labelled(head, split),
        labelled(head, replace(split, labels=1 - split.labels)),
        labelled(head, replace(split, labels=None)),
        labelled(head, split.take(np.arange(len(split))[::-1])),
        labelled(replace(head, label_names=("positive", "negative")), split),
        labelled(head, split.first(3)),
    }
    assert len(keys) == 6
    assert labelled(head, split.take(np.arange(len(split)))) == labelled(head, split), "copied"
    assert scored(head, split) != scored(replace(head, metric_names=("f1",)), split)


def test_a_file_is_hashed_again_once_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    whole = hashing.file_sha256
    monkeypatch.setattr(hashing, "file_sha256", lambda path: (hashed.append(path), whole(path))[1])
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert hashing.known_sha256(path) == hashing.known_sha256(path) == whole(path)
    assert len(hashed) == 2, "a file that was written a moment ago may change within one tick of its clock"
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)
    before = hashing.known_sha256(path)
    assert hashing.known_sha256(path) == before and len(hashed) == 3
    times = path.stat()
    path.write_bytes(b"two")  # of equal length, in place
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hashing.known_sha256(path) == whole(path) != before


def test_a_model_is_known_by_its_bytes_and_not_by_its_place(body: Path, tmp_path: Path) -> None:
    shutil.copytree(body, tmp_path / "copy")
    assert model_content(str(body)) == model_content(str(tmp_path / "copy"))
    make_bert(seed=1).save_pretrained(body)
    assert model_content(str(body)) != model_content(str(tmp_path / "copy"))


# Teachers and students


def test_a_teacher_of_other_labels_is_not_handed_out(
    data: Path, body: Path, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    task, splits = opened(data, tokenizer, tmp_path / "tokens")
    finetune(str(body), task, splits, ONE, tmp_path / "teacher", CPU_RUN)
    before = teacher_metrics(tmp_path / "teacher")["metrics"]
    exchange(data, "train")
    task, splits = opened(data, tokenizer, tmp_path / "tokens")
    with pytest.raises(MismatchError, match=r"it differs in: labels\)"):
        finetune(str(body), task, splits, ONE, tmp_path / "teacher", CPU_RUN)
    exchange(data, "train", "dev")  # now only dev differs
    task, splits = opened(data, tokenizer, tmp_path / "tokens")
    said: list[str] = []
    finetune(str(body), task, splits, ONE, tmp_path / "teacher", CPU_RUN, Calls(trained()._step, say=said.append))
    after = teacher_metrics(tmp_path / "teacher")["metrics"]
    assert after["dev"]["accuracy"] == pytest.approx(1 - before["dev"]["accuracy"])
    assert after["test"] == before["test"]
    assert "scoring it anew" in said[0]
    make_bert(seed=1).save_pretrained(body)
    with pytest.raises(MismatchError, match=r"it differs in: model\)"):
        finetune(str(body), task, splits, ONE, tmp_path / "teacher", CPU_RUN)


def test_a_pruned_student_is_of_the_labels_that_chose_its_heads(lab: Lab, tmp_path: Path) -> None:
    settings = RositaSettings(layers=1, heads=1, ffn=8, importance_examples=16)
    create_rosita(lab.teacher, lab.train, settings, tmp_path / "student")
    create_rosita(lab.teacher, lab.train, settings, tmp_path / "student")
    assert lab.train.labels is not None
    with pytest.raises(MismatchError, match=r"it differs in: data\)"):
        create_rosita(lab.teacher, replace(lab.train, labels=1 - lab.train.labels), settings, tmp_path / "student")


# Trials of given folders


@pytest.fixture
def config(lab: Lab, data: Path) -> Callable[..., TrialConfig]:
    def make(**changes: Any) -> TrialConfig:
        settings = {"hsk_epochs": 1, "prediction_epochs": 2, "batch_size": 16, **changes.pop("settings", {})}
        fields: dict[str, Any] = {
            "task": TaskPlan(name="custom", data=str(data), text_columns=("sentence",), label_column="mood"),
            "teacher": None,
            "student": GivenStudent(folder=str(lab.root / "rosita")),
            "settings": DistillSettings(**settings),
            "spec": HSKSpec.parse("2l_3t_0.5w"),
            "dtype": "fp32",
            "device": "cpu",
            "threads": 1,
            "build_threads": 1,
            "store": str(lab.root / "superset"),
        }
        return TrialConfig(**fields | changes)

    return make


def test_swapped_labels_of_dev_and_test_are_scored_anew_without_training(
    config: Callable[..., TrialConfig], data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    first = hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial")
    student = weights(tmp_path / "trial")
    exchange(data, "dev", "test")
    said: list[str] = []
    again = hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial", Calls(trained()._step, say=said.append))
    for split in ("dev", "test"):
        assert again.metrics[split]["score"] == pytest.approx(1 - first.metrics[split]["score"])
    assert "dev, test changed since; the trained student is scored anew" in "\n".join(said)
    assert weights(tmp_path / "trial") == student
    assert again.dev_scores == [] and again.best_dev_score is None, "of labels that are no more"
    assert TrialResult.read(tmp_path / "trial" / "result.json") == again
    # As in a trial that never had the other labels.
    fresh = hskd.run_trial(config(), tmp_path / "work", tmp_path / "fresh")
    assert fresh.metrics == again.metrics and fresh.id == again.id != first.id
    assert weights(tmp_path / "fresh") == student
    found, expected = (np.load(tmp_path / name / "predictions.npz") for name in ("trial", "fresh"))
    for split in ("dev", "test"):
        assert np.array_equal(found[split], expected[split])
    assert hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial", trained()) == again


def test_other_examples_of_dev_are_scored_anew(config: Callable[..., TrialConfig], data: Path, tmp_path: Path) -> None:
    hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial")
    rows = (data / "dev.csv").read_text(encoding="utf-8").splitlines()
    (data / "dev.csv").write_text("\n".join([*rows[:5], "the drab minute,positive"]) + "\n", encoding="utf-8")
    again = hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial", trained())
    fresh = hskd.run_trial(config(), tmp_path / "work", tmp_path / "fresh")
    assert again.metrics == fresh.metrics
    assert len(np.load(tmp_path / "trial" / "predictions.npz")["dev"]) == 5


def test_the_epoch_that_dev_chose_is_trained_anew(
    config: Callable[..., TrialConfig], data: Path, tmp_path: Path
) -> None:
    settings = {"compat": ("best_epoch",)}
    hskd.run_trial(config(settings=settings), tmp_path / "work", tmp_path / "trial")
    exchange(data, "dev")
    with pytest.raises(MismatchError, match="dev, by which the epoch is chosen"):
        hskd.run_trial(config(settings=settings), tmp_path / "work", tmp_path / "trial")


def test_gold_is_of_its_labels_and_other_arms_are_not(
    config: Callable[..., TrialConfig], data: Path, tmp_path: Path
) -> None:
    gold = config(settings={"arm": "gold"}, store=None, spec=None)
    hskd.run_trial(gold, tmp_path / "work", tmp_path / "gold")
    hskd.run_trial(config(), tmp_path / "work", tmp_path / "spec")
    exchange(data, "train")
    with pytest.raises(MismatchError, match=r"it differs in: labels\)"):
        hskd.run_trial(gold, tmp_path / "work", tmp_path / "gold")
    hskd.run_trial(config(), tmp_path / "work", tmp_path / "spec", trained())


def test_an_id_is_of_contents_and_not_of_paths(
    config: Callable[..., TrialConfig], lab: Lab, data: Path, tmp_path: Path
) -> None:
    first = hskd.run_trial(config(), tmp_path / "work", tmp_path / "trial")
    for folder in ("rosita", "superset"):
        shutil.copytree(lab.root / folder, tmp_path / folder)
    data.rename(tmp_path / "moved")
    plan = config().task.model_copy(update={"data": str(tmp_path / "moved")})
    student = GivenStudent(folder=str(tmp_path / "rosita"))
    moved = config(task=plan, student=student, store=str(tmp_path / "superset"))
    again = hskd.run_trial(moved, tmp_path / "work", tmp_path / "trial", trained())
    assert again.id == first.id
    fresh = hskd.run_trial(moved, tmp_path / "work", tmp_path / "fresh")
    assert fresh.id == first.id
    assert fresh.config is not None and TrialConfig.model_validate(fresh.config).id == fresh.id
    other = create_rosita(
        lab.teacher, lab.train, RositaSettings(layers=2, heads=2, ffn=20, rank=8), tmp_path / "rosita-20"
    )
    shutil.rmtree(tmp_path / "rosita")
    shutil.copytree(other, tmp_path / "rosita")  # another student in the same place
    with pytest.raises(MismatchError, match="it differs in: student"):
        hskd.run_trial(moved, tmp_path / "work", tmp_path / "trial")
    assert hskd.run_trial(moved, tmp_path / "work", tmp_path / "other").id != first.id


def test_a_teacher_in_the_same_place_is_another(
    config: Callable[..., TrialConfig], lab: Lab, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    shutil.copytree(lab.root / "teacher", tmp_path / "teacher")
    online = config(
        teacher=TeacherPlan(model=str(tmp_path / "teacher"), fine_tuned=True),
        student=GivenStudent(folder=str(lab.root / "narrow")),
        store=None,
        online=True,
    )
    hskd.run_trial(online, tmp_path / "work", tmp_path / "trial")
    make_bert(seed=5, num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    with pytest.raises(MismatchError, match="it differs in: teacher"):
        hskd.run_trial(online, tmp_path / "work", tmp_path / "trial")


def test_a_store_of_other_values_is_not_the_same_knowledge(
    config: Callable[..., TrialConfig], lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    spec = HSKSpec.parse("2l_3t_0.5w")
    hskd.derive(lab.superset, spec, 2, folder)
    derived = config(store=str(folder))
    result = hskd.run_trial(derived, tmp_path / "work", tmp_path / "trial")
    assert result.inputs is not None
    # From the superset the knowledge is the same, and so is the trial.
    same = hskd.run_trial(config(), tmp_path / "work", tmp_path / "same")
    assert same.inputs is not None and same.inputs["trained"] == result.inputs["trained"]
    shutil.rmtree(folder)
    teacher = Teacher.load(str(lab.root / "teacher"), lab.task)
    with torch.no_grad():
        for weight in teacher.model.base_model.encoder.layer[0].parameters():
            weight.mul_(1.01)
    object.__setattr__(teacher, "fingerprint", lab.teacher.fingerprint)  # a store that claims to be of this teacher
    superset = hskd.extract(
        teacher, lab.task, lab.train, hskd.Superset.of([spec], lab.teacher.shape(2)), tmp_path / "superset"
    )
    hskd.derive(superset, spec, 2, folder)
    with pytest.raises(MismatchError, match="it differs in: knowledge"):
        hskd.run_trial(derived, tmp_path / "work", tmp_path / "trial")


def test_a_recipe_says_what_differs(lab: Lab, tmp_path: Path) -> None:
    lab.trial(tmp_path)
    with pytest.raises(MismatchError, match=r"it differs in: settings\). Choose another folder"):
        lab.trial(tmp_path, seed=1)
    assert set(read_json(tmp_path / "recipe.json")) == {"recipe", "parts", "checksum"}
