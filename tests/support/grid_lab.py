"""A grid of 12 real trials, each a fraction of a second, and functions to run and compare it.

Run as a script, this is the process that the kill tests kill.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch

from hskd.grid.executors import Executor, InProcess
from hskd.grid.run import GridStatus, run_grid
from hskd.grid.spec import GridSpec, load_grid
from hskd.progress import Silent
from hskd.results import ResultsFolder
from hskd.trials.config import Machine, TrialConfig

TRIALS = 12
GRID = """\
name: {name}
task: {{name: custom, data: "{data}", text_columns: [sentence], label_column: mood}}
teacher: {{model: "{model}", settings: {{epochs: 1, lr: 3.0e-3, batch_size: 16}}}}
students: [{{layers: 2, heads: 2, ffn: 24, importance_examples: 32}}]
training: {{hsk_epochs: 2, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
seeds: 2
sweeps: [{{n: [1, 2], k: [1, 3], w: [0.25]}}]
"""
"""Two seeds of none, full and four specs."""
OPTIONS = ["--dtype", "fp32", "--threads", "1"]
CLI = "import os; os.cpu_count = lambda: 1; from hskd.cli.app import main; main()"
"""The command line on a machine of one core, because the number of cores that train the teacher changes its bits."""
UNSTABLE = ["hsk_seconds", "prediction_seconds", "examples_per_second", "peak_memory_bytes", "git_commit"]
"""Columns in which the same trial may differ: its costs, and the commit."""


def machine() -> Machine:
    """Return the machine that ``OPTIONS`` and ``CLI`` describe."""
    return replace(Machine.here(1, "fp32"), build_threads=1)


class Recorder(Silent):
    """Records all messages."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.said: list[str] = []
        self.news: list[tuple[int, int, int, str]] = []

    def begin(self, title: str, total: int) -> None:
        self.titles.append(title)

    def say(self, message: str) -> None:
        self.said.append(message)

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        self.news.append((done, failed, total, news))


@dataclass
class Ran:
    """The results of a grid."""

    root: Path
    table: pd.DataFrame
    progress: GridStatus
    told: Recorder
    forwarded: list[int] = field(default_factory=list)
    """Ids of the examples that the teacher was run on for a store, batch by batch."""
    batches: dict[str, list[list[int]]] = field(default_factory=dict)
    """Example ids of each training batch of a trial over both stages, by the trial's folder."""

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def work(self) -> Path:
        return self.root / "work"


def trials_of(file: Path) -> tuple[GridSpec, list[TrialConfig]]:
    grid = load_grid(str(file))
    return grid, grid.trials(machine())


def run(
    file: Path,
    root: Path,
    executor: Executor | None = None,
    told: Recorder | None = None,
    only: Container[str] | None = None,
) -> Ran:
    """Run a grid in ``root``, or resume it."""
    grid, trials = trials_of(file)
    told = told or Recorder()
    table, progress = run_grid(grid, trials, root / "out", root / "work", executor or InProcess(), told, only)
    return Ran(root, table, progress, told)


def same_scores(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that every column except time and memory is equal, bit for bit."""
    pd.testing.assert_frame_equal(found.drop(columns=UNSTABLE), expected.drop(columns=UNSTABLE), check_exact=True)


def same_predictions(found: Path, expected: Path) -> None:
    """Check that the logits of every trial are equal, bit for bit."""
    for split in ("dev", "test"):
        mine, theirs = outputs(found, split), outputs(expected, split)
        assert mine and mine.keys() == theirs.keys()
        for trial, logits in mine.items():
            np.testing.assert_array_equal(logits, theirs[trial])


def outputs(out: Path, split: str) -> dict[str, np.ndarray]:
    """Return the logits of every trial on a split, by id."""
    folder = ResultsFolder(out)
    return folder.outputs(sorted(folder.done()), split)


def recorded(out: Path) -> list[dict[str, Any]]:
    """Return the result of every trial, sorted by id."""
    return [result.as_json() for result in ResultsFolder(out).results().values()]


def finished(root: Path) -> list[Path]:
    """Return the files that mark trials as finished."""
    return sorted((root / "work" / "trials").glob("*/result.json"))


def events(root: Path) -> int:
    """Return the progress of a grid: number of artifacts, finished trials and their results."""
    artifacts = [path for path in (root / "work").glob("*/*") if path.is_dir() and path.suffix != ".partial"]
    return len(artifacts) + len(finished(root)) + len(ResultsFolder(root / "out").done())


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each of :func:`finished`."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished(root)}


def command(file: Path, root: Path, *more: str) -> list[str]:
    """Return the command ``hskd grid run`` with its options."""
    return ["grid", "run", str(file), "--out", str(root / "out"), "--work", str(root / "work"), *OPTIONS, *more]


def _start(file: Path, root: Path) -> int:
    """Start ``hskd grid run`` in a fork of this process, because importing the libraries takes longer than the grid."""
    child = os.fork()
    if child == 0:
        from hskd.cli.app import main

        torch.set_num_threads(1)
        os.cpu_count = lambda: 1  # type: ignore[assignment]
        sys.argv = ["hskd", *command(file, root)]
        quiet = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code: Any = 1
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            os._exit(code)
    return child


def kill_and_resume(file: Path, root: Path, kills: int, seed: int, total: int) -> dict[str, Any]:
    """Kill a grid at random moments, resume it each time, and finally let it finish.

    A moment is a number of events since the last kill plus a random time. A whole run has ``total`` events.
    """
    rng = np.random.default_rng(seed)
    alive_until_killed, seen = [], []
    for left in range(kills, 0, -1):
        before = events(root)
        wait_for = before + int(rng.integers(0, max(1, (total - before) // left) + 1))
        child = _start(file, root)
        give_up = time.monotonic() + 300  # a busy machine is slow, which is not a failure
        while events(root) < wait_for and time.monotonic() < give_up:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.15)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        alive_until_killed.append(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        seen.append({"events": events(root), "stamps": stamps(root)})
    _, status = os.waitpid(_start(file, root), 0)
    seen.append({"events": events(root), "stamps": stamps(root)})
    return {"killed": alive_until_killed, "exit": os.waitstatus_to_exitcode(status), "seen": seen}


if __name__ == "__main__":
    import hskd.cli.app  # noqa: F401  before the forks

    gc.collect()
    gc.freeze()  # as in the tests: Trainer collects garbage at every end
    _, file, root, kills, seed, total = sys.argv
    Path(root).mkdir(parents=True, exist_ok=True)
    print(json.dumps(kill_and_resume(Path(file), Path(root), int(kills), int(seed), int(total))))
