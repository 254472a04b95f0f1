"""What a worker process does: it loads a case's models and data, then computes when it is its turn."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import BertConfig, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging

from benchmarks.cases import Case
from benchmarks.data import PADDED, draw_lengths, epoch_lengths, examples_for, make_split, spec_store, vocabulary_of
from benchmarks.pace import Pace
from benchmarks.shapes import Sizes, student_of, teacher_of
from hskd.distill.source import OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.dropout import cheap_dropout
from hskd.encoder import class_logits
from hskd.runtime import autocast
from hskd.spec import HSKSpec, Shape
from hskd.tasks import BucketedBatchSampler, TokenizedSplit, model_inputs
from hskd.training import GoldTrainer, StageTrainer, training_arguments
from hskd.vocabulary import touched_rows

SEED = 0
_PADDED_BATCHES = 16
_PRODUCTS = 8  # matrix products of a turn
_FOREVER = 100_000  # epochs: the driver says when it is enough


@dataclass(frozen=True)
class Job:
    """What a worker works on.

    Attributes:
        case: the case.
        sizes: how much is run.
        device: where.
        threads: CPU threads.
        folder: for its files; deleted after.
    """

    case: Case
    sizes: Sizes
    device: torch.device
    threads: int
    folder: Path

    @property
    def steps(self) -> int:
        """Batches in a turn."""
        return self.sizes.turn(self.case.lengths, self.device)

    @property
    def spec(self) -> HSKSpec:
        """What the HSK stage distils."""
        return HSKSpec.parse(self.case.spec)

    @property
    def shape(self) -> Shape:
        """Sizes of the case's student and of the teacher."""
        teacher = BertConfig(**self.sizes.shapes["teacher"])
        layers = self.sizes.shapes[self.case.student]["num_hidden_layers"]
        return Shape(layers, teacher.num_hidden_layers, teacher.hidden_size, teacher.num_labels, teacher.vocab_size)

    def split(self) -> TokenizedSplit:
        """The examples: as many as the case says, or an epoch that stands for a real one."""
        case, batch = self.case, self.sizes.batch
        count = case.examples
        if case.mebibytes is not None:
            count = examples_for(case.mebibytes, case.lengths, self.spec, self.shape)
        if count is None and case.lengths in PADDED:
            count = _PADDED_BATCHES * batch
        if count is None:
            lengths = epoch_lengths(case.lengths, batch, self.steps)
        else:  # whole batches: a short one would make its step look fast
            lengths = draw_lengths(case.lengths, max(count // batch, 1) * batch)
        return make_split(case.lengths, lengths, self.folder / "tokens")

    def batches(self, split: TokenizedSplit) -> Iterator[dict[str, torch.Tensor]]:
        """The batches that the engine trains on, without end."""
        sampler = BucketedBatchSampler(split.lengths, self.sizes.batch, SEED)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            for rows in sampler:
                yield split.collate(rows)


class _TakesTurns(TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is loaded."""
        self.pace.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done."""
        control.should_training_stop = not self.pace.step()


class WholeGoldTrainer(GoldTrainer):
    """Fine-tuning as everyone does it: the last layer computes every token, though the classifier reads one."""

    def run(self) -> None:
        """Train with all else that the engine does for speed."""
        student = self.model

        def forward(**inputs: torch.Tensor) -> SequenceClassifierOutput:
            return SequenceClassifierOutput(logits=class_logits(student, inputs))

        student.forward = forward
        with cheap_dropout(student):
            self.train()


def train(job: Job, pace: Pace) -> None:
    """A stage of the engine, through ``Trainer``: fine-tuning, offline or online HSK stage, prediction stage."""
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
    )
    with touched_rows(student, [vocabulary_of(case.lengths)]):
        trainer: StageTrainer
        if case.what == "fine-tuning":
            trainer = WholeGoldTrainer(student, arguments, split, case.what)
        elif case.what == "fine-tuning-cls":
            trainer = GoldTrainer(student, arguments, split, case.what)
        elif case.what == "online":
            teacher = teacher_of(job.sizes, job.device)
            online = OnlineSource(teacher, split.sep_id, job.spec, job.shape.student_layers, case.dtype)
            module = HSKModule(student, job.shape.teacher_width, SEED).to(job.device)
            trainer = HSKTrainer(module, arguments, split, online)
        else:
            store = spec_store(job.folder / "store", split, job.spec, job.shape)
            pace.known |= {"store_bytes": store.manifest.bytes, "stored_examples": len(store)}
            offline = StoreSource(store, split, job.shape.student_layers)
            if case.what == "prediction":
                trainer = PredictionTrainer(student, arguments, split, offline)
            else:
                module = HSKModule(student, job.shape.teacher_width, SEED).to(job.device)
                trainer = HSKTrainer(module, arguments, split, offline)
        trainer.add_callback(_TakesTurns(pace))
        trainer.run()


def stock(job: Job, pace: Pace) -> None:
    """A bare torch loop that fine-tunes the stock student on the same batches: none of the engine's tricks."""
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
    """The teacher's forward pass alone, with fused attention."""
    split = job.split()
    _describe(job, pace, split)
    model = teacher_of(job.sizes, job.device).model
    batches = job.batches(split)
    more = pace.begin()
    while more:
        with autocast(job.case.dtype, job.device):
            model(**model_inputs(next(batches), job.device))
        more = pace.step()


@torch.no_grad()
def matmul(job: Job, pace: Pace) -> None:
    """Products of large square matrices: what the device can do at most."""
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
    pace.known |= {
        "examples_per_batch": job.sizes.batch,
        "tokens_per_batch": job.sizes.batch * float(split.lengths.mean()),
    }


def run(pipe: Connection, job: Job) -> None:
    """The life of a worker process; what goes wrong is told to the driver."""
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
        torch.set_num_threads(job.threads)
        gc.freeze()  # Trainer collects garbage before it trains: among all that is imported, most of a second
        pace = Pace(pipe, job.steps, job.device)
        _work_of(job.case.what)(job, pace)
        pace.end()
    except (EOFError, ConnectionError):
        return  # the driver is gone
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)  # also where the driver was killed


def _work_of(what: str) -> Callable[[Job, Pace], None]:
    from benchmarks.store_workers import STORE_WORK

    training = dict.fromkeys(("fine-tuning", "fine-tuning-cls", "offline", "online", "prediction"), train)
    return {**training, "stock": stock, "teacher": teacher, "matmul": matmul, **STORE_WORK}[what]
