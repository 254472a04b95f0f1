"""A grid with augmented sentences shares teacher, students and store with a grid without them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from grid.conftest import Write
from support.grid_lab import Ran, Recorder, run, trials_of

from hskd.errors import HskdError
from hskd.grid.spec import load_grid
from hskd.store import extract
from hskd.trials.config import TaskPlan
from hskd.trials.workspace import Workspace

SENTENCES = "a warm and dull story\ngreat and poor acting\ni loved this drab film\n"


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    file = tmp_path / "extra.txt"
    file.write_text(SENTENCES, encoding="utf-8")
    return file


def augmented(write: Write, data_folder: Path, extra: Path, *lines: str) -> Path:
    columns = "text_columns: [sentence], label_column: mood"
    task = f'task: {{name: custom, data: "{data_folder}", {columns}, augment: "{extra}"}}'
    return write(task, "seeds: 1", "sweeps: []", "include: [2l_1t_0.25w]", *lines, name="augmented")


def test_the_teacher_reads_the_new_sentences_alone(
    undisturbed: Ran, write: Write, data_folder: Path, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(undisturbed.work, tmp_path / "work")
    file = augmented(write, data_folder, extra)
    forwarded: list[int] = []
    teacher_forward = extract.teacher_forward

    def forward(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        forwarded.extend(batch["example_ids"].tolist())
        return teacher_forward(model, batch, *args, **kwargs)

    monkeypatch.setattr(extract, "teacher_forward", forward)
    ran = run(file, tmp_path, told=(told := Recorder()))
    trials = trials_of(file)[1]
    workspace = Workspace(ran.work, trials)
    assert len(workspace.train) == 67 and workspace.train.real == 64
    assert sorted(forwarded) == sorted(workspace.train.ids[64:].tolist())
    assert "store of augmented examples: extract" in told.titles
    assert not [title for title in told.titles if title in ("teacher", "store: extract") or "importance" in title]
    assert ran.table["train_examples"].tolist() == [67, 67, 67]
    assert not {trial.id for trial in trials} & set(undisturbed.table["trial"])
    assert set(trials[0].files) == {"data", "augment", "model"}
    assert len(workspace.ensure_superset(told)) == 67 and len(workspace.ensure_held_out(told)) == 16


def test_another_file_is_another_trial(write: Write, data_folder: Path, extra: Path) -> None:
    first = {trial.id for trial in trials_of(augmented(write, data_folder, extra))[1]}
    extra.write_text(SENTENCES + "one more\n", encoding="utf-8")
    assert not first & {trial.id for trial in trials_of(augmented(write, data_folder, extra))[1]}


def test_gold_is_refused_with_its_line(write: Write, data_folder: Path, extra: Path) -> None:
    file = augmented(write, data_folder, extra, "arms: [gold]")
    line = file.read_text().splitlines().index("arms: [gold]") + 1
    with pytest.raises(HskdError, match=rf"line {line}: arms: gold learns from labels, and the sentences of"):
        load_grid(str(file))


def test_a_plan_without_them_is_written_as_ever() -> None:
    """The written settings decide a trial's name, so earlier trials keep their names."""
    assert "augment" not in TaskPlan().model_dump(mode="json")
    assert TaskPlan(augment="x.txt").model_dump(mode="json")["augment"] == "x.txt"
