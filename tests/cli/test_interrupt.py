"""After Ctrl-C a command prints one line, exits with 130, and resumes to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_bert
from transformers import BertTokenizerFast

from hskd.cli import app
from hskd.errors import HskdError
from hskd.io import with_home


def words(body: Path, data: Path, work: Path, out: Path) -> list[str]:
    task = ["--task", "custom", "--data", data, "--text-columns", "sentence", "--label-column", "mood"]
    machine = ["--device", "cpu", "--dtype", "fp32", "--threads", "1", "--work", work]
    return [*map(str, ["teacher", "--model", body, "--epochs", 4, "--lr", 1e-3, *task, *machine, "--out", out])]


SLOW = """
import gc, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what shells start in the background ignores it
from hskd.cli.app import main
from hskd.training import StageTrainer
gc.freeze()
loss = StageTrainer.compute_loss
def slow(self, *args, **kwargs):
    time.sleep(0.1)
    return loss(self, *args, **kwargs)
StageTrainer.compute_loss = slow
main()
"""
"""The command line, slowed down so that it can be interrupted between two epochs."""


@pytest.mark.timeout(300)
def test_a_teacher_that_is_interrupted_goes_on(
    tmp_path: Path, tokenizer: BertTokenizerFast, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bert().save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    out = tmp_path / "out"
    command = words(tmp_path / "body", data_folder, tmp_path / "work", out)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", SLOW, *command], stdout=said, stderr=said)
    give_up = time.monotonic() + 200
    while not list(tmp_path.glob("out.partial/training/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    text = (tmp_path / "said").read_text()
    assert " ".join(text.split()).endswith("interrupted. Nothing is lost: run the same command again to resume.")
    assert "Traceback" not in text and "error: " not in text and text.count("interrupted") == 1
    assert not out.exists()

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["hskd", *arguments])
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert not stop.value.code

    assert list((tmp_path / "out.partial" / "training").iterdir()), "there is something to go on from"
    run(*command)
    run(*words(tmp_path / "body", data_folder, tmp_path / "work", tmp_path / "undisturbed"))
    expected = (tmp_path / "undisturbed" / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        ("--out=~/x", "--out=HOME/x"),
        ("data=~/x", "data=HOME/x"),
        ("--set=task.data=~/x", "--set=task.data=HOME/x"),
        ("a~/x", "a~/x"),
        ("--spec=1l_3t_0.1w,length=left", "--spec=1l_3t_0.1w,length=left"),
        ("s3://bucket/~x", "s3://bucket/~x"),
    ],
)
def test_home(word: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert app._with_home(word) == meant.replace("HOME", "/home/me")


def test_nobodys_home() -> None:
    with pytest.raises(HskdError, match="~nobody-of-that-name/x: there is no home folder of that user"):
        with_home("~nobody-of-that-name/x")
