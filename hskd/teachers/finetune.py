"""Fine-tuning a teacher, with its metrics and provenance beside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import set_seed

from hskd import processes
from hskd.artifacts import build, claim, read_json, write_json
from hskd.errors import HskdError
from hskd.runtime import provenance
from hskd.tasks import Task, TokenizedSplit
from hskd.teachers.loading import load_classifier, load_tokenizer
from hskd.training import Callbacks, GoldTrainer, score, seed_training, training_arguments
from hskd.vocabulary import touched_rows

METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.json"
_OTHER = "a teacher of another model, task or data, or fine-tuned with other settings"


class TeacherSettings(BaseModel):
    """Settings of a teacher's fine-tuning; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1, description="Epochs.")] = 5
    lr: Annotated[float, Field(gt=0, description="Peak learning rate, linear after warm-up.")] = 2e-5
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps that warms up.")] = 0.1
    batch_size: Annotated[int, Field(ge=1, description="Examples in a batch.")] = 32
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's, but on biases and LayerNorms.")] = 0.01
    seed: Annotated[int, Field(ge=0, description="Decides the classifier's initialisation, batches and dropout.")] = 0


def finetune(
    model_name: str,
    task: Task,
    splits: Mapping[str, TokenizedSplit],
    settings: TeacherSettings,
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    report_to: str = "none",
    accumulate: int = 1,
    begin_stage: Callable[[str, int], None] = lambda stage, steps: None,
    advance: Callable[[], None] = lambda: None,
) -> Path:
    """Fine-tune an encoder on a task and save model, tokenizer and ``metrics.json`` in ``folder``.

    A killed run goes on after its last epoch; a finished one is left as it is.

    Args:
        model_name: a local folder, a hub name, or ``offline:minilm``.
        task: its labels name the outputs.
        splits: train and dev, perhaps test; scores are computed for those that have labels.
        settings: epochs, rates, seed.
        folder: where the teacher will lie.
        dtype: resolved: fp32, or bf16 for autocast.
        device: where it trains.
        report_to: a reporter of ``transformers.Trainer``.
        accumulate: parts that a process cuts its share of a batch into, one after the other.
        begin_stage: receives the stage's name and its number of steps.
        advance: called after every step.

    Raises:
        HskdError: the model cannot be loaded, the loss is not finite, or ``folder`` was not made by this function.
        MismatchError: ``folder`` holds another teacher, or the beginning of one.
    """

    recipe = {
        "model": model_name,
        "task": task.name,
        "data": splits["train"].fingerprint,
        "settings": settings.model_dump(mode="json"),
        "dtype": dtype,
    }

    def builder(partial: Path) -> None:
        processes.by_main(lambda: claim(partial / RECIPE_FILE, recipe, _OTHER))
        set_seed(settings.seed)
        labels = dict(enumerate(task.label_names)) or {0: "score"}
        model = load_classifier(
            model_name,
            task,
            num_labels=len(labels),
            id2label=labels,
            label2id={label: i for i, label in labels.items()},
            new_head=True,
        ).to(device)
        arguments = training_arguments(
            partial / "training",
            epochs=settings.epochs,
            learning_rate=settings.lr,
            schedule="linear",
            batch_size=settings.batch_size,
            seed=settings.seed,
            dtype=dtype,
            device=device,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            checkpoints=True,
            report_to=report_to,
            accumulate=accumulate,
        )
        trainer = GoldTrainer(model, arguments, splits["train"], "teacher")
        trainer.add_callback(Callbacks(on_step=advance))
        begin_stage("teacher", settings.epochs * trainer.batches)
        seed_training(settings.seed)
        start = time.perf_counter()
        with touched_rows(model, [split.input_ids for split in splits.values()]):
            trainer.run()
        seconds = time.perf_counter() - start
        metrics = {
            name: score(model, task, split, dtype)
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
                "seconds": seconds,
                "clipped_share": trainer.clipped_share,
                "dtype": dtype,
                "device": str(device),
                "threads": torch.get_num_threads(),
                "processes": processes.count(),
                "accumulate": accumulate,
                "made_by": provenance(),
            },
        )
        shutil.rmtree(partial / "training")

    build(folder, builder, together=True)
    if not (folder / RECIPE_FILE).is_file():
        raise HskdError(f"{folder}: exists, and was not made by this command; choose another folder.")
    claim(folder / RECIPE_FILE, recipe, _OTHER)
    return folder


def teacher_metrics(folder: Path) -> dict[str, Any]:
    """What ``finetune`` wrote beside a teacher."""
    return read_json(folder / METRICS_FILE)  # type: ignore[no-any-return]
