"""After repeated kill -9, a grid loses nothing, repeats nothing, and its scores do not change by a bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import grid_lab as lab
from support.grid_lab import CLI, TRIALS, Ran, command, events, finished, run, same_predictions, same_scores, stamps

from hskd import results

KILLS = 10
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


@pytest.mark.timeout(600)
def test_a_grid_killed_ten_times_ends_as_if_undisturbed(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "killed"
    script = [sys.executable, lab.__file__, grid_file, root, str(KILLS), "3", str(events(undisturbed.root))]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False, env=os.environ | ALONE)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] == [True] * KILLS, "each was killed before its end"
    assert report["exit"] == 0, (root / "output.txt").read_text()

    progress = [seen["events"] for seen in report["seen"]]
    assert progress == sorted(progress), "what was made stays"
    assert progress[0] < progress[-2], "the kills were spread over the life of the grid"
    final = stamps(root)
    assert len(final) == TRIALS
    for seen in report["seen"]:
        for path, stamp in seen["stamps"].items():
            assert final[path] == tuple(stamp), f"{path} was written twice"

    table = results.load(root / "out")
    same_scores(table, undisturbed.table)
    same_predictions(root / "out", undisturbed.out)
    assert not list((root / "out" / "trials").glob("*.error.json"))
    assert run(grid_file, root).told.titles == [], "there is nothing left to do"


@pytest.mark.timeout(600)
def test_workers_end_with_their_parent_and_the_grid_goes_on(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "orphans"
    start = [sys.executable, "-c", CLI, *command(grid_file, root, "--workers", "2")]
    parent = subprocess.Popen(
        start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | ALONE, cwd=tmp_path
    )
    give_up = time.monotonic() + 300
    while not finished(root):
        assert parent.poll() is None, "ended before the first trial"
        assert time.monotonic() < give_up
        time.sleep(0.01)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2
    parent.kill()
    parent.wait()
    _, orphans = psutil.wait_procs(family, timeout=60)
    assert not orphans
    before = stamps(root)
    assert 0 < len(before) < TRIALS

    again = run(grid_file, root)
    after = stamps(root)
    assert {path: after[path] for path in before} == before
    same_scores(again.table, undisturbed.table)
    same_predictions(root / "out", undisturbed.out)
