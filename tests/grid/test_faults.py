"""Faults while a grid runs (interrupt, out of memory, full disk, deleted folders) lose no results."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from grid.conftest import Cli, Write
from support.grid_lab import (
    OPTIONS,
    TRIALS,
    Ran,
    Recorder,
    finished,
    recorded,
    run,
    same_predictions,
    same_scores,
    trials_of,
)

from hskd.errors import HskdError
from hskd.grid.record import error_path
from hskd.grid.run import GridStatus
from hskd.results import ResultsFolder, pack, unpack


@pytest.fixture
def root(undisturbed: Ran, tmp_path: Path) -> Path:
    """A run of the whole grid, for tests that disturb it."""
    return shutil.copytree(undisturbed.root, tmp_path / "root")


def without_trials(root: Path, count: int) -> list[str]:
    """Delete the last ``count`` trials, as if they had not run, and return their ids."""
    unpack(root / "out")
    lost = [file.stem for file in ResultsFolder(root / "out").result_files()[-count:]]
    for trial in lost:
        (root / "out" / "trials" / f"{trial}.json").unlink()
        (root / "out" / "trials" / f"{trial}.npz").unlink()
        [made] = [file for file in finished(root) if trial in file.read_text()]
        shutil.rmtree(made.parent)
    pack(root / "out")
    return lost


class At(Recorder):
    """Runs a function when a trial begins for the ``n``-th time."""

    def __init__(self, n: int, act: object) -> None:
        super().__init__()
        self._left, self._act = n, act

    def begin(self, title: str, total: int) -> None:
        super().begin(title, total)
        if "seed" in title:
            self._left -= 1
            if self._left == 0:
                self._act()  # type: ignore[operator]


def test_an_interrupted_grid_goes_on(undisturbed: Ran, root: Path, grid_file: Path) -> None:
    without_trials(root, 3)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(grid_file, root, told=At(2, interrupt))
    finally:
        signal.signal(signal.SIGINT, before)
    assert TRIALS - 3 <= len(ResultsFolder(root / "out").done()) < TRIALS
    again = run(grid_file, root)
    same_scores(again.table, undisturbed.table)
    same_predictions(again.out, undisturbed.out)


def test_the_start_says_which_trials_are_done(root: Path, grid_file: Path) -> None:
    lost = without_trials(root, 1)
    [config] = [config for config in trials_of(grid_file)[1] if config.id in lost]
    status = GridStatus.of(trials_of(grid_file)[1], root / "out")
    said = status.summary()
    assert said.startswith(f"{TRIALS - 1} of {TRIALS} trials are done already: none (seed")
    other = 1 - config.settings.seed
    assert f"{config.point} (seed {other})" in said and said.count("(seeds 0, 1)") == 5
    assert run(grid_file, root).told.news[0][3] == said


GREEDY = '''
from typing import Literal
import numpy as np
from hskd.selectors import LENGTH, LengthSelector

@LENGTH.register
class Greedy(LengthSelector):
    """Asks for a petabyte."""
    selector: Literal["greedy"] = "greedy"

    def scores(self, view):
        return np.ones(2**50)
'''


def test_a_trial_that_runs_out_of_memory_stops_no_other(
    undisturbed: Ran, root: Path, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "greedy_selector.py").write_text(GREEDY)
    monkeypatch.chdir(tmp_path)
    file = write("plugins: [greedy_selector]", 'include: ["1l_1t_0.25w,length=greedy"]', "seeds: 1")
    try:
        ran = run(file, root)
    finally:
        from hskd.selectors import LENGTH

        LENGTH.remove("greedy")
    [(trial, error)] = ran.progress.failed.items()
    assert error.startswith(("MemoryError", "_ArrayMemoryError"))
    assert len(ran.table) == TRIALS // 2 and trial not in set(ran.table["trial"])
    assert list(ResultsFolder(ran.out).trials.glob("*.error.json")) == [ran.out / "trials" / f"{trial}.error.json"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit files to ``size`` bytes, so that a write fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [100, 9000])
def test_a_full_disk_at_any_write_of_results(size: int, undisturbed: Ran, root: Path, grid_file: Path) -> None:
    out = root / "out"
    unpack(out)
    expected = recorded(out)
    with full_disk(size), pytest.raises(HskdError, match=r"cannot be written \(.*File too large\)\. Nothing was left"):
        pack(out)
    assert recorded(out) == expected
    assert not list(out.glob(".*.parquet*")) and not list(out.glob(".predictions*"))
    trials = {path.name: path.read_bytes() for path in (out / "trials").iterdir()}
    shutil.rmtree(out)
    with full_disk(size), pytest.raises(HskdError, match="cannot be written"):
        run(grid_file, root)
    again = run(grid_file, root)
    same_scores(again.table, undisturbed.table)
    unpack(out)
    assert {path.name for path in (out / "trials").iterdir()} == set(trials)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small disk")
def test_a_small_disk_and_one_that_cannot_be_written(root: Path, grid_file: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount here")
    try:
        (root / "full").symlink_to(disk)
        grid, trials = trials_of(grid_file)
        from hskd.grid.executors import InProcess
        from hskd.grid.run import run_grid

        with pytest.raises(HskdError, match="No space left on device"):
            run_grid(grid, trials, disk / "out", root / "work", InProcess(), Recorder())
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        table, status = run_grid(grid, trials, disk / "out", root / "work", InProcess(), Recorder())
        assert len(table) == TRIALS and not status.failed
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        told = Recorder()
        pd.testing.assert_frame_equal(run_grid(grid, trials, disk / "out", root / "work", InProcess(), told)[0], table)
        assert told.news[0][3] == f"{TRIALS} of {TRIALS} trials are done already"
        with pytest.raises(HskdError, match="Read-only file system"):
            run_grid(grid, trials, disk / "other", root / "work", InProcess(), Recorder())
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_folder_that_vanishes_is_one_line(undisturbed: Ran, root: Path, grid_file: Path) -> None:
    without_trials(root, 2)
    ran = run(grid_file, root, told=At(1, lambda: shutil.rmtree(root / "out")))
    assert len(ResultsFolder(root / "out").done()) == 2 and not ran.progress.failed
    same_scores(run(grid_file, root).table, undisturbed.table)


def test_a_file_where_a_folder_should_be_is_one_line(
    undisturbed: Ran, grid_file: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    code, _, err = cli("run", grid_file, "--out", tmp_path / "out", "--work", undisturbed.work, *OPTIONS)
    assert code == 2 and len(err.strip().splitlines()) == 1 and str(tmp_path / "out") in err


def test_damaged_files_of_errors_are_no_obstacle(root: Path, grid_file: Path) -> None:
    [lost] = without_trials(root, 1)
    [config] = [config for config in trials_of(grid_file)[1] if config.id == lost]
    path = error_path(root / "out", config)
    path.parent.mkdir(exist_ok=True)
    for text in ("", "[]", "{}", '{"error": ', "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        status = GridStatus.of(trials_of(grid_file)[1], root / "out")
        assert status.failed == {lost: f"{path.name} cannot be read"}


def test_the_words_of_a_grid_file_are_kept(undisturbed: Ran, root: Path, write: Write, grid_file: Path) -> None:
    file = root / "out" / "grid.yaml"
    recorded_text = file.read_text()
    mine = "# why we run it\n" + grid_file.read_text()
    file.write_text(mine)
    run(grid_file, root)
    assert file.read_text() == mine, "it says the same"
    run(write("seeds: 1"), root)
    assert file.read_text() != mine
    assert (root / "out" / "grid-1.yaml").read_text() == mine
    run(grid_file, root)
    assert file.read_text() == recorded_text
    assert sorted(path.name for path in (root / "out").glob("*.yaml")) == ["grid-1.yaml", "grid.yaml"]
