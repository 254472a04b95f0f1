"""A trial's result in the output folder: one JSON file, its predictions beside it, and the labels of them all."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from hskd.artifacts import atomic_path, read_json, write_json
from hskd.distill.trial import PREDICTIONS_FILE
from hskd.errors import CorruptionError, MismatchError
from hskd.grid.config import TrialConfig
from hskd.grid.study import Study
from hskd.runtime import release_memory

TRIALS = "trials"
LABELS_FILE = "labels.npz"
"""Labels of every split that trials are scored on, ``(N,)``, in the order of their predictions."""


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


def publish(study: Study, config: TrialConfig, out: Path) -> dict[str, Any]:
    """Run a trial, or find it done, and write its result into ``out``; a failure is written too, and raised again."""
    path = result_path(out, config)
    if path.is_file():
        return read_json(path)  # type: ignore[no-any-return]
    try:
        write_labels(out, study.splits)
        folder, result = study.run(config)
    except Exception as error:
        write_error(out, config, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise
    with atomic_path(path.with_suffix(".npz")) as temporary:
        shutil.copyfile(folder / PREDICTIONS_FILE, temporary)
    result = {
        "id": config.id,
        "config": config.model_dump(mode="json"),
        "student_name": config.student_name,
        "teacher_metrics": study.teacher_metrics,
        **result,
    }
    write_json(path, result)
    release_memory()  # a worker runs many trials
    error_path(out, config).unlink(missing_ok=True)
    return result
