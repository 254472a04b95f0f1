"""Fixtures of store tests: a teacher with its tokenised task, and the command line within this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calls import extraction

from hskd.cli.app import main
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.teachers.loading import Teacher

EVERYTHING = Superset(layers=(0, 1, 2), attention_layers=(1, 2))
SMALL_SHARD = 2**15
"""Shard size that splits the 64 training examples into several shards."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The tiny teacher, loaded, and the examples of its task."""

    task: Task
    splits: dict[str, TokenizedSplit]
    teacher: Teacher
    teacher_folder: Path
    data_folder: Path

    @property
    def train(self) -> TokenizedSplit:
        return self.splits["train"]

    def extract(self, folder: Path, superset: Superset = EVERYTHING, **options: Any) -> Store:
        torch.set_num_threads(1)  # extractions in fixtures must have the same bits as those in tests
        return extract(self.teacher, self.task, self.train, superset, folder, **extraction(**options))

    @property
    def options(self) -> list[str]:
        """Command-line options of the task."""
        task = ["--task", "custom", "--data", str(self.data_folder), "--text-columns", "sentence"]
        return [*task, "--label-column", "mood", "--work", str(self.teacher_folder.parent / "work")]


@pytest.fixture(scope="session")
def setting(teacher_folder: Path, data_folder: Path) -> Setting:
    data = load_task("custom", str(data_folder), ["sentence"], "mood")
    teacher = Teacher.load(str(teacher_folder), data.task)
    splits = tokenize(data, teacher.tokenizer, teacher_folder.parent / "work" / "tokens")
    return Setting(data.task, splits, teacher, teacher_folder, data_folder)


@pytest.fixture(scope="session")
def superset(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A superset of all layers for the 64 training examples, in several shards. Tests must not change it."""
    return setting.extract(tmp_path_factory.mktemp("superset") / "store", shard_bytes=SMALL_SHARD)


Hskd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hskd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hskd:
    """Return a function that runs ``hskd`` and returns exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return run
