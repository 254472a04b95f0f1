"""Fine-tuning a teacher, with its metrics and provenance beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hskd import processes
from hskd.artifacts import build_artifact
from hskd.errors import HskdError
from hskd.fast import fast_training
from hskd.io import read_json, write_json
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.runtime import RunOptions
from hskd.tasks import Task, TokenizedSplit
from hskd.teachers.loading import load_classifier, load_tokenizer
from hskd.teachers.settings import TeacherSettings
from hskd.training import GoldTrainer, HeadModule, StageRecipe, run_stage, score, training_arguments

METRICS_FILE = "metrics.json"
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

    A killed run goes on after its last epoch; a finished one is left as it is.

    Args:
        model_name: a local folder, a hub name, or ``offline:minilm``.
        task: its labels name the outputs.
        splits: train and dev, perhaps test; scores are computed for those that have labels.
        settings: epochs, rates, seed.
        folder: where the teacher will lie.
        options: device, precision, reporting.
        progress: is told the steps.

    Raises:
        HskdError: the model cannot be loaded, the loss is not finite, or ``folder`` was not made by this function.
        MismatchError: ``folder`` holds another teacher, or the beginning of one.
    """

    if not task.head.has_gold_labels:
        raise HskdError(
            f"task {task.name}: its teacher is used as it is, and needs no fine-tuning; give the model itself in "
            f"place of a fine-tuned one (--teacher {model_name})."
        )
    recipe = {
        "model": model_name,
        "task": task.name,
        "data": splits["train"].fingerprint,
        "settings": settings.model_dump(mode="json"),
        "dtype": options.dtype,
    }
    progress = progress or Silent()

    def builder(partial: Path) -> None:
        set_seed(settings.seed)
        model = load_classifier(model_name, task, new_head=True).to(options.device)
        stage = StageRecipe(
            epochs=settings.epochs,
            learning_rate=settings.lr,
            schedule="linear",
            batch_size=settings.batch_size,
            seed=settings.seed,
            dtype=options.dtype,
            device=options.device,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            checkpoints=True,
            report_to=options.report_to,
            accumulate=options.accumulate,
        )
        with fast_training(model, [split.input_ids for split in splits.values()]) as encoder:
            unused = {"ddp_find_unused_parameters": not encoder.reads_every_parameter}
            arguments = training_arguments(partial / "training", stage, **unused)
            trainer = GoldTrainer(HeadModule(model, task.head, encoder), arguments, splits["train"], "teacher")
            run = run_stage(trainer, progress)
        classifier = HeadModule(model, task.head)
        metrics = {
            name: score(classifier, split, options.dtype)
            for name, split in splits.items()
            if name != "train" and split.labels is not None
        }
        if not processes.is_main():
            return
        model.save_pretrained(partial)
        load_tokenizer(model_name).save_pretrained(partial)
        write_json(
            partial / METRICS_FILE,
            {
                "model": model_name,
                "task": task.name,
                "settings": settings.model_dump(mode="json"),
                "metrics": metrics,
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
        shutil.rmtree(partial / "training")

    return build_artifact(folder, recipe, builder, _OTHER, resumes=True, together=True)


def teacher_metrics(folder: Path) -> dict[str, Any]:
    """What ``finetune`` wrote beside a teacher."""
    return read_json(folder / METRICS_FILE)  # type: ignore[no-any-return]
