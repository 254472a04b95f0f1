"""What a grid writes into its output folder: the grid itself, and the results, outputs and labels of its trials."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import yaml
from pydantic import ValidationError

from hskd.errors import CorruptionError, MismatchError
from hskd.grid.spec import GridSpec
from hskd.io import atomic_path, write_json, write_text
from hskd.progress import Prefixed, Progress
from hskd.results.folder import GRID_FILE, LABELS_FILE, PLANNED_FILE, TRIALS, ResultsFolder
from hskd.runtime import release_memory
from hskd.trials.config import TrialConfig
from hskd.trials.execute import execute
from hskd.trials.result import PREDICTIONS_FILE, TrialResult
from hskd.trials.workspace import Workspace


class Labelled(Protocol):
    """What may have labels: a split, tokenised or not."""

    @property
    def labels(self) -> Any:
        """``N`` label indices or targets; None where they are not known."""


def result_path(out: Path, config: TrialConfig) -> Path:
    """Where a trial's result lies once it is done."""
    return out / TRIALS / f"{config.id}.json"


def error_path(out: Path, config: TrialConfig) -> Path:
    """Where a failed trial's traceback lies."""
    return out / TRIALS / f"{config.id}.error.json"


def write_grid(out: Path, grid: GridSpec, trials: Sequence[TrialConfig]) -> None:
    """Record a grid as it is run: ``grid.yaml``, which ``hskd grid run`` reads again, and the ids of its trials.

    A ``grid.yaml`` that says the same is left as it is, with its comments.

    Raises:
        MismatchError: ``out`` holds the results of another grid.
        CorruptionError: the ``grid.yaml`` that is there cannot be read.
    """
    folder = ResultsFolder(out)
    recorded = folder.grid()
    if recorded is not None and recorded.get("name") != grid.name:
        raise MismatchError(f"{out}: holds the results of another grid ({recorded.get('name')}); choose another --out.")
    if recorded is None or not _says(recorded, grid):
        text = yaml.safe_dump(grid_content(grid), sort_keys=False, default_flow_style=None, allow_unicode=True)
        write_text(out / GRID_FILE, text)
    ids = [config.id for config in trials]
    if folder.planned() != ids:
        write_json(out / PLANNED_FILE, ids)


def grid_content(grid: GridSpec) -> dict[str, Any]:
    """All that a grid says, defaults too, as a grid file holds it."""
    content = grid.model_dump(mode="json")
    given = grid.model_dump(mode="json", exclude_unset=True)
    # What a sweep leaves out means something: a dimension that it does not name is kept whole.
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
    """Keep what went wrong with a trial."""
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


def write_labels(out: Path, splits: Mapping[str, Labelled]) -> None:
    """Keep the labels that predictions are scored by, once for all trials of a grid.

    Args:
        out: the output folder, where ``labels.npz`` is written unless it is there.
        splits: by name; ``train`` and splits without labels are left out.

    Raises:
        MismatchError: the labels that are there are others.
        CorruptionError: the file that is there cannot be read.
    """
    path = out / LABELS_FILE
    labels = {
        name: np.asarray(split.labels) for name, split in splits.items() if name != "train" and split.labels is not None
    }
    if not path.is_file():
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **labels)  # type: ignore[arg-type]
        return
    try:
        with np.load(path) as found:
            same = {*found} == {*labels} and all(np.array_equal(found[name], labels[name]) for name in labels)
    except (OSError, ValueError, BadZipFile) as error:
        raise CorruptionError(f"{path}: cannot be read ({error}); delete it and run the grid again.") from None
    if not same:
        raise MismatchError(
            f"{path}: holds the labels of other data than this grid's, so its trials are not of this data. "
            "Choose another --out, or delete that folder."
        )


def publish(workspace: Workspace, config: TrialConfig, out: Path, progress: Progress) -> TrialResult:
    """Run a trial, or find it done, and write its result into ``out``; a failure is written too, and raised again."""
    path = result_path(out, config)
    done = ResultsFolder(out).result(config.id)
    if done is not None:
        return done
    try:
        workspace.ensure_labels(progress)
        write_labels(out, workspace.splits)
        result = execute(config, workspace, Prefixed(progress, config.title))
    except Exception as error:
        write_error(out, config, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise
    with atomic_path(path.with_suffix(".npz")) as temporary:
        shutil.copyfile(workspace.trial_folder(config) / PREDICTIONS_FILE, temporary)
    result.write(path)
    release_memory()  # a worker runs many trials
    error_path(out, config).unlink(missing_ok=True)
    return result
