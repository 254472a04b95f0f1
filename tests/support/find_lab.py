"""Searches on the tiny grid of :mod:`support.grid_lab`, and a script that the kill tests kill."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hskd.analysis.minimum import FindResult, find
from hskd.grid.executors import Executor
from hskd.minimum.search import SearchSettings
from hskd.results import ResultsFolder
from hskd.trials.config import Machine

SPACE = """\
sweeps: [{n: [1, 2, all], k: [1, 2, all], w: [0.25, all]}]
"""
BUDGET = 40
GRID = """\
name: tiny
task: {{name: custom, data: "{data}", text_columns: [sentence], label_column: mood}}
teacher: {{model: "{model}", settings: {{epochs: 10, lr: 3.0e-3, batch_size: 16}}}}
students: [{{layers: 2, heads: 2, ffn: 24, importance_examples: 32}}]
training: {{hsk_epochs: 1, prediction_epochs: 8, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
none_lr: 1.0e-6
"""
"""None learns nothing, so that there is a gap."""


def search(grid: Path, space: Path, root: Path, executor: Executor | None = None, **more: Any) -> FindResult:
    """Run a search in ``root``, or resume it."""
    return find(
        str(grid),
        tolerance=30.0,
        budget_trials=BUDGET,
        space=str(space),
        out=root / "out",
        work=root / "work",
        machine=replace(Machine.here(1, "fp32"), build_threads=1),
        executor=executor,
        settings=SearchSettings(noise=0.1),
        **more,
    )


def kill_and_resume(grid: Path, space: Path, root: Path, after: list[int]) -> list[bool]:
    """Kill a search after given numbers of trials, and finally let it finish."""
    killed = []
    for count in [*after, None]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                search(grid, space, root)
                code = 0
            finally:
                os._exit(code)
        status = None
        while count is not None and status is None and len(ResultsFolder(root / "out").done()) < count:
            time.sleep(0.002)
            ended, code = os.waitpid(child, os.WNOHANG)
            status = code if ended else None
        if status is None:
            if count is not None:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        killed.append(os.WIFSIGNALED(status))
    return killed


if __name__ == "__main__":
    os.cpu_count = lambda: 1  # type: ignore[assignment]
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every end
    places = [Path(text) for text in sys.argv[1:4]]
    print(json.dumps(kill_and_resume(*places, [int(text) for text in sys.argv[4:]])))
