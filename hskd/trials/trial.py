"""Train and score one trial, as a pure function of its inputs, the number of threads and the precision."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hskd import processes
from hskd.artifacts import CHECKSUMS, RECIPE_FILE, SCHEMAS, claim, require_whole, seal
from hskd.errors import CorruptionError, HskdError
from hskd.fast.encoder import runs_by_layer
from hskd.io import atomic_path
from hskd.paper.departures import Departures
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.runtime import RunOptions
from hskd.students import load_student
from hskd.students.base import STUDENT_FILE
from hskd.tasks import compute_metrics
from hskd.teachers.fitting import require_fit
from hskd.teachers.loading import load_tokenizer, save_classifier, save_tokenizer
from hskd.trials.inputs import Inputs
from hskd.trials.result import PREDICTIONS_FILE, RESULT_FILE, VERSION, TrialResult
from hskd.trials.stages import Trained, TrialInputs, clear_stages, predict_outputs, train_stages


@dataclass(frozen=True)
class About:
    """The facts that a result records about its trial, apart from the training itself.

    Attributes:
        identity: identifies the trial together with its settings (spec, student, data).
        notes: further facts, which do not identify it.
        inputs: the contents that it depends on. The contents that training depends on identify the trial too.
    """

    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=Inputs)


def run_prepared(
    inputs: TrialInputs, folder: Path, options: RunOptions, about: About, progress: Progress | None = None
) -> TrialResult:
    """Distil into the student and score it; ``folder`` receives the student and ``result.json``.

    All of :mod:`hskd.processes` train; the main process writes.

    The result reports the student of the last epoch (unless ``compat`` says otherwise), and the best dev score over the
    epochs of the last stage. A killed trial resumes from its last checkpoint, and a finished trial is read. If only
    examples or labels of dev or test have changed since, its student is only scored again. A reporter that writes files
    puts its logs into ``hsk`` and ``prediction`` of ``folder``.

    Args:
        inputs: what the trial trains from.
        folder: folder of the trial.
        options: device, precision, reporting.
        about: what else the result records about the trial.
        progress: receives reports of the stages and their steps.

    Raises:
        HskdError: a loss is not finite, the arm lacks a source or labels that it needs, or ``compat`` does not suit
            the task, the data or the number of processes.
        MismatchError: ``folder`` holds another trial.
        CorruptionError: a file in ``folder`` differs from what was written.
    """
    settings, progress = inputs.settings, progress or Silent()
    if settings.arm == "gold" and inputs.splits["train"].labels is None:
        raise HskdError(
            "the arm gold learns from labels, and the training examples have none: augmented sentences are for the "
            "arms whose targets the teacher gives. Leave out --augment, or choose another arm."
        )
    departures = Departures(settings.compat)
    departures.require_task(inputs.task)
    departures.require_splits({**inputs.splits, "train": inputs.hsk_split}, settings.batch_size)
    departures.require_whole_batches(options.accumulate, processes.count())
    identity = {
        **about.identity,
        "settings": settings.model_dump(mode="json"),
        "dtype": options.dtype,
        "device": str(options.device),
        "threads": torch.get_num_threads(),
        **({"compile": True} if options.compile else {}),
        **({"capture": True} if options.capture else {}),
        **({"accumulate": options.accumulate} if options.accumulate > 1 else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    holds = "a trial with other settings, data, student, precision, threads or processes"
    recipe = identity | dict(about.inputs.trained) | {"schema": SCHEMAS["trials"]}
    processes.by_main(lambda: claim(folder / RECIPE_FILE, recipe, holds))
    finished = folder / RESULT_FILE
    if processes.by_main(finished.is_file):
        earlier_result = processes.by_main(lambda: _read(folder))
        if changed := about.inputs.changes_in_scores(earlier_result.inputs):
            progress.say(f"{folder}: {', '.join(changed)} changed since; the trained student is scored anew")
            return _scored_anew(earlier_result, changed, inputs, folder, options, about)
        return earlier_result
    if options.compile and not runs_by_layer(inputs.student):
        raise HskdError(
            f"--compile: the layers of a {inputs.student.config.model_type} student cannot be run one by one."
        )
    if inputs.source is None and settings.arm != "gold":
        raise HskdError(f"the arm {settings.arm} needs the teacher's knowledge: a store, or the teacher itself.")
    name = str(inputs.student_folder or "the student")
    require_fit(name, inputs.student, inputs.splits.values(), options.dtype)
    trained = train_stages(inputs, folder, options, progress)
    result = TrialResult(
        version=VERSION,
        **about.notes,
        **identity,
        inputs=about.inputs.as_json(),
        metrics=_metrics(inputs, trained.outputs),
        dev_scores=trained.dev_scores,
        best_dev_score=max(trained.dev_scores, default=None),
        stages=trained.stages,
        peak_memory_bytes=_peak_memory(),
        made_by=provenance(),
    )
    # Broadcast the main process's result: the others took different times.
    return processes.by_main(lambda: _write(result, trained, inputs, folder))


def _write(result: TrialResult, trained: Trained, inputs: TrialInputs, folder: Path) -> TrialResult:
    """Write a trial's final files, the result last, and remove the files to resume from."""
    student = folder / "student"
    _write_outputs(inputs, trained.outputs, folder)
    (student / CHECKSUMS).unlink(missing_ok=True)  # left by a run that was killed here
    save_classifier(inputs.student, inputs.task.head, student)
    if inputs.student_folder is not None:
        save_tokenizer(load_tokenizer(str(inputs.student_folder)), student)
        if (inputs.student_folder / STUDENT_FILE).is_file():
            shutil.copy(inputs.student_folder / STUDENT_FILE, student)
    seal(student)
    result.write(folder / RESULT_FILE)
    clear_stages(folder)
    return result


