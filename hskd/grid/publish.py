"""A trial's result in the output folder: one JSON file, and its predictions in a compact one beside it."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from typing import Any

from hskd.artifacts import atomic_path, read_json, write_json
from hskd.distill.trial import PREDICTIONS_FILE
from hskd.grid.config import TrialConfig
from hskd.grid.study import Study
from hskd.runtime import release_memory

TRIALS = "trials"


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


def publish(study: Study, config: TrialConfig, out: Path) -> dict[str, Any]:
    """Run a trial, or find it done, and write its result into ``out``; a failure is written too, and raised again."""
    path = result_path(out, config)
    if path.is_file():
        return read_json(path)  # type: ignore[no-any-return]
    try:
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
