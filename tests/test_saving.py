"""What libraries raise when a disk is full, at whatever byte, is one error in our words."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_bert
from support.small_disk import small_disk_at
from transformers import BertTokenizerFast

from hskd.errors import HskdError
from hskd.io import saving
from hskd.teachers.loading import save_tokenizer

PAGE = 4096
Save = Callable[[Path], object]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real disk of 1 MiB."""
    with small_disk_at(tmp_path_factory.mktemp("disk"), "1m") as folder:
        yield folder


@pytest.fixture(params=["checkpoint", "tokenizer", "model"])
def save(request: pytest.FixtureRequest, tokenizer: BertTokenizerFast) -> Save:
    """One of the libraries that write artifacts."""
    model = make_bert(num_hidden_layers=1)
    state = {name: value.repeat(2) if value.ndim == 1 else value for name, value in model.state_dict().items()}

    def checkpoint(folder: Path) -> None:
        with saving(folder):
            torch.save(state, folder / "optimizer.pt")

    def whole_model(folder: Path) -> None:
        with saving(folder):
            model.save_pretrained(folder)

    ways = {
        "checkpoint": checkpoint,
        "tokenizer": lambda folder: save_tokenizer(tokenizer, folder),
        "model": whole_model,
    }
    return ways[request.param]


def test_a_disk_that_is_full_at_any_page(small_disk: Path, save: Save) -> None:
    refused = 0
    for pages in range(256):
        folder, other = small_disk / "artifact", small_disk / "other"
        folder.mkdir()
        free = int(subprocess.check_output(["stat", "-f", "-c", "%f", small_disk]))
        other.write_bytes(bytes((free - pages) * PAGE))
        try:
            save(folder)
        except HskdError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(error).startswith(f"{folder}: cannot be written (")
        else:
            break
        finally:
            other.unlink(missing_ok=True)
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    else:
        pytest.fail("1 MiB was never enough")
    assert refused > 0
