"""Running a grid: what is done stays done, what fails stops nothing else, the table is rebuilt at the end."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from hskd.artifacts import read_json, write_json
from hskd.errors import HskdError, MismatchError
from hskd.grid.config import TrialConfig
from hskd.grid.executors import Executor
from hskd.grid.publish import error_path, result_path, write_error
from hskd.grid.spec import GridSpec
from hskd.grid.study import Study
from hskd.results import GRID_FILE, write_table
from hskd.watch import Watcher


@dataclass
class Progress:
    """The trials of a grid by what became of them."""

    done: list[TrialConfig] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    pending: list[TrialConfig] = field(default_factory=list)

    @classmethod
    def of(cls, trials: Sequence[TrialConfig], out: Path) -> Progress:
        """Look into the output folder; a trial that failed before is pending again."""
        progress = cls()
        for config in trials:
            (progress.done if result_path(out, config).is_file() else progress.pending).append(config)
        progress.failed = {
            config.id: read_json(error_path(out, config))["error"]
            for config in progress.pending
            if error_path(out, config).is_file()
        }
        return progress


class GridWatcher(Watcher, Protocol):
    """Also hears of whole trials."""

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """A trial ended, and ``running`` go on (0 where that is not known); ``news`` says how it ended."""


def run_grid(
    grid: GridSpec,
    trials: Sequence[TrialConfig],
    out: Path,
    work: Path,
    executor: Executor,
    watcher: GridWatcher,
    only: Container[str] | None = None,
) -> tuple[pd.DataFrame, Progress]:
    """Run the trials of a grid that are not done, and rebuild its table.

    Args:
        grid: the grid, recorded in ``out``.
        trials: all its trials: what they share is the union of what they ask for, whichever of them run now.
        out: folder of results; a trial whose result is there is not run.
        work: folder of artifacts, shared by all grids.
        executor: where trials run.
        watcher: is told the progress.
        only: ids of the trials to run [default: all that are not done].

    Returns:
        The table, and what became of the trials.

    Raises:
        HskdError: no trial could be run.
        MismatchError: ``out`` holds another grid.
    """
    _claim(out, grid, trials)
    progress = Progress.of(trials, out)
    watcher.trials(len(progress.done), 0, len(trials), f"{len(progress.done)} of {len(trials)} trials are done already")
    progress.failed = {}
    waiting = [config for config in progress.pending if only is None or config.id in only]
    if waiting:
        study = Study(trials, work, watcher)
        study.build()
        left = len(waiting)
        for config, result, error in executor.run(study, waiting, out):
            if result is None:
                progress.failed[config.id] = error or "failed"
                if not error_path(out, config).is_file():  # its process died before it could
                    write_error(out, config, error or "failed", "")
                news = f"{config.title}: failed: {error}"
            else:
                progress.done.append(config)
                split = "test" if "test" in result["metrics"] else "dev"
                news = f"{config.title}: {100 * result['metrics'][split]['score']:.1f} % on {split}"
            left -= 1
            watcher.trials(len(progress.done), len(progress.failed), len(trials), news, min(executor.slots, left))
        progress.pending = [config for config in trials if not result_path(out, config).is_file()]
    if not progress.done:
        raise HskdError(f"no trial could be run; the first error: {next(iter(progress.failed.values()), 'unknown')}")
    return write_table(out), progress


def _claim(out: Path, grid: GridSpec, trials: Sequence[TrialConfig]) -> None:
    path = out / GRID_FILE
    content: dict[str, Any] = grid.model_dump(mode="json")
    if path.is_file() and read_json(path).get("name") != grid.name:
        raise MismatchError(
            f"{out}: holds the results of another grid ({read_json(path).get('name')}); choose another --out."
        )
    write_json(path, content | {"trials": [config.id for config in trials]})
