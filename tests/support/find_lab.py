"""Searches on the tiny grid of :mod:`support.grid_lab`, and a script that the kill tests kill."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hskd.analysis.minimum import FindResult, find
from hskd.grid.executors import Executor
from hskd.minimum.search import SearchSettings

SPACE = """\
sweeps: [{n: [1, 2, all], k: [1, 2, all], w: [0.25, all]}]
"""
BUDGET = 44


def search(grid: Path, space: Path, root: Path, executor: Executor | None = None, **more: Any) -> FindResult:
    """A search in ``root``, or the rest of one."""
    from support.grid_lab import machine

    return find(
        str(grid),
        tolerance=5.0,
        budget_trials=BUDGET,
        space=str(space),
        out=root / "out",
        work=root / "work",
        machine=machine(),
        executor=executor,
        settings=SearchSettings(noise=0.05),
        **more,
    )


if __name__ == "__main__":
    os.cpu_count = lambda: 1  # type: ignore[assignment]
    import torch

    torch.set_num_threads(1)
    search(*map(Path, sys.argv[1:4]))
