"""The worker process of a case: it loads models and data, and computes when it is its turn."""

from __future__ import annotations

import gc
import os
import shutil
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging

from hskd.benchmarks.data import (
    spec_store,
    vocabulary_of,
)
from hskd.benchmarks.job import SEED, Job
from hskd.benchmarks.models import HEAD, student_of, teacher_of
from hskd.benchmarks.pace import Pace
from hskd.benchmarks.store_workers import STORE_WORK
from hskd.distill.source import OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.fast import fast_training
from hskd.fast.capture import Captured
from hskd.runtime import autocast
from hskd.tasks import TokenizedSplit, model_inputs
from hskd.tasks.fixed import PlacedSplit
from hskd.training import GoldTrainer, HeadModule, StageTrainer, training_arguments

_PRODUCTS = 8  # matrix products of a turn
_FOREVER = 100_000  # epochs: the driver ends the training


class _TakesTurns(TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the first turn, as everything is loaded."""
        self.pace.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step, and stop the training after the last turn."""
        control.should_training_stop = not self.pace.step()


class WholeHeadModule(HeadModule):
    """A classifier as usually trained: the last layer computes every token, although the head reads only one."""

    def forward(self, padded: bool | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the head's rows, with all other optimisations of the engine."""
        return self.head.rows(self.encoder.output(inputs, None, padded), inputs)


def train(job: Job, pace: Pace) -> None:
    """Train a stage of the engine with ``Trainer``: fine-tuning, offline or online HSK stage, or prediction stage."""
    case, split = job.case, job.split()
    _describe(job, pace, split)
    student = student_of(case.student, job.sizes).to(job.device)
    arguments = training_arguments(
        job.folder / "stage",
        epochs=_FOREVER,
        learning_rate=5e-5,
        schedule="constant",
        batch_size=job.sizes.batch,
        seed=SEED,
        dtype=case.dtype,
        device=job.device,
        capture=case.captured,
    )
    with fast_training(student, [vocabulary_of(case.lengths)]) as encoder:
        trainer: StageTrainer
        if case.what == "fine-tuning":
            trainer = GoldTrainer(WholeHeadModule(student, HEAD, encoder), arguments, split, case.what)
        elif case.what == "fine-tuning-cls":
            trainer = GoldTrainer(HeadModule(student, HEAD, encoder), arguments, split, case.what)
        elif case.what == "online":
            teacher = teacher_of(job.sizes, job.device)
            online = OnlineSource(teacher, split.sep_id, job.spec, job.shape.student_layers, case.dtype)
            module = HSKModule(student, job.shape.teacher_width, SEED, encoder=encoder).to(job.device)
            trainer = HSKTrainer(module, arguments, split, online)
        else:
            store = spec_store(job.folder / "store", split, job.spec, job.shape)
            pace.known |= {"store_bytes": store.manifest.bytes, "stored_examples": len(store)}
            place = job.device if case.captured else None
            offline = StoreSource(store, split, job.shape.student_layers, place)
            if case.what == "prediction":
                trainer = PredictionTrainer(HeadModule(student, HEAD, encoder), arguments, split, offline)
            else:
                module = HSKModule(student, job.shape.teacher_width, SEED, encoder=encoder).to(job.device)
                trainer = HSKTrainer(module, arguments, split, offline)
        assert trainer.captures == case.captured
        trainer.add_callback(_TakesTurns(pace))
        trainer.run()


def stock(job: Job, pace: Pace) -> None:
    """Fine-tune the stock student on the same batches in a bare torch loop, without the engine's optimisations."""
    split = job.split()
    _describe(job, pace, split)
    student = student_of(job.case.student, job.sizes).to(job.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    batches = job.batches(split)
    more = pace.begin()
    while more:
        batch = next(batches)
        with autocast(job.case.dtype, job.device):
            loss = student(**model_inputs(batch, job.device), labels=batch["labels"].to(job.device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        more = pace.step()


@torch.no_grad()
def teacher(job: Job, pace: Pace) -> None:
    """Run the teacher's forward pass alone, with fused attention."""
    split = job.split()
    _describe(job, pace, split)
    model = teacher_of(job.sizes, job.device).model
    placed = PlacedSplit(split, job.device)

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(job.case.dtype, job.device):
            logits: torch.Tensor = model(**model_inputs(batch, job.device)).logits
        return logits

    captured = Captured(lambda rows, width: (forward(placed.batch(rows, width)),), job.device)
    batches = job.rows(split)
    more = pace.begin()
    while more:
        rows = next(batches)
        if job.case.captured:
            captured(torch.tensor(rows).to(job.device), key=int(split.lengths[rows].max()))
        else:
            forward(split.collate(rows))
        more = pace.step()


@torch.no_grad()
def matmul(job: Job, pace: Pace) -> None:
    """Multiply large square matrices, to measure the peak of the device."""
    side = job.sizes.matmul
    dtype = torch.bfloat16 if job.case.dtype == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=job.device).to(dtype) for _ in range(2))
    pace.steps = _PRODUCTS
    more = pace.begin()
    while more:
        left @ right
        more = pace.step()


def _describe(job: Job, pace: Pace, split: TokenizedSplit) -> None:
    pace.steps = job.steps
    pace.counts_operations = not job.case.captured
    pace.known |= {
        "examples_per_batch": job.sizes.batch,
        "tokens_per_batch": job.sizes.batch * float(split.lengths.mean()),
    }


def run(pipe: Connection, job: Job) -> None:
    """Run a worker process from start to end. Errors are sent to the driver."""
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
        torch.set_num_threads(job.threads)
        gc.freeze()  # Trainer collects garbage before it trains, which takes almost a second over all imported objects
        pace = Pace(pipe, job.steps, job.device)
        _work_of(job.case.what)(job, pace)
        pace.end()
    except (EOFError, ConnectionError):
        return  # the driver has exited
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)  # also if the driver was killed and cannot delete it


def _work_of(what: str) -> Callable[[Job, Pace], None]:
    training = dict.fromkeys(("fine-tuning", "fine-tuning-cls", "offline", "online", "prediction"), train)
    return {**training, "stock": stock, "teacher": teacher, "matmul": matmul, **STORE_WORK}[what]
