"""One trial: HSK stage, then prediction stage, then scores. A pure function of its inputs, threads and precision."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hskd import processes
from hskd.artifacts import atomic_path, claim, read_json, write_json
from hskd.distill.compat import (
    MeanClassesTrainer,
    hsk_source,
    hsk_split,
    relu_pooled,
    require_regression,
    require_splits,
    require_whole_batches,
    set_optimizer,
)
from hskd.distill.settings import DistillSettings
from hskd.distill.source import KnowledgeSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer, mean_hsk_loss
from hskd.encoder import compiled_layers, is_bert_shaped
from hskd.errors import HskdError
from hskd.runtime import provenance
from hskd.students.create import STUDENT_FILE
from hskd.students.loading import PROJECTION_FILE
from hskd.tasks import Task, TokenizedSplit, compute_metrics
from hskd.teachers.loading import load_tokenizer
from hskd.training import (
    Callbacks,
    GoldTrainer,
    StageTrainer,
    last_checkpoint,
    predict_logits,
    score,
    seed_training,
    training_arguments,
)
from hskd.vocabulary import touched_rows

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
"""Logits of every scored split, ``(N, C)`` fp16, in the order of its examples."""
_RECIPE_FILE = "recipe.json"
_STAGE_FILE = "hsk-stage.safetensors"
_STAGE_RECORD = "hsk-stage.json"
_BEST_FILE = "best-epoch.safetensors"


HeldOut = tuple[TokenizedSplit, KnowledgeSource]
"""Examples that no student trains on, and a source of their HSK."""


@dataclass(frozen=True)
class Run:
    """How a trial runs on this machine; what changes its bits is recorded and has to stay as it is.

    Attributes:
        dtype: resolved: fp32, or bf16 for autocast.
        device: where the student trains.
        checkpoints: save one after every epoch, so that a killed trial goes on.
        report_to: a reporter of ``transformers.Trainer``, such as tensorboard.
        compile: run the student's layers through ``torch.compile``.
        accumulate: parts that a process cuts its share of a batch into, one after the other; with several, or several
            processes, losses are the same to rounding, and dropout is another.
        begin_stage: receives a stage's name and its number of steps.
        advance: called after every step.
    """

    dtype: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoints: bool = True
    report_to: str = "none"
    compile: bool = False
    accumulate: int = 1
    begin_stage: Callable[[str, int], None] = lambda stage, steps: None
    advance: Callable[[], None] = lambda: None


def run_trial(
    settings: DistillSettings,
    task: Task,
    splits: Mapping[str, TokenizedSplit],
    student: PreTrainedModel,
    teacher_width: int,
    source: KnowledgeSource | None,
    folder: Path,
    run: Run,
    *,
    student_folder: Path | None = None,
    record: Mapping[str, Any] | None = None,
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Distil into ``student`` and score it; the student and ``result.json`` end up in ``folder``.

    All of :mod:`hskd.processes` train; the main one writes.

    The last epoch is what is reported (unless ``compat`` says otherwise); the best dev score over the epochs of the
    last stage is beside it. A killed trial goes on from its last checkpoint, a finished one is read.

    Args:
        settings: arm, epochs, rates, seed.
        task: the task.
        splits: train, perhaps dev and test; scores are computed for those that have labels.
        student: the initialised student.
        teacher_width: ``d_T``, which decides whether there is a ``W``.
        source: the teacher's knowledge; None only for the arm *gold*.
        folder: where the trial lies.
        run: device, precision, reporting.
        student_folder: where the student came from: its tokenizer goes with the trained student, and a ``W`` that
            it holds is where ``W`` starts.
        record: what identifies the trial beside its settings (spec, student, data): part of the result.
        held_out: examples on which the HSK loss is measured after the HSK stage.

    Returns:
        What ``result.json`` holds.

    Raises:
        HskdError: a loss is not finite, the arm needs a source or labels and there are none, or ``compat`` does not
            suit task, data or the number of processes.
        MismatchError: ``folder`` holds another trial.
    """
    if settings.arm == "gold" and splits["train"].labels is None:
        raise HskdError(
            "the arm gold learns from labels, and the training examples have none: augmented sentences are for the "
            "arms whose targets the teacher gives. Leave out --augment, or choose another arm."
        )
    require_regression(settings, task)
    require_splits(settings, splits)
    require_whole_batches(settings, run.accumulate, processes.count())
    identity = {
        **(record or {}),
        "settings": settings.model_dump(mode="json"),
        "dtype": run.dtype,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        **({"compile": True} if run.compile else {}),
        **({"accumulate": run.accumulate} if run.accumulate > 1 else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    holds = "a trial with other settings, data, student, precision, threads or processes"
    processes.by_main(lambda: claim(folder / _RECIPE_FILE, identity, holds))
    finished = folder / RESULT_FILE
    if processes.by_main(finished.is_file):
        return read_json(finished)  # type: ignore[no-any-return]
    if run.compile and not is_bert_shaped(student):
        raise HskdError(f"--compile: the layers of a {student.config.model_type} student cannot be run one by one.")
    if source is None and settings.arm != "gold":
        raise HskdError(f"the arm {settings.arm} needs the teacher's knowledge: a store, or the teacher itself.")
    hsk_epochs, last_epochs = settings.epochs(task.hsk_epochs)
    student.to(run.device)
    stages: dict[str, Any] = {}
    dev_scores: list[float] = []
    with (
        compiled_layers("inductor" if run.compile else None),
        touched_rows(student, [split.input_ids for split in splits.values()]),
        relu_pooled(student, "relu_pooled" in settings.compat and settings.arm != "gold"),
    ):
        if hsk_epochs:
            assert source is not None
            module = HSKModule(student, teacher_width, settings.seed, student_folder)
            resumed = processes.by_main(lambda: last_checkpoint(folder / "hsk")) is not None
            targets = hsk_source(settings, source, teacher_width, resumed)
            split = hsk_split(settings, splits["train"], student)
            stages["hsk"] = _hsk_stage(module, settings, hsk_epochs, split, targets, folder, run)
            if held_out is not None:
                stages["hsk"]["held_out_loss"] = mean_hsk_loss(module, *held_out, run.dtype)
        if last_epochs:
            stages["prediction"] = _last_stage(
                student, settings, task, last_epochs, splits, source, folder, run, dev_scores, hsk_epochs
            )
        logits = {
            name: predict_logits(student, split, run.dtype)
            for name, split in splits.items()
            if name != "train" and split.labels is not None
        }
    result = {
        **identity,
        "metrics": {
            name: compute_metrics(task, values, labels)
            for name, values in logits.items()
            if (labels := splits[name].labels) is not None
        },
        "dev_scores": dev_scores,
        "best_dev_score": max(dev_scores, default=None),
        "stages": stages,
        "peak_memory_bytes": _peak_memory(),
        "made_by": provenance(),
    }
    # Not each process its own: they took different times.
    return processes.by_main(lambda: _write(result, logits, student, folder, student_folder))


def _write(
    result: dict[str, Any],
    logits: Mapping[str, np.ndarray],
    student: PreTrainedModel,
    folder: Path,
    student_folder: Path | None,
) -> dict[str, Any]:
    """Write what a trial ends with, the result last, and clear away what it went on from."""
    if logits:
        with atomic_path(folder / PREDICTIONS_FILE) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{name: values.astype(np.float16) for name, values in logits.items()})  # type: ignore[arg-type]
    student.save_pretrained(folder / "student")
    if student_folder is not None:
        load_tokenizer(str(student_folder)).save_pretrained(folder / "student")
        if (student_folder / STUDENT_FILE).is_file():
            shutil.copy(student_folder / STUDENT_FILE, folder / "student")
    write_json(folder / RESULT_FILE, result)
    for stage in (folder / "hsk", folder / "prediction"):
        for checkpoint in stage.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if stage.is_dir() and not any(stage.iterdir()):  # what is left are a reporter's logs
            stage.rmdir()
    (folder / _STAGE_FILE).unlink(missing_ok=True)
    (folder / _STAGE_RECORD).unlink(missing_ok=True)
    (folder / _BEST_FILE).unlink(missing_ok=True)
    return result


def _hsk_stage(
    module: HSKModule,
    settings: DistillSettings,
    epochs: int,
    split: TokenizedSplit,
    source: KnowledgeSource,
    folder: Path,
    run: Run,
) -> dict[str, Any]:
    """Train the HSK stage, or load what it ended with if a killed trial got that far."""
    weights, record = folder / _STAGE_FILE, folder / _STAGE_RECORD
    if not processes.by_main(record.is_file):
        arguments = training_arguments(
            folder / "hsk",
            epochs=epochs,
            learning_rate=settings.hsk_lr,
            schedule="constant_with_warmup",
            **_shared(settings, run),
        )
        stage = _train(HSKTrainer(module, arguments, split, source), settings, run)

        def write() -> None:
            _save_weights(module, weights)
            write_json(record, stage)

        processes.by_main(write)
    module.load_state_dict(load_file(weights))
    stage = read_json(record)
    processes.barrier()  # both files will be removed
    if module.projection is not None and processes.is_main():
        (folder / "student").mkdir(exist_ok=True)
        with atomic_path(folder / "student" / PROJECTION_FILE) as temporary:
            save_file(module.projection.state_dict(), temporary)
    return stage


def _last_stage(
    student: PreTrainedModel,
    settings: DistillSettings,
    task: Task,
    epochs: int,
    splits: Mapping[str, TokenizedSplit],
    source: KnowledgeSource | None,
    folder: Path,
    run: Run,
    dev_scores: list[float],
    first_epoch: int,
) -> dict[str, Any]:
    arguments = training_arguments(
        folder / "prediction",
        epochs=epochs,
        learning_rate=settings.prediction_lr,
        schedule="linear",
        **_shared(settings, run),
    )
    trainer: StageTrainer
    if settings.arm == "gold":
        trainer = GoldTrainer(student, arguments, splits["train"], "gold")
    elif "gold_regression" in settings.compat:
        trainer = GoldTrainer(student, arguments, splits["train"], "prediction stage")
    else:
        assert source is not None
        trainer_class = MeanClassesTrainer if "mean_classes" in settings.compat else PredictionTrainer
        trainer = trainer_class(student, arguments, splits["train"], source, settings.tau)
    trainer.first_epoch = first_epoch
    dev = splits.get("dev")
    keep_best = "best_epoch" in settings.compat

    def score_dev() -> None:
        if dev is None:
            return
        # In the trainer's state, so that a resumed trial knows the scores of the epochs before.
        value = score(student, task, dev, run.dtype)["score"]
        earlier = _dev_scores(trainer)
        trainer.state.log_history.append({"step": trainer.state.global_step, "dev_score": value})
        if keep_best and value > max(earlier, default=-math.inf):
            processes.by_main(lambda: _save_weights(student, folder / _BEST_FILE))

    stage = _train(trainer, settings, run, score_dev)
    dev_scores += _dev_scores(trainer)
    if keep_best:
        student.load_state_dict(load_file(folder / _BEST_FILE))
        processes.barrier()  # it will be removed
        stage["reported_epoch"] = 1 + dev_scores.index(max(dev_scores))
    return stage


def _dev_scores(trainer: StageTrainer) -> list[float]:
    """The score on dev after each epoch so far."""
    return [entry["dev_score"] for entry in trainer.state.log_history if "dev_score" in entry]


def _save_weights(module: nn.Module, path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, temporary)


def _shared(settings: DistillSettings, run: Run) -> dict[str, Any]:
    return {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "dtype": run.dtype,
        "device": run.device,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "checkpoints": run.checkpoints,
        "report_to": run.report_to,
        "accumulate": run.accumulate,
        "dataloader_drop_last": "drop_last" in settings.compat,
    }


def _train(
    trainer: StageTrainer, settings: DistillSettings, run: Run, on_epoch: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Run a stage from the seed and say what it cost."""
    set_optimizer(settings, trainer)
    epochs = int(trainer.args.num_train_epochs)
    batches = trainer.batches
    examples = min(len(trainer.split), batches * settings.batch_size)
    steps = epochs * batches
    run.begin_stage(trainer.stage, steps)
    trainer.add_callback(Callbacks(on_step=run.advance, on_epoch=on_epoch))
    seed_training(settings.seed)
    start = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "epochs": epochs,
        "steps": steps,
        "examples": examples,
        "seconds": seconds,
        "examples_per_second": epochs * examples / seconds,
        "clipped_share": trainer.clipped_share,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def _peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
