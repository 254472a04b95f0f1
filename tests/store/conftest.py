"""A teacher with its tokenised task, and the command line run inside the test's process."""

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
"""Cuts the 64 training examples into several shards."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The tiny teacher, loaded, and its task's examples."""

    task: Task
    splits: dict[str, TokenizedSplit]
    teacher: Teacher
    teacher_folder: Path
    data_folder: Path

    @property
    def train(self) -> TokenizedSplit:
        return self.splits["train"]

    def extract(self, folder: Path, superset: Superset = EVERYTHING, **options: Any) -> Store:
        torch.set_num_threads(1)  # a fixture's extraction, too, must have the bits of a test's
        return extract(self.teacher, self.task, self.train, superset, folder, **extraction(**options))

    @property
    def options(self) -> list[str]:
        """The task, for the command line."""
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
    """Everything the tiny teacher knows of the 64 training examples, in several shards. Not to be changed."""
    return setting.extract(tmp_path_factory.mktemp("superset") / "store", shard_bytes=SMALL_SHARD)


Hskd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hskd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hskd:
    """Runs ``hskd`` with these arguments; gives exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return run
