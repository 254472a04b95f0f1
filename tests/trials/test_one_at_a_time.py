"""Two processes that make one artifact: the second waits, says so, and finds it finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_bert
from support import at_once
from support.calls import Calls
from support.distill_lab import Lab
from transformers import BertTokenizerFast


@pytest.fixture(scope="module")
def body(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("body")
    make_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def together(lab: Lab, data_folder: Path, body: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, with the results and messages of two processes."""
    out = tmp_path_factory.mktemp("at-once")
    script = Path(at_once.__file__)
    places = [str(place) for place in (lab.root, data_folder, body, out)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    both = [
        subprocess.Popen([sys.executable, str(script), str(number), *places], env=environment) for number in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    return out


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", at_once.KINDS)
def test_the_second_waits_and_finds_it_done(
    lab: Lab, data_folder: Path, body: Path, together: Path, tmp_path: Path, kind: str
) -> None:
    torch.set_num_threads(1)
    told = [json.loads((together / kind / f"told-{number}.json").read_text(encoding="utf-8")) for number in range(2)]
    assert [one["error"] for one in told] == [[], []]
    trained = [[title for title in one["titles"] if title != "derive"] for one in told]
    assert trained[0] and not trained[1], "only one of them trained"
    assert any("another process is making it; waiting until that one is done" in said for said in told[1]["said"])
    at_once.makers(lab, data_folder, body, tmp_path)[kind](tmp_path / "alone", Calls())
    file = "student/model.safetensors" if kind == "distill" else "model.safetensors"
    assert (together / kind / "together" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
