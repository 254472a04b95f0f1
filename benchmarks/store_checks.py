"""Measure the time to compare a store with its checksums, as a share of an epoch.

The store holds one spec of examples with a task's lengths, with random values in the paper's shapes. The script times
three things: comparing every shard with its checksum, which a process does once; reading every batch of an epoch; and
steps of the HSK stage. The median step times the number of batches is an epoch.

    python -m hskd.benchmarks.store_checks --lengths cola --examples 8551 --spec 1l_10t_0.1w
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table
from transformers import BertConfig, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging
from typing_extensions import override

from hskd.benchmarks.data import draw_lengths, make_split, spec_store, vocabulary_of
from hskd.benchmarks.job import SEED
from hskd.benchmarks.models import student_of
from hskd.benchmarks.shapes import SIZES, STUDENTS
from hskd.cli.progress import tables
from hskd.distill.source import StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer
from hskd.fast import fast_training
from hskd.io import format_bytes
from hskd.spec import HSKSpec, Shape
from hskd.store.reader import Store
from hskd.tasks import BucketedBatchSampler
from hskd.training import training_arguments

BATCH = 32


class _Stopwatch(TrainerCallback):
    """Ends the training after a number of steps, and records the time of each step after the warm-up."""

    def __init__(self, steps: int, warmup: int = 3) -> None:
        self.seconds: list[float] = []
        self._left, self._warmup, self._last = steps + warmup, warmup, 0.0

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        now = time.perf_counter()
        if state.global_step > self._warmup:
            self.seconds.append(now - self._last)
        self._last = now
        control.should_training_stop = state.global_step >= self._left


def main() -> None:
    """Measure the times and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="cola", help="length setting of the examples")
    parser.add_argument("--examples", type=int, default=8_551)
    parser.add_argument("--spec", default="1l_10t_0.1w")
    parser.add_argument("--student", default="tinybert4", choices=STUDENTS)
    parser.add_argument("--sizes", default="full", choices=SIZES)
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="how often the store is checked and read")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    sizes = SIZES[arguments.sizes]
    spec = HSKSpec.parse(arguments.spec)
    student = student_of(arguments.student, sizes)
    shape = Shape.of(BertConfig(**sizes.shapes["teacher"]), student.config.num_hidden_layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = make_split(arguments.lengths, draw_lengths(arguments.lengths, arguments.examples), folder / "tokens")
        store = spec_store(folder / "store", split, spec, shape)
        batches = [split.collate(rows) for rows in BucketedBatchSampler(split.lengths, BATCH, SEED)]
        checking, reading = [], []
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            store.verify()
            checking.append(time.perf_counter() - start)
            source = StoreSource(Store.open(store.folder), split, shape.student_layers)
            start = time.perf_counter()
            for batch in batches:
                source.kept(batch)
            reading.append(time.perf_counter() - start)
        stopwatch = _Stopwatch(arguments.steps)
        options = training_arguments(
            folder / "stage",
            epochs=1 + (arguments.steps + 3) // len(batches),
            learning_rate=5e-5,
            schedule="constant",
            batch_size=BATCH,
            seed=SEED,
            dtype="fp32",
            device=torch.device("cpu"),
        )
        with fast_training(student, [vocabulary_of(arguments.lengths)]) as encoder:
            trainer = HSKTrainer(HSKModule(student, shape.teacher_width, SEED, encoder=encoder), options, split, source)
            trainer.add_callback(stopwatch)
            trainer.run()
        step = statistics.median(stopwatch.seconds)
    epoch = step * len(batches)
    check, read = statistics.median(checking), statistics.median(reading)
    table = Table(title=f"{arguments.student}, {len(split):,} examples like {arguments.lengths}, {spec.label}, fp32")
    for heading in ("", "seconds", "share of an epoch"):
        table.add_column(heading, justify="right" if heading else "left")
    size = format_bytes(store.manifest.bytes)
    table.add_row(f"compare {size} with checksums", f"{check:.4f}", f"{100 * check / epoch:.3f} %")
    table.add_row("read an epoch's batches", f"{read:.3f}", f"{100 * read / epoch:.2f} %")
    table.add_row(f"an epoch: {len(batches)} steps of {1000 * step:.0f} ms", f"{epoch:.1f}", "100 %")
    tables(width=120).print(table)


if __name__ == "__main__":
    main()
