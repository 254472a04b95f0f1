"""Running a grid: what is done stays done, what fails stops nothing else, all is packed at the end."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd

from hskd.errors import HskdError
from hskd.grid.executors import Executor
from hskd.grid.record import error_path, write_error, write_grid
from hskd.grid.spec import GridSpec
from hskd.heads.metrics import in_unit
from hskd.io import read_json
from hskd.progress import Progress
from hskd.results import ResultsFolder, load, pack
from hskd.trials.config import TrialConfig
from hskd.trials.workspace import Workspace


@dataclass
class GridStatus:
    """The trials of a grid by what became of them."""

    done: list[TrialConfig] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    pending: list[TrialConfig] = field(default_factory=list)

    @classmethod
    def of(cls, trials: Sequence[TrialConfig], out: Path) -> GridStatus:
        """Look into the output folder; a trial that failed before is pending again."""
        status = cls()
        done = ResultsFolder(out).done()
        for config in trials:
            (status.done if config.id in done else status.pending).append(config)
        status.failed = {
            config.id: read_json(error_path(out, config))["error"]
            for config in status.pending
            if error_path(out, config).is_file()
        }
        return status


class GridProgress(Progress, Protocol):
    """Also hears of whole trials."""

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """A trial ended, and ``running`` go on (0 where that is not known); ``news`` says how it ended."""


def run_grid(
    grid: GridSpec,
    trials: Sequence[TrialConfig],
    out: Path,
    work: Path,
    executor: Executor,
    progress: GridProgress,
    only: Container[str] | None = None,
) -> tuple[pd.DataFrame, GridStatus]:
    """Run the trials of a grid that are not done, and fold all results into its table.

    Args:
        grid: the grid, recorded in ``out``.
        trials: all its trials: what they share is the union of what they ask for, whichever of them run now.
        out: folder of results; a trial whose result is there is not run.
        work: folder of artifacts, shared by all grids.
        executor: where trials run.
        progress: is told the status.
        only: ids of the trials to run [default: all that are not done].

    Returns:
        The table, and what became of the trials.

    Raises:
        HskdError: no trial could be run.
        MismatchError: ``out`` holds another grid.
    """
    write_grid(out, grid, trials)
    status = GridStatus.of(trials, out)
    progress.trials(len(status.done), 0, len(trials), f"{len(status.done)} of {len(trials)} trials are done already")
    status.failed = {}
    waiting = [config for config in status.pending if only is None or config.id in only]
    if waiting:
        workspace = Workspace(work, trials)
        workspace.ensure_shared(progress)
        left = len(waiting)
        for config, result, error in executor.run(workspace, waiting, out, progress):
            if result is None:
                status.failed[config.id] = error or "failed"
                if not error_path(out, config).is_file():  # its process died before it could
                    write_error(out, config, error or "failed", "")
                news = f"{config.title}: failed: {error}"
            else:
                status.done.append(config)
                split = result.scored_split
                news = f"{config.title}: {in_unit(result.metrics[split]['score'], result.score_unit)} on {split}"
            left -= 1
            progress.trials(len(status.done), len(status.failed), len(trials), news, min(executor.slots, left))
        done = ResultsFolder(out).done()
        status.pending = [config for config in trials if config.id not in done]
    if not status.done:
        raise HskdError(f"no trial could be run; the first error: {next(iter(status.failed.values()), 'unknown')}")
    pack(out)
    return load(out), status
