"""The command line, run in the test's process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hskd.cli.app import main

Cli = Callable[..., tuple[int, str, str]]


def command_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, command: str) -> Cli:
    """Run ``hskd COMMAND`` with arguments in ``folder``, and return exit code, output and messages."""
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", command, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call
