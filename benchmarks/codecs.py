"""Compare width selectors that keep other numbers than neurons with ``magnitude``: derive, HSK stage and reading.

    python -m hskd.benchmarks.codecs [--rounds 5]

The selectors take turns in one process. The results are medians, over the rounds, of the ratio to ``magnitude`` in the
same round. The superset has about 100,000 tokens of width 384 with random values. The specs keep a tenth of the width
of every token in two layers. One student is as wide as the teacher (pruned to two heads and 96 FFN neurons a layer),
the other is narrower (312, with ``W``).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification

from hskd.benchmarks.data import draw_lengths, make_split, superset_store
from hskd.cli.progress import tables
from hskd.distill.source import StoreSource
from hskd.distill.trainer import HSKModule
from hskd.fast import fast_training
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.tasks import TokenizedSplit, model_inputs

SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=384, vocab_size=30_522)
SPEC = "2l_all_0.1w,width="
WIDTHS = ("magnitude", "uniform", "projection", "pca", "pq")
BATCH, READS, STEPS = 32, 40, 4
STUDENTS = {
    "pruned": {"hidden_size": 384, "num_attention_heads": 2, "intermediate_size": 96},
    "narrower": {"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200},
}


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median over ``rounds`` of each work's time divided by the first one's, after a warm-up round."""
    times = np.array([[seconds(work) for work in works.values()] for _ in range(rounds + 1)])[1:]
    print({name: f"{np.median(column):.3f} s" for name, column in zip(works, times.T, strict=True)}, flush=True)
    return dict(zip(works, np.median(times / times[:, :1], axis=0), strict=True))


def batches_of(split: TokenizedSplit, count: int) -> list[dict[str, torch.Tensor]]:
    """Return random batches, the same for every width."""
    rng = np.random.default_rng(0)
    return [split.collate(rng.integers(len(split), size=BATCH)) for _ in range(count)]


def deriving(superset: Store, folder: Path, width: str) -> Callable[[], object]:
    """Return a function that writes the store of a width from scratch."""

    def work() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        derive(superset, HSKSpec.parse(SPEC + width), SHAPE.student_layers, folder)

    return work


def reading(source: StoreSource, split: TokenizedSplit) -> Callable[[], object]:
    """Return a function that reads random batches."""
    batches = batches_of(split, READS)
    return lambda: [source.kept(batch) for batch in batches]


def training(source: StoreSource, split: TokenizedSplit, student: str) -> Callable[[], object]:
    """Return a function that runs steps of the HSK stage, reading included."""
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=SHAPE.student_layers, vocab_size=SHAPE.vocab_size, **STUDENTS[student])
    model = BertForSequenceClassification(config).train()
    batches = batches_of(split, STEPS)

    def work() -> None:
        with fast_training(model, [split.input_ids], False) as encoder:
            module = HSKModule(model, SHAPE.teacher_width, encoder=encoder)
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
            for batch in batches:
                module(source.kept(batch), **model_inputs(batch)).backward()
                optimizer.step()
                optimizer.zero_grad()

    return work


def main() -> None:
    """Measure the ratios and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=7_500, help="with SST-2's lengths, 13.3 tokens on average")
    options = parser.parse_args()
    table = Table("time / magnitude's", *WIDTHS)

    def add(what: str, works: dict[str, Callable[[], object]]) -> None:
        ratios = in_turn(works, options.rounds)
        table.add_row(what, *(f"{ratios[width]:.2f}" if width in ratios else "" for width in WIDTHS))

    with tempfile.TemporaryDirectory(prefix="hskd-codecs-") as name:
        folder = Path(name)
        split = make_split("sst2", draw_lengths("sst2", options.examples), folder / "tokens")
        superset = superset_store(folder / "superset", split, [HSKSpec.parse("2l_all_all")], SHAPE)
        print(f"{int(superset.lengths.sum()):,} tokens, {torch.get_num_threads()} threads")
        stores = {width: folder / f"store-{i}" for i, width in enumerate(WIDTHS)}
        add("derive", {width: deriving(superset, stores[width], width) for width in WIDTHS})
        sources = {width: StoreSource(Store.open(at), split, SHAPE.student_layers) for width, at in stores.items()}
        add("read", {width: reading(source, split) for width, source in sources.items()})
        for student in STUDENTS:
            works = {width: training(source, split, student) for width, source in sources.items()}
            add(f"HSK stage, {student}", works)
    tables(width=160).print(table)


if __name__ == "__main__":
    main()
