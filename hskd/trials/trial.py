"""One trial: its stages, then its scores. A pure function of its inputs, threads and precision."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hskd import processes
from hskd.artifacts import claim
from hskd.errors import HskdError
from hskd.fast.encoder import is_bert_shaped
from hskd.io import atomic_path
from hskd.paper.departures import Departures
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.runtime import RunOptions
from hskd.students.base import STUDENT_FILE
from hskd.tasks import compute_metrics
from hskd.teachers.loading import load_tokenizer
from hskd.trials.result import PREDICTIONS_FILE, RESULT_FILE, VERSION, TrialResult
from hskd.trials.stages import Trained, TrialInputs, clear_stages, train_stages

_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class About:
    """What a result says of its trial beside how it was trained.

    Attributes:
        identity: what identifies the trial beside its settings (spec, student, data).
        notes: what does not identify it.
    """

    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


def run_prepared(
    inputs: TrialInputs, folder: Path, options: RunOptions, about: About, progress: Progress | None = None
) -> TrialResult:
    """Distil into the student and score it; the student and ``result.json`` end up in ``folder``.

    All of :mod:`hskd.processes` train; the main one writes.

    The last epoch is reported (unless ``compat`` says otherwise); the best dev score over the epochs of the last
    stage is beside it. A killed trial resumes from its last checkpoint, and a finished one is read.

    Args:
        inputs: what the trial trains.
        folder: where the trial lies.
        options: device, precision, reporting.
        about: what else the result says of the trial.
        progress: is told each stage and its steps.

    Raises:
        HskdError: a loss is not finite, the arm needs a source or labels and there are none, or ``compat`` does not
            suit task, data or the number of processes.
        MismatchError: ``folder`` holds another trial.
    """
    settings = inputs.settings
    if settings.arm == "gold" and inputs.splits["train"].labels is None:
        raise HskdError(
            "the arm gold learns from labels, and the training examples have none: augmented sentences are for the "
            "arms whose targets the teacher gives. Leave out --augment, or choose another arm."
        )
    departures = Departures(settings.compat)
    departures.require_task(inputs.task)
    departures.require_splits(inputs.splits, settings.batch_size)
    departures.require_whole_batches(options.accumulate, processes.count())
    identity = {
        **about.identity,
        "settings": settings.model_dump(mode="json"),
        "dtype": options.dtype,
        "device": str(options.device),
        "threads": torch.get_num_threads(),
        **({"compile": True} if options.compile else {}),
        **({"accumulate": options.accumulate} if options.accumulate > 1 else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    holds = "a trial with other settings, data, student, precision, threads or processes"
    processes.by_main(lambda: claim(folder / _RECIPE_FILE, identity, holds))
    finished = folder / RESULT_FILE
    if processes.by_main(finished.is_file):
        return TrialResult.read(finished)
    if options.compile and not is_bert_shaped(inputs.student):
        raise HskdError(
            f"--compile: the layers of a {inputs.student.config.model_type} student cannot be run one by one."
        )
    if inputs.source is None and settings.arm != "gold":
        raise HskdError(f"the arm {settings.arm} needs the teacher's knowledge: a store, or the teacher itself.")
    trained = train_stages(inputs, folder, options, progress or Silent())
    result = TrialResult(
        version=VERSION,
        **about.notes,
        **identity,
        metrics={
            name: compute_metrics(inputs.task, outputs, labels)
            for name, outputs in trained.outputs.items()
            if (labels := inputs.splits[name].labels) is not None
        },
        dev_scores=trained.dev_scores,
        best_dev_score=max(trained.dev_scores, default=None),
        stages=trained.stages,
        peak_memory_bytes=_peak_memory(),
        made_by=provenance(),
    )
    # Broadcast the main process's result: the others took different times.
    return processes.by_main(lambda: _write(result, trained, inputs, folder))


def _write(result: TrialResult, trained: Trained, inputs: TrialInputs, folder: Path) -> TrialResult:
    """Write what a trial ends with, the result last, and remove what it would resume from."""
    if trained.outputs:
        with atomic_path(folder / PREDICTIONS_FILE) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{name: _kept(inputs, name, rows) for name, rows in trained.outputs.items()})  # type: ignore[arg-type]
    inputs.student.save_pretrained(folder / "student")
    if inputs.student_folder is not None:
        load_tokenizer(str(inputs.student_folder)).save_pretrained(folder / "student")
        if (inputs.student_folder / STUDENT_FILE).is_file():
            shutil.copy(inputs.student_folder / STUDENT_FILE, folder / "student")
    result.write(folder / RESULT_FILE)
    clear_stages(folder)
    return result


def _kept(inputs: TrialInputs, split: str, rows: np.ndarray) -> np.ndarray:
    """What is written of the rows of a scored split."""
    labels = inputs.splits[split].labels
    assert labels is not None
    return inputs.task.head.answers(rows, labels).astype(np.float16)


def _peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
