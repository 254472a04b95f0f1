"""The tiny grid, and a space of its specs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import make_bert
from support.find_lab import GRID, SPACE
from transformers import BertTokenizerFast


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have one core: a teacher is trained on all cores, whose number changes the bits."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="session")
def grid_file(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, data_folder: Path) -> Path:
    """A grid file: the teacher has 4 layers, the student 2."""
    folder = tmp_path_factory.mktemp("find")
    body = folder / "body"
    make_bert(num_hidden_layers=4).save_pretrained(body)
    tokenizer.save_pretrained(body)
    file = folder / "tiny.yaml"
    file.write_text(GRID.format(data=data_folder, model=body), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of 17 specs."""
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    file.write_text(SPACE, encoding="utf-8")
    return file
