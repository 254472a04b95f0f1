"""Own data may be as long as the model allows, but not longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert
from transformers import BertTokenizerFast

from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.teachers.loading import Teacher
from hskd.trials.api import run_trial
from hskd.trials.config import GivenStudent, TaskPlan, TeacherPlan, TrialConfig
from hskd.trials.data import task_examples
from hskd.trials.settings import DistillSettings


def plan(folder: Path, words: int, max_length: int | None = None) -> TaskPlan:
    """Write eight sentences, half of which have this many words, and a ninth with three more."""
    for split in ("train", "dev"):
        texts = [f"film {'warm ' * (words - 2 if i % 2 else 1)}{i}" for i in range(8)] + ["dull " * (words + 3)]
        rows = [f"{split[0]} {text},{i % 2}\n" for i, text in enumerate(texts)]
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(rows))
    return TaskPlan(name="custom", data=str(folder), text_columns="text", label_column="label", max_length=max_length)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def long_teacher(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A teacher with 300 positions, whose labels are those of the plan."""
    folder = tmp_path_factory.mktemp("long")
    names = {"id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    make_bert(max_position_embeddings=300, hidden_size=16, intermediate_size=16, **names).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_the_model_cannot_take_is_refused_before_data_is_read(teacher_folder: Path, tmp_path: Path) -> None:
    nowhere = TaskPlan(name="custom", data=str(tmp_path / "nowhere"), max_length=65)
    with pytest.raises(HskdError, match=r"--max-length 65: .* has positions for 64 tokens; give at most that"):
        task_examples(nowhere, str(teacher_folder), tmp_path)
    with pytest.raises(HskdError, match="nowhere: no such file or folder"):
        task_examples(nowhere.model_copy(update={"max_length": 64}), str(teacher_folder), tmp_path)


def test_the_default_is_lowered_aloud(teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = task_examples(plan(tmp_path, 70), str(teacher_folder), tmp_path / "work")
    assert examples.train.lengths.max() == examples.train.max_length == 64
    assert "task custom: the model has positions for 64 tokens, not for 128" in caplog.messages
    assert any(
        message.startswith("task custom: 10 of 18 texts are cut at 64 tokens (train 5 of 9, dev 5 of 9)")
        for message in caplog.messages
    )


def test_examples_of_300_tokens_are_stored_and_read(long_teacher: Path, tmp_path: Path) -> None:
    """Positions beyond 255 do not fit into the byte that stores of short texts use."""
    examples = task_examples(plan(tmp_path, 300, 300), str(long_teacher), tmp_path / "work")
    assert examples.train.lengths.max() == 300
    teacher = Teacher.load(str(long_teacher), examples.task)
    spec = HSKSpec.parse("1l_280t_0.5w,length=left,precision=fp32")
    superset = extract(teacher, examples.task, examples.train, Superset.of([spec], teacher.shape(2)), tmp_path / "s")
    row = int(np.argmax(superset.lengths))
    assert superset.lengths[row] == 300
    store = derive(superset, spec, 2, tmp_path / "d")
    kept = store.kept(np.array([row]))
    assert kept.values.shape[0] == 280
    batch = examples.train.collate([int(np.argmax(examples.train.lengths))])
    with torch.no_grad():
        top = teacher.model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[-1][0]
    values = kept.values[:, 0]
    largest = top[:280].abs().sort(dim=1, descending=True).values[:, :8].sum(dim=1)
    torch.testing.assert_close(values.abs().sum(dim=1), largest, rtol=1e-3, atol=1e-3)


def test_a_student_and_a_teacher_with_fewer_positions_are_refused(
    teacher_folder: Path, long_teacher: Path, tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    names = {"id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    make_bert(**names).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    config = TrialConfig(
        task=plan(tmp_path, 80, 100),
        teacher=TeacherPlan(model=str(tmp_path / "short"), fine_tuned=True),
        student=GivenStudent(folder=str(long_teacher)),
        settings=DistillSettings(hsk_epochs=1, prediction_epochs=1),
        spec=HSKSpec(),
        dtype="fp32",
        device="cpu",
        threads=1,
        build_threads=1,
        online=True,
    )
    with pytest.raises(
        HskdError, match=r"teacher .*short: has positions for 64 tokens, and an example of train has 8\d"
    ):
        run_trial(config, tmp_path / "work", tmp_path / "trial")
    swapped = {"student": GivenStudent(folder=str(tmp_path / "short")), "task": plan(tmp_path, 80, 100)}
    with pytest.raises(HskdError, match=r"--max-length 100: .*short has positions for 64 tokens"):
        run_trial(config.model_copy(update=swapped), tmp_path / "work", tmp_path / "trial2")
