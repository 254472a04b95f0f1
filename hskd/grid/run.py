"""Run a grid: finished trials are kept, a failed trial stops no other, and all results are packed at the end."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd

from hskd.errors import HskdError
from hskd.grid.executors import Executor
from hskd.grid.record import ensure_error, read_error, replace_labels, write_grid
from hskd.grid.spec import GridSpec
from hskd.heads.metrics import in_unit
from hskd.progress import Progress
from hskd.results import LABELS_FILE, ResultsFolder, load, pack
from hskd.trials.config import TrialConfig
from hskd.trials.workspace import Workspace

NAMED = 8
"""The most arms and specs that a status line names."""


@dataclass
class GridStatus:
    """The trials of a grid by status."""

    done: list[TrialConfig] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    pending: list[TrialConfig] = field(default_factory=list)

    @classmethod
    def of(cls, trials: Sequence[TrialConfig], out: Path) -> GridStatus:
        """Read the status from the output folder. A trial that failed before is pending, and listed as failed too."""
        status = cls()
        done = ResultsFolder(out).done()
        for config in trials:
            (status.done if config.id in done else status.pending).append(config)
        errors = {config.id: read_error(out, config) for config in status.pending}
        status.failed = {trial: error for trial, error in errors.items() if error is not None}
        return status

    def summary(self) -> str:
        """Return how many trials are done, and which: the first ``NAMED`` arms and specs, with their seeds."""
        seeds: dict[str, set[int]] = {}
        for config in self.done:
            seeds.setdefault(config.point, set()).add(config.settings.seed)
        named = [f"{point} (seed{'s' * (len(of) > 1)} {_ranges(of)})" for point, of in seeds.items()]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        which = f": {'; '.join(named[:NAMED])}{more}" if named and self.pending else ""
        return f"{len(self.done)} of {len(self.done) + len(self.pending)} trials are done already{which}"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers in ascending order, with runs of three or more as ``0 to 4``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(number) for number in run] for run in runs]
    return ", ".join(text for parts in texts for text in parts)


class GridProgress(Progress, Protocol):
    """Progress reports that also cover whole trials."""

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """Report that a trial ended and ``running`` others go on (0 if unknown); ``news`` says how it ended."""


def run_grid(
    grid: GridSpec,
    trials: Sequence[TrialConfig],
    out: Path,
    work: Path,
    executor: Executor,
    progress: GridProgress,
    only: Container[str] | None = None,
) -> tuple[pd.DataFrame, GridStatus]:
    """Run the pending trials of a grid, and pack all results into its table.

    Args:
        grid: the grid, which is recorded in ``out``.
        trials: all its trials. Shared artifacts hold what all of them need, even if only some run now.
        out: folder of results; a trial with a result there is not run again.
        work: folder of artifacts, shared by all grids.
        executor: runs the trials.
        progress: receives the status.
        only: ids of the trials to run [default: all pending ones].

    Returns:
        The table, and the status of the trials.

    Raises:
        HskdError: no trial could be run.
        MismatchError: ``out`` holds another grid.
    """
    write_grid(out, grid, trials)
    status = GridStatus.of(trials, out)
    workspace = Workspace(work, trials, store_on_device=executor.store_on_device)
    stale = _stale(status, workspace, out, progress)
    progress.trials(len(status.done), 0, len(trials), status.summary())
    status.failed = {}
    waiting = [config for config in status.pending if only is None or config.id in only]
    if waiting:
        workspace.ensure_shared(progress)
        left = len(waiting)
        for config, result, error in executor.run(workspace, waiting, out, progress):
            if result is None:
                status.failed[config.id] = error or "failed"
                ensure_error(out, config, status.failed[config.id])
                news = f"{config.title}: failed: {error}"
            else:
                status.done.append(config)
                stale.discard(config.id)
                split = result.scored_split
                news = f"{config.title}: {in_unit(result.metrics[split]['score'], result.score_unit)} on {split}"
            left -= 1
            progress.trials(len(status.done), len(status.failed), len(trials), news, min(executor.slots, left))
        done = ResultsFolder(out).done() - stale
        status.pending = [config for config in trials if config.id not in done]
    if not status.done:
        raise HskdError(f"no trial could be run; the first error: {next(iter(status.failed.values()), 'unknown')}")
    pack(out)
    return load(out), status


def _stale(status: GridStatus, workspace: Workspace, out: Path, progress: Progress) -> set[str]:
    """Make trials pending again if their inputs have changed since their result, and say which and why.

    Returns:
        The ids of these trials.
    """
    changes = changed_contents(status.done, workspace, out, progress)
    if changes is None:
        return set()
    stale = {trial for trial, names in changes.items() if names}
    for config in status.done:
        if config.id in stale:
            progress.say(f"{config.title}: is run again, because these changed: {', '.join(changes[config.id])}")
    status.pending = [*status.pending, *(config for config in status.done if config.id in stale)]
    status.done = [config for config in status.done if config.id not in stale]
    if all(config.id in changes for config in status.done):
        workspace.ensure_labels(progress)
        replace_labels(out, workspace.splits)
    return stale


def changed_contents(
    done: Sequence[TrialConfig], workspace: Workspace, out: Path, progress: Progress
) -> dict[str, list[str]] | None:
    """Return the inputs of each finished trial that have changed since. Nothing is made or trained for this.

    Args:
        done: trials that have a result in ``out``.
        workspace: reads their data and models.
        out: folder of results.
        progress: is told if data or models cannot be read.

    Returns:
        The names of the changed inputs, by id of each trial whose result recorded its inputs. None if no comparison is
        possible: no result recorded any inputs, or data or models cannot be read.
    """
    results = ResultsFolder(out).results() if done else {}
    recorded = {config.id: results[config.id].inputs for config in done if config.id in results}
    if done and not any(recorded.values()):
        return None  # Results of versions that recorded no inputs are accepted as they are.
    if not done and not (out / LABELS_FILE).is_file():
        return None  # Without results, data and models need not be read.
    try:
        changes = {config.id: workspace.inputs(config).changes(recorded.get(config.id)) for config in done}
    except HskdError as error:
        progress.say(f"finished trials cannot be compared with the current data and models: {error}")
        return None
    return {trial: names for trial, names in changes.items() if recorded.get(trial) is not None}
