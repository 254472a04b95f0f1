"""Progress without a terminal, and the output of libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = """
from hskd.cli import progress
progress.LINE_SECONDS = 0.0
with progress.display() as display:
    display.begin("teacher: fine-tuning", 3)
    for _ in range(3):
        display.advance()
"""

RUN = "import sys; from hskd.cli.app import main; sys.argv = ['hskd', *sys.argv[1:]]; main()"


def test_without_a_terminal_progress_is_lines() -> None:
    done = subprocess.run([sys.executable, "-c", LINES], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == [
        "teacher: fine-tuning: 3 steps",
        "teacher: fine-tuning: 1/3 steps, 0:00",
        "teacher: fine-tuning: 2/3 steps, 0:00",
        "teacher: fine-tuning: 3/3 steps, 0:00",
    ]


@pytest.mark.timeout(600)
def test_no_progress_bar_of_a_library_leaks(teacher_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """This command saves a data set, loads a model's weights and prints a result. Each has its own progress bar."""
    task = ["--task", "custom", "--data", str(data_folder), "--text-columns", "sentence", "--label-column", "mood"]
    places = ["--out", str(tmp_path / "store"), "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "store", "extract", *task, "--teacher", str(teacher_folder), *places],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"store: {tmp_path / 'store'}\n"
    said = "task custom: classification, 2 classes: negative, positive (column 'mood' of train.csv has texts)"
    assert done.stderr.splitlines().count(said) == 1
    ours = (
        said,
        "warning: task custom: ",
        "extract: 64 steps",
        "this store needs ",
        f"{tmp_path / 'store'}: 64 examples",
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["kind"] == "superset"
