"""Widths that keep other numbers than neurons, against ``magnitude``: derive, the HSK stage, and reading a store.

    python -m hskd.benchmarks.codecs [--rounds 5]

One process, widths in turn, medians over rounds of the ratio to ``magnitude`` in the same round. A superset of about
100,000 tokens of width 384 with random values; the specs keep a tenth of the width of every token in two layers. The
students are as wide as the teacher (pruned, of two heads and 96 FFN neurons a layer) and narrower (312, with ``W``).
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
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median over ``rounds`` of the seconds of each of ``works`` over those of the first, after a round to warm up."""
    times = np.array([[seconds(work) for work in works.values()] for _ in range(rounds + 1)])[1:]
    print({name: f"{np.median(column):.3f} s" for name, column in zip(works, times.T, strict=True)}, flush=True)
    return dict(zip(works, np.median(times / times[:, :1], axis=0), strict=True))


def batches_of(split: TokenizedSplit, count: int) -> list[dict[str, torch.Tensor]]:
    """Random batches, the same for every width."""
    rng = np.random.default_rng(0)
    return [split.collate(rng.integers(len(split), size=BATCH)) for _ in range(count)]


def deriving(superset: Store, folder: Path, width: str) -> Callable[[], object]:
    """Writes the store of a width anew."""

    def work() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        derive(superset, HSKSpec.parse(SPEC + width), SHAPE.student_layers, folder)

    return work


def reading(source: StoreSource, split: TokenizedSplit) -> Callable[[], object]:
    """Reads random batches."""
    batches = batches_of(split, READS)
    return lambda: [source.kept(batch) for batch in batches]


def training(source: StoreSource, split: TokenizedSplit, student: str) -> Callable[[], object]:
    """Steps of the HSK stage, reading included."""
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
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=7_500, help="of SST-2's lengths; 13.3 tokens each")
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
