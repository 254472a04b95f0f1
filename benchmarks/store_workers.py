"""Work of the suites that do not time training: extraction, reading, sizes on disk, and the overhead of a grid."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizerFast

from hskd.benchmarks.data import spec_store, superset_store
from hskd.benchmarks.job import Job
from hskd.benchmarks.models import HEAD, teacher_of
from hskd.benchmarks.pace import Pace
from hskd.benchmarks.shapes import TINY_SHAPES, Sizes
from hskd.distill.source import StoreSource
from hskd.grid.executors import InProcess
from hskd.grid.run import run_grid
from hskd.grid.spec import GridSpec
from hskd.progress import Silent
from hskd.runtime import autocast
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.tasks import Task, TokenizedSplit, model_inputs, sequential_batches
from hskd.trials.config import Machine

READS = 100
"""Number of batches read in a turn."""
TASK = Task("random", ("text",), "label", HEAD, 1, 128)


def _specs(shape: Shape, spec: HSKSpec | None = None) -> list[HSKSpec]:
    """Return the specs that a superset serves: ``spec``, or full HSK and attention ranking in every mapped layer."""
    if spec is not None and spec != spec.full():
        return [spec]
    return [HSKSpec(), HSKSpec.parse(f"{shape.student_layers + 1}l_10t_0.1w")]


def extraction(job: Job, pace: Pace) -> None:
    """Write a superset, attention rows of ``[CLS]`` included. A turn is a whole extraction."""
    split = job.split()
    teacher, shape = teacher_of(job.sizes, job.device), job.shape
    _whole_turns(pace, job.steps, split, job.sizes)
    more = pace.begin()
    for turn in itertools.count():
        if not more:
            return
        folder = job.folder / f"store-{turn}"
        extract(
            teacher,
            TASK,
            split,
            Superset.of(_specs(shape, job.spec), shape),
            folder,
            ExtractOptions(job.case.dtype, job.sizes.batch),
        )
        more = pace.step()
        shutil.rmtree(folder)


@torch.no_grad()
def forward(job: Job, pace: Pace) -> None:
    """Run the teacher's forward pass over the batches of an extraction. A turn is all of them."""
    split = job.split()
    model = teacher_of(job.sizes, job.device).model
    _whole_turns(pace, job.steps, split, job.sizes)
    more = pace.begin()
    while more:
        for rows in sequential_batches(split.lengths, job.sizes.batch):
            with autocast(job.case.dtype, job.device):
                model(**model_inputs(split.collate(rows), job.device))
        more = pace.step()


def read(job: Job, pace: Pace) -> None:
    """Read random batches, as the HSK stage does."""
    split = job.split()
    source = StoreSource(spec_store(job.folder / "store", split, job.spec, job.shape), split, job.shape.student_layers)
    rng = np.random.default_rng(0)
    batches = [split.collate(rng.integers(len(split), size=job.sizes.batch)) for _ in range(READS)]
    _whole_turns(pace, READS, split, job.sizes)
    more = pace.begin()
    while more:
        for batch in batches:
            source.kept(batch)
        more = pace.step()


