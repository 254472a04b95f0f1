"""Fine-tune a teacher and save it with its metrics and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from hskd import processes
from hskd.artifacts import SCHEMAS, build_artifact, read_record, write_record
from hskd.errors import CorruptionError, HskdError
from hskd.fast import fast_training
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.runtime import RunOptions
from hskd.tasks import Task, TokenizedSplit
from hskd.tasks.content import labelled, scored, used_tokens
from hskd.tasks.positions import require_positions
from hskd.teachers.fitting import require_fit
from hskd.teachers.loading import load_classifier, load_tokenizer, model_content, save_classifier, save_tokenizer
from hskd.teachers.settings import TeacherSettings
from hskd.training import (
    GoldTrainer,
    HeadModule,
    Predictor,
    StageRecipe,
    clear_checkpoints,
    run_stage,
    training_arguments,
)

METRICS_FILE = "metrics.json"
Metrics = dict[str, dict[str, float]]
_OTHER = "a teacher of another model, task or data, or fine-tuned with other settings"


def finetune(
    model_name: str,
    task: Task,
    splits: Mapping[str, TokenizedSplit],
    settings: TeacherSettings,
    folder: Path,
    options: RunOptions,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune an encoder on a task and save model, tokenizer and ``metrics.json`` in ``folder``.

    A killed run resumes after its last finished epoch. A finished teacher is not trained again; it is only scored again
    if dev or test have changed. A reporter that writes log files puts them into ``training`` in ``folder``.

    Args:
        model_name: a local folder, a hub name, or ``offline:minilm``.
        task: its labels name the outputs.
        splits: train and dev, optionally test. Scores are computed for the labelled splits other than train.
        settings: epochs, learning rate, seed and other training settings.
        folder: the teacher's folder.
        options: device, precision, reporting.
        progress: receives the steps.

    Returns:
        ``folder``.

    Raises:
        HskdError: the task has no gold labels, the model cannot be loaded, the loss is not finite, or ``folder`` was
            not made by this function.
        MismatchError: ``folder`` holds another teacher, or an unfinished run of another teacher.
    """
    if not task.head.has_gold_labels:
        raise HskdError(
            f"task {task.name}: its teacher is used as it is and needs no fine-tuning; give the model itself instead "
            f"of a fine-tuned one (--teacher {model_name})."
        )
    recipe = {
        "model": processes.by_main(lambda: model_content(model_name)),
        "task": task.name,
        "data": splits["train"].fingerprint,
        "labels": labelled(task.head, splits["train"]),
        "settings": settings.model_dump(mode="json"),
        "dtype": options.dtype,
        "schema": SCHEMAS["teachers"],
    }
    progress = progress or Silent()

    def builder(partial: Path) -> None:
        set_seed(settings.seed)
        model = load_classifier(model_name, task, new_head=True).to(options.device)
        require_positions(model.config, splits, f"model {model_name}")
        require_fit(model_name, model, splits.values(), options.dtype)
        stage = StageRecipe.of(settings, options, epochs=settings.epochs, learning_rate=settings.lr, checkpoints=True)
        with fast_training(model, used_tokens(splits.values())) as encoder:
            unused = {"ddp_find_unused_parameters": not encoder.reads_every_parameter}
            arguments = training_arguments(partial / "training", stage, **unused)
            trainer = GoldTrainer(HeadModule(model, task.head, encoder), arguments, splits["train"], "teacher")
            run = run_stage(trainer, progress)
        metrics = _scores(model, task, splits, options.dtype)
        if not processes.is_main():
            return
        save_classifier(model, task.head, partial)
        save_tokenizer(load_tokenizer(model_name), partial)
        write_record(
            partial / METRICS_FILE,
            {
                "model": model_name,
                "task": task.name,
                "settings": settings.model_dump(mode="json"),
                "metrics": metrics,
                "scored": _scored(task, splits),
                "train_examples": len(splits["train"]),
                "seconds": run.seconds,
                "dtype": options.dtype,
                "device": str(options.device),
                "threads": torch.get_num_threads(),
                "processes": processes.count(),
                "accumulate": options.accumulate,
                "made_by": provenance(),
            },
        )
        clear_checkpoints(partial / "training")

    build_artifact(folder, recipe, builder, _OTHER, resumes=True, together=True, progress=progress)
    ensure_scores(folder, task, splits, options, progress)
    return folder


def ensure_scores(
    folder: Path, task: Task, splits: Mapping[str, TokenizedSplit], options: RunOptions, progress: Progress
) -> Metrics:
    """Return the metrics of a fine-tuned teacher on each labelled split except ``train``.

    The teacher is scored again if these splits have changed.

    Raises:
        CorruptionError: the record of the metrics, or the teacher, is damaged.
    """
    record = processes.by_main(lambda: teacher_metrics(folder))
    now = _scored(task, splits)
    if record.get("scored", now) == now:
        return record["metrics"]  # type: ignore[no-any-return]
    progress.say(f"{folder}: dev or test have changed since the teacher was scored; scoring it anew")
    model = load_classifier(str(folder), task).to(options.device)
    record |= {"metrics": _scores(model, task, splits, options.dtype), "scored": now}
    processes.by_main(lambda: write_record(folder / METRICS_FILE, record))
    return record["metrics"]  # type: ignore[no-any-return]


def _scores(model: PreTrainedModel, task: Task, splits: Mapping[str, TokenizedSplit], dtype: str) -> Metrics:
    predictor = Predictor(HeadModule(model, task.head), dtype)
    return {name: predictor.score(splits[name]) for name in _scored(task, splits)}


def _scored(task: Task, splits: Mapping[str, TokenizedSplit]) -> dict[str, str]:
    """Return fingerprints of the data that the metrics depend on, for each labelled split except ``train``."""
    return {
        name: scored(task.head, split) for name, split in splits.items() if name != "train" and split.labels is not None
    }


def teacher_metrics(folder: Path) -> dict[str, Any]:
    """Read the record that ``finetune`` wrote into a teacher's folder.

    Raises:
        HskdError: there is no record.
        CorruptionError: the record is damaged.
    """
    path = folder / METRICS_FILE
    remedy = f"Delete {folder} and make the teacher again (hskd teacher)."
    record = read_record(path, remedy)
    metrics = record.get("metrics")
    if not isinstance(metrics, dict) or not all(
        isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
        for values in metrics.values()
    ):
        raise CorruptionError(f"{path}: expected metrics by split. {remedy}")
    return record
