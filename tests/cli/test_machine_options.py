"""Options that cannot work on this machine end a command before it reads data or loads a model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from hskd.cli.app import main
from hskd.errors import HskdError
from hskd.runtime import RunOptions, resolve_device, resolve_dtype

DEVICES = "expected auto, cpu, cuda, cuda:0 (the first GPU) or mps."
COMMANDS = {
    "teacher": ["teacher", "--model", "no-model", "--out", "o"],
    "student": ["student", "--teacher", "there", "--out", "o"],
    "extract": ["store", "extract", "--teacher", "there", "--out", "o"],
    "distill": ["distill", "--student", "there", "--teacher", "there", "--out", "o"],
    "general": ["general", "--model", "no-model", "--out", "o"],
}
REPORTING = ("teacher", "distill", "general")


def refused(
    command: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """Return the message of a command, which is one line with exit code 2. Data and models do not exist."""
    data = [] if command == "general" else ["--task", "custom", "--data", "no-data"]
    monkeypatch.setattr(sys, "argv", ["hskd", *COMMANDS[command], *data, *options])
    Path("there").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as stop:
        main()
    _, err = capfd.readouterr()
    assert stop.value.code == 2 and err.count("\n") == 1, err
    assert sorted(path.name for path in Path().iterdir()) == ["there"]
    return err.removeprefix("error: ").strip()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hskd.cli import progress

    monkeypatch.chdir(tmp_path)
    progress.console.cache_clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_devices(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for device in ("gpu", "cuda:x", "cuda:-1", "CPU", ""):
        assert refused(command, ["--device", device], monkeypatch, capfd) == f"--device {device}: {DEVICES}"
    said = refused(command, ["--device", "cuda:99"], monkeypatch, capfd)
    assert said.startswith(
        "device cuda:99: PyTorch sees " if torch.backends.cuda.is_built() else "device cuda:99: this PyTorch ("
    )


@pytest.mark.parametrize("command", REPORTING)
def test_reporters(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(command, ["--report-to", "tensrboard"], monkeypatch, capfd)
    assert said.startswith("--report-to tensrboard: unknown; expected none, all or one of ") and "tensorboard" in said
    missing = next(name for name in ("neptune", "wandb", "mlflow") if importlib.util.find_spec(name) is None)
    said = refused(command, ["--report-to", missing], monkeypatch, capfd)
    assert said.startswith(f"--report-to {missing}: its package is not installed; install it, or use one of none, ")


def test_from_python() -> None:
    with pytest.raises(HskdError, match=r"device 'gpu': expected auto, cpu"):
        resolve_device("gpu")
    with pytest.raises(HskdError, match=r"--report-to tensrboard: unknown"):
        RunOptions("fp32", torch.device("cpu"), report_to="tensrboard")
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.backends.mps.is_available():  # a device that does not work
        with pytest.raises(HskdError, match=r"--dtype bf16: mps cannot compute in it .*; use fp32"):
            resolve_dtype("bf16", torch.device("mps"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_that_there_are() -> None:
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_dtype("bf16", torch.device("cuda")) == "bf16"