def superset(job: Job, pace: Pace) -> None:
    """Write a superset of random values."""
    split, shape = job.split(), job.shape
    _whole_turns(pace, len(split) // job.sizes.batch, split, job.sizes)
    contents = Superset.of(_specs(shape), shape)
    values = int(split.offsets[-1]) * len(contents.layers) * shape.teacher_width
    more = pace.begin()
    for turn in itertools.count():
        if not more:
            break
        folder = job.folder / f"store-{turn}"
        store = superset_store(folder, split, _specs(shape), shape)
        more = pace.step()
        pace.known |= {
            "store_bytes": _on_disk(folder),
            "floor_bytes": values * store.precision.dtype.itemsize + HEAD.target().row_bytes * len(split),
        }
        shutil.rmtree(folder)


def derived(job: Job, pace: Pace) -> None:
    """Derive the store of one spec from a superset.

    The floor of its size is the sum of the kept values, the logits and, for each kept token and layer, a byte for the
    position and the smaller of a bit per neuron and 16 bits per kept neuron.
    """
    split, shape, spec = job.split(), job.shape, job.spec
    superset_of_case = superset_store(job.folder / "superset", split, _specs(shape), shape)
    _whole_turns(pace, len(split) // job.sizes.batch, split, job.sizes)
    kept = int(spec.length.counts(split.tokens).sum()) * len(spec.layers(shape))
    neurons = spec.width.count(shape.teacher_width)
    index_bytes = min(shape.teacher_width, 16 * neurons) / 8
    floor = kept * (neurons * spec.precision.dtype.itemsize + index_bytes + 1) + HEAD.target().row_bytes * len(split)
    more = pace.begin()
    for turn in itertools.count():
        if not more:
            break
        folder = job.folder / f"store-{turn}"
        derive(superset_of_case, spec, shape.student_layers, folder)
        more = pace.step()
        pace.known |= {"store_bytes": _on_disk(folder), "floor_bytes": floor}
        shutil.rmtree(folder)


class _Unwatched(Silent):
    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """Ignore the end of a trial."""


def grid(job: Job, pace: Pace) -> None:
    """Run a grid of the case's number of trials, with models so small that training takes little of the time."""
    trials = job.case.examples or 3
    spec = _grid(job, trials // 3)
    _whole_turns(pace, trials, None, job.sizes)
    more = pace.begin()
    for turn in itertools.count():
        if not more:
            break
        out, work = job.folder / f"out-{turn}", job.folder / f"work-{turn}"
        start = time.perf_counter()
        table, progress = run_grid(
            spec, spec.trials(Machine.here(job.threads, "fp32")), out, work, InProcess(), _Unwatched()
        )
        seconds = time.perf_counter() - start
        assert len(table) == trials and not progress.failed, progress.failed
        trained = float((table["hsk_seconds"] + table["prediction_seconds"]).sum())
        pace.known.setdefault("overhead_seconds", []).append((seconds - trained) / trials)
        more = pace.step()
        shutil.rmtree(out)
        shutil.rmtree(work)


def _grid(job: Job, seeds: int) -> GridSpec:
    """Return a grid of none, full and one spec for every seed. Its teacher, tokenizer and data are written here."""
    words = ["good", "bad", "fine", "dull", "warm", "cold"]
    (job.folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    teacher = teacher_of(Sizes("tiny", TINY_SHAPES), torch.device("cpu"))
    teacher.model.save_pretrained(job.folder / "teacher")
    BertTokenizerFast(vocab=str(job.folder / "vocab.txt")).save_pretrained(job.folder / "teacher")
    data = job.folder / "data"
    data.mkdir()
    for split, count in (("train", 64), ("dev", 16)):
        rows = [f"{' '.join(words[(i + j) % 6] for j in range(i % 5 + 1))} {i},{i % 2}" for i in range(count)]
        (data / f"{split}.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    return GridSpec.model_validate(
        {
            "name": "overhead",
            "task": {
                "name": "custom",
                "data": str(data),
                "text_columns": ["sentence"],
                "label_column": "label",
            },
            "teacher": {"model": str(job.folder / "teacher"), "settings": {"epochs": 1}},
            "students": [{"layers": 2, "heads": 2, "ffn": 24, "importance_examples": 32}],
            "training": {"hsk_epochs": 1, "prediction_epochs": 1, "batch_size": 32},
            "seeds": seeds,
            "include": ["1l_3t_0.5w"],
        }
    )


def _whole_turns(pace: Pace, batches: int, split: TokenizedSplit | None, sizes: Sizes) -> None:
    """Make a turn one call that processes ``batches`` batches."""
    pace.steps, pace.batches = 1, batches
    if split is not None:
        pace.known |= {
            "examples_per_batch": sizes.batch,
            "tokens_per_batch": sizes.batch * float(split.lengths.mean()),
        }


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


STORE_WORK: dict[str, Callable[[Job, Pace], None]] = {
    "extraction": extraction,
    "forward": forward,
    "read": read,
    "superset": superset,
    "derived": derived,
    "grid": grid,
}
