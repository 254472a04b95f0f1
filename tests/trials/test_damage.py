"""Damaged teachers, students and trials are rejected by name, or read as before.

``HSKD_TORTURE=20`` takes twenty times as many mutations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from support.calls import CPU_RUN
from support.checkpoints import save_old_checkpoint
from support.distill_lab import Lab
from support.mutations import attack, same, times
from transformers import BertTokenizerFast

from hskd.artifacts import CHECKSUMS, require_whole
from hskd.distill.projection import make_projection
from hskd.errors import CorruptionError, HskdError
from hskd.remote.contents import local_contents
from hskd.students.general.distillation import general_distill, general_record
from hskd.students.general.settings import GeneralSettings
from hskd.students.pretrained.create import create_tinybert
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.teachers.finetune import finetune, teacher_metrics
from hskd.teachers.loading import Teacher
from hskd.teachers.settings import TeacherSettings
from hskd.trials.prepare import Student


@pytest.fixture(scope="module")
def made(lab: Lab, tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student with a ``fit_dense`` and a trial, each as its function leaves it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("made")
    make_bert().save_pretrained(root / "body")
    tokenizer.save_pretrained(root / "body")
    settings = TeacherSettings(epochs=1, batch_size=32)
    finetune(str(root / "body"), lab.task, lab.splits, settings, root / "teacher", CPU_RUN)
    save_old_checkpoint(root / "checkpoint", tokenizer, vocab_size=200)
    create_tinybert(
        TinyBertSettings(checkpoint=str(root / "checkpoint")), lab.task, str(lab.root / "teacher"), root / "student"
    )
    lab.trial(root / "trial", kind="narrow", hsk_epochs=1)
    shutil.rmtree(root / "trial" / "store")  # other tests damage stores
    return root


def read_teacher(lab: Lab) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        teacher = Teacher.load(str(folder), lab.task)
        return teacher.fingerprint, teacher.tokenizer_fingerprint, teacher_metrics(folder)["metrics"]

    return read


def read_student(lab: Lab) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        student = Student.load(folder, lab.task)
        projection = make_projection(16, 32, 0, folder)
        assert projection is not None
        state = {**student.model.state_dict(), **projection.state_dict()}
        return student.tokenizer, student.teacher, [(name, state[name]) for name in sorted(state)]

    return read


def read_trial(lab: Lab) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        result = lab.trial(folder, kind="narrow", hsk_epochs=1)
        varying = ("stages", "peak_memory_bytes", "made_by")
        kept = [(folder / "student" / name).read_bytes() for name in ("model.safetensors", "fit_dense.safetensors")]
        return {name: value for name, value in result.items() if name not in varying}, kept

    return read


READERS = {"teacher": (read_teacher, 40), "student": (read_student, 40), "trial": (read_trial, 20)}


@pytest.mark.torture
@pytest.mark.parametrize("kind", READERS)
def test_mutations_are_refused_or_harmless(made: Path, lab: Lab, tmp_path: Path, kind: str) -> None:
    reader, count = READERS[kind]
    outcome = attack(made / kind, tmp_path, reader(lab), times(count), seed=3, equal=same)
    assert not outcome.wrong, outcome
    assert outcome.refused and outcome.count == times(count)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("teacher", "model.safetensors"),
        ("teacher", "tokenizer.json"),
        ("teacher", "metrics.json"),
        ("student", "model.safetensors"),
        ("student", "fit_dense.safetensors"),
        ("student", "student.json"),
        ("trial", "student/model.safetensors"),
        ("trial", "predictions.npz"),
        ("trial", "result.json"),
        ("trial", "recipe.json"),
    ],
)
def test_a_message_names_the_file_and_what_to_do(made: Path, lab: Lab, tmp_path: Path, kind: str, file: str) -> None:
    folder = tmp_path / kind
    shutil.copytree(made / kind, folder)
    flip(folder / file)
    with pytest.raises(CorruptionError) as refused:
        READERS[kind][0](lab)(folder)
    said = str(refused.value)
    assert str(folder / file) in said and "\n" not in said
    assert "elete" in said


def test_what_is_damaged_is_not_published(made: Path, tmp_path: Path) -> None:
    for kind, file in (("teacher", "model.safetensors"), ("trial", "student/model.safetensors")):
        shutil.copytree(made / kind, tmp_path / kind)
        local_contents(tmp_path / kind)
        flip(tmp_path / kind / file)
        with pytest.raises(CorruptionError, match="is not the file that was written there"):
            local_contents(tmp_path / kind)


def test_a_general_student_is_held_to_its_checksums(lab: Lab, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    make_bert().save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    (tmp_path / "text.txt").write_text("a warm and funny film of the bright story\n" * 20, encoding="utf-8")
    sizes = {"layers": 1, "width": 16, "heads": 2, "ffn": 16, "chunk_tokens": 12, "epochs": 0}
    settings = GeneralSettings(text=tmp_path / "text.txt", **sizes)  # type: ignore[arg-type]
    general = general_distill(str(tmp_path / "body"), settings, tmp_path / "general", CPU_RUN)
    assert general_record(general)["parameters"]
    student = TinyBertSettings(checkpoint=str(general))
    create_tinybert(student, lab.task, str(tmp_path / "body"), tmp_path / "student")
    flip(general / "model.safetensors")
    with pytest.raises(CorruptionError, match=r"general/model.safetensors: is not the file that was written there"):
        create_tinybert(student, lab.task, str(tmp_path / "body"), tmp_path / "again")
    flip(general / "general.json")
    with pytest.raises(CorruptionError, match=r"general.json: .*hskd general"):
        general_record(general)


def test_who_changes_a_file_on_purpose_deletes_the_checksums(made: Path, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(made / "student", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["hidden_dropout_prob"] = 0.3
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CorruptionError, match=f"if you changed it yourself, delete {folder / CHECKSUMS}"):
        Student.load(folder, lab.task)
    (folder / CHECKSUMS).unlink()
    assert Student.load(folder, lab.task).model.config.hidden_dropout_prob == 0.3


@pytest.mark.parametrize("content", ["{}", '{"files": 3}', '{"files": {"config.json": 1}}', "[" * 5000, "null"])
def test_odd_checksums(tmp_path: Path, content: str) -> None:
    (tmp_path / CHECKSUMS).write_text(content, encoding="utf-8")
    with pytest.raises(HskdError, match=CHECKSUMS):
        require_whole(tmp_path)
