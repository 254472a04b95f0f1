"""The tiny grid, and one uninterrupted run of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from support.command_line import Cli, command_line
from support.grid_lab import GRID, Ran, run
from transformers import BertTokenizerFast

from hskd.store import extract
from hskd.training import StageTrainer

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have one core: the command line trains the teacher on all cores, whose number changes the bits."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="session")
def body(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A model of 4 layers, from which a teacher is fine-tuned."""
    folder = tmp_path_factory.mktemp("body")
    make_bert(num_hidden_layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory, body: Path, data_folder: Path) -> Write:
    """Write the tiny grid with added lines. A line replaces the existing line of the same key."""

    def write(*lines: str, name: str = "tiny") -> Path:
        text = GRID.format(name=name, data=data_folder, model=body)
        for line in lines:
            key = line.partition(":")[0]
            text = "".join(old for old in text.splitlines(keepends=True) if not old.startswith(f"{key}:"))
            text += line + "\n"
        file = tmp_path_factory.mktemp("grid") / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="session")
def grid_file(write: Write) -> Path:
    """The tiny grid."""
    return write()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, grid_file: Path) -> Ran:
    """The tiny grid, run in this process without interruption, with a record of the batches of teacher and students."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every end, which is slow if it covers all imported objects
    forwarded: list[int] = []
    batches: dict[str, list[list[int]]] = {}
    teacher_forward, compute_loss = extract.teacher_forward, StageTrainer.compute_loss

    def forward(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        forwarded.extend(batch["example_ids"].tolist())
        return teacher_forward(model, batch, *args, **kwargs)

    def loss(self: StageTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        trial = str(Path(self.args.output_dir).parent)
        batches.setdefault(trial, []).append(inputs["example_ids"].tolist())
        return compute_loss(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "teacher_forward", forward)
        patch.setattr(StageTrainer, "compute_loss", loss)
        ran = run(grid_file, tmp_path_factory.mktemp("undisturbed"))
    ran.forwarded, ran.batches = forwarded, batches
    return ran


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run ``hskd grid`` with these arguments in a folder of its own: exit code, output, messages."""
    return command_line(monkeypatch, capfd, tmp_path, "grid")
