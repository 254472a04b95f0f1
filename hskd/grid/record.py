"""Files in a grid's output folder: the grid itself, and the results, outputs and labels of its trials."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from pydantic import ValidationError

from hskd.errors import HskdError, MismatchError
from hskd.grid.spec import GridSpec
from hskd.io import atomic_path, read_json, write_json, write_text
from hskd.progress import Prefixed, Progress
from hskd.results.folder import GRID_FILE, LABELS_FILE, TRIALS, ResultsFolder, read_outputs
from hskd.runtime import release_memory
from hskd.trials.config import TrialConfig
from hskd.trials.execute import execute
from hskd.trials.result import PREDICTIONS_FILE, TrialResult
from hskd.trials.workspace import Workspace


class Labelled(Protocol):
    """Anything with labels: a split, tokenised or not."""

    @property
    def labels(self) -> Any:
        """``N`` label indices or targets; None if unknown."""


def result_path(out: Path, config: TrialConfig) -> Path:
    """Return the path of a finished trial's result."""
    return out / TRIALS / f"{config.id}.json"


def error_path(out: Path, config: TrialConfig) -> Path:
    """Return the path of a failed trial's traceback."""
    return out / TRIALS / f"{config.id}.error.json"


def write_grid(out: Path, grid: GridSpec, trials: Sequence[TrialConfig]) -> None:
    """Record a grid that is about to run: ``grid.yaml``, which ``hskd grid run`` can read, and the ids of its trials.

    An existing ``grid.yaml`` with the same content is kept, with its comments. A hand-written one with other content is
    saved as ``grid-1.yaml`` (or the next free number) before it is replaced.

    Raises:
        MismatchError: ``out`` holds the results of another grid.
        CorruptionError: the existing ``grid.yaml`` cannot be read.
    """
    folder = ResultsFolder(out)
    recorded = folder.grid()
    if recorded is not None and recorded.get("name") != grid.name:
        raise MismatchError(f"{out}: holds the results of another grid ({recorded.get('name')}); choose another --out.")
    if recorded is None or not _says(recorded, grid):
        _keep_text(out / GRID_FILE, recorded)
        write_text(out / GRID_FILE, _text(grid_content(grid)))
    ids = [config.id for config in trials]
    if folder.planned() != ids:
        folder.write_plan(ids)


def _text(content: dict[str, Any]) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True))


def _keep_text(file: Path, content: dict[str, Any] | None) -> None:
    """Copy a grid file that will be replaced, unless it has the exact text that we write, and thus no comments."""
    if content is None:
        return
    text = file.read_text(encoding="utf-8")
    if text == _text(content):
        return
    for number in itertools.count(1):
        copy = file.with_stem(f"{file.stem}-{number}")
        if not copy.exists():
            write_text(copy, text)
            return
        if copy.read_text(encoding="utf-8", errors="replace") == text:
            return


def read_error(out: Path, config: TrialConfig) -> str | None:
    """Return the error of a trial's last run; None if it had none."""
    path = error_path(out, config)
    if not path.is_file():
        return None
    try:
        return str(read_json(path)["error"])
    except (HskdError, LookupError, TypeError, ValueError, RecursionError):
        return f"{path.name} cannot be read"


def grid_content(grid: GridSpec) -> dict[str, Any]:
    """Return all keys of a grid, defaults included, as a grid file holds them."""
    content = grid.model_dump(mode="json")
    given = grid.model_dump(mode="json", exclude_unset=True)
    # Unset keys of sweeps stay unset, because a dimension that a sweep does not name is kept whole.
    content["sweeps"] = given.get("sweeps", [])
    for key in ("arm", "seed"):  # the grid sets them
        del content["training"][key]
    return content


def _says(recorded: dict[str, Any], grid: GridSpec) -> bool:
    try:
        return grid_content(GridSpec.model_validate(recorded)) == grid_content(grid)
    except ValidationError:
        return False


def write_error(out: Path, config: TrialConfig, error: str, trace: str) -> None:
    """Record the error of a failed trial."""
    write_json(
        error_path(out, config),
        {
            "id": config.id,
            "title": config.title,
            "error": error,
            "traceback": trace,
            "config": config.model_dump(mode="json"),
        },
    )


def ensure_error(out: Path, config: TrialConfig, error: str) -> None:
    """Record the error of a failed trial whose process died before it could record one itself."""
    if not error_path(out, config).is_file():
        write_error(out, config, error, "")


def write_labels(out: Path, splits: Mapping[str, Labelled]) -> None:
    """Write the labels that predictions are scored against, once for all trials of a grid.

    Args:
        out: the output folder; ``labels.npz`` is written there unless it exists.
        splits: by name; ``train`` and splits without labels are left out.

    Raises:
        MismatchError: the existing file holds other labels.
        CorruptionError: the existing file cannot be read.
    """
    path, labels = out / LABELS_FILE, _labels(splits)
    if not path.is_file():
        _save_labels(path, labels)
    elif not _holds(path, labels):
        raise MismatchError(
            f"{path}: holds the labels of other data than this grid's, so its trials are not of this data. "
            "Choose another --out, or delete that folder."
        )


def replace_labels(out: Path, splits: Mapping[str, Labelled]) -> None:
    """Replace existing labels that differ. Only call this if no kept result was scored against the old labels.

    Raises:
        CorruptionError: the existing file cannot be read.
    """
    path, labels = out / LABELS_FILE, _labels(splits)
    if path.is_file() and not _holds(path, labels):
        _save_labels(path, labels)


def _labels(splits: Mapping[str, Labelled]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(split.labels) for name, split in splits.items() if name != "train" and split.labels is not None
    }


def _save_labels(path: Path, labels: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **labels)  # type: ignore[arg-type]


def _holds(path: Path, labels: Mapping[str, np.ndarray]) -> bool:
    """Return whether a file holds these labels.

    Raises:
        CorruptionError: it cannot be read.
    """
    kept = read_outputs(path)
    return kept.keys() == labels.keys() and all(np.array_equal(kept[name], labels[name]) for name in labels)


def publish(workspace: Workspace, config: TrialConfig, out: Path, progress: Progress) -> TrialResult:
    """Run a trial, or read it if done, and write its result into ``out``; an error is recorded and raised again."""
    done = ResultsFolder(out).result(config.id)
    if done is not None and not (done.inputs and workspace.inputs(config).changes(done.inputs)):
        return done
    try:
        workspace.ensure_labels(progress)
        write_labels(out, workspace.splits)
        result = execute(config, workspace, Prefixed(progress, config.title))
    except Exception as error:
        write_error(out, config, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise
    ResultsFolder(out).write(config.id, result, workspace.trial_folder(config) / PREDICTIONS_FILE)
    release_memory()  # a worker runs many trials
    error_path(out, config).unlink(missing_ok=True)
    return result