def _write_outputs(inputs: TrialInputs, outputs: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write the outputs, with their checksum beside them."""
    if outputs:
        (folder / CHECKSUMS).unlink(missing_ok=True)  # A killed process must not leave a checksum of other outputs.
        with atomic_path(folder / PREDICTIONS_FILE) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{name: _kept(inputs, name, rows) for name, rows in outputs.items()})  # type: ignore[arg-type]
        seal(folder, (PREDICTIONS_FILE,))


def _read(folder: Path) -> TrialResult:
    """Return the result of a finished trial whose files are all as written.

    Raises:
        CorruptionError: a file is damaged or missing; the message names it.
    """
    result = TrialResult.read(folder / RESULT_FILE)
    require_whole(folder)
    require_whole(folder / "student")
    if not (folder / "student" / "config.json").is_file():
        raise CorruptionError(
            f"{folder / 'student'}: the trained student is missing. Delete {folder} and run it again."
        )
    return result


def _scored_anew(
    earlier_result: TrialResult,
    changed: Sequence[str],
    inputs: TrialInputs,
    folder: Path,
    options: RunOptions,
    about: About,
) -> TrialResult:
    """Score the student of a finished trial on the current dev and test examples, and return the updated result.

    If dev has changed, the scores after each epoch are dropped, because the students of those epochs are not kept.
    """
    student = load_student(folder / "student", inputs.task.head)
    outputs = predict_outputs(replace(inputs, student=student), options)
    per_epoch: dict[str, Any] = {"dev_scores": [], "best_dev_score": None} if "dev" in changed else {}
    content = {
        **earlier_result.as_json(),
        **about.notes,
        "inputs": about.inputs.as_json(),
        "metrics": _metrics(inputs, outputs),
        **per_epoch,
    }
    result = TrialResult.model_validate(content)

    def write() -> TrialResult:
        # If the trial is killed here, the result still records the old inputs, so the next run scores it again.
        _write_outputs(inputs, outputs, folder)
        result.write(folder / RESULT_FILE)
        return result

    return processes.by_main(write)


def _metrics(inputs: TrialInputs, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {
        name: compute_metrics(inputs.task, rows, labels)
        for name, rows in outputs.items()
        if (labels := inputs.splits[name].labels) is not None
    }


def _kept(inputs: TrialInputs, split: str, rows: np.ndarray) -> np.ndarray:
    """Return the outputs of a scored split in the form that is written to disk."""
    labels = inputs.splits[split].labels
    assert labels is not None
    head = inputs.task.head
    return head.answers(rows, labels).astype(head.kept_type)


def _peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
