"""The job of a benchmark worker: a case, its sizes, and its data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertConfig

from hskd.benchmarks.cases import Case
from hskd.benchmarks.data import PADDED, draw_lengths, epoch_lengths, examples_for, make_split
from hskd.benchmarks.shapes import Sizes
from hskd.spec import HSKSpec, Shape
from hskd.tasks import BucketedBatchSampler, TokenizedSplit

SEED = 0
_PADDED_BATCHES = 16


@dataclass(frozen=True)
class Job:
    """The job of a worker.

    Attributes:
        case: the case.
        sizes: how much is run.
        device: the device that is measured.
        threads: CPU threads.
        folder: for its files; deleted afterwards.
    """

    case: Case
    sizes: Sizes
    device: torch.device
    threads: int
    folder: Path

    @property
    def steps(self) -> int:
        """Number of batches in a turn."""
        return self.sizes.turn(self.case.lengths, self.device)

    @property
    def spec(self) -> HSKSpec:
        """The HSK spec of the HSK stage."""
        return HSKSpec.parse(self.case.spec)

    @property
    def shape(self) -> Shape:
        """Sizes of the case's student and of the teacher."""
        teacher = BertConfig(**self.sizes.shapes["teacher"])
        layers = self.sizes.shapes[self.case.student]["num_hidden_layers"]
        return Shape.of(teacher, layers)

    def split(self) -> TokenizedSplit:
        """Return the examples: as many as the case says, or a short epoch that represents a real one."""
        case, batch = self.case, self.sizes.batch
        count = case.examples
        if case.mebibytes is not None:
            count = examples_for(case.mebibytes, case.lengths, self.spec, self.shape)
        if count is None and case.lengths in PADDED:
            count = _PADDED_BATCHES * batch
        if count is None:
            lengths = epoch_lengths(case.lengths, batch, self.steps)
        else:  # only whole batches, because the step of a short one is faster
            lengths = draw_lengths(case.lengths, max(count // batch, 1) * batch)
        return make_split(case.lengths, lengths, self.folder / "tokens")

    def batches(self, split: TokenizedSplit) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches that the engine trains on, endlessly."""
        return (split.collate(rows) for rows in self.rows(split))

    def rows(self, split: TokenizedSplit) -> Iterator[list[int]]:
        """Yield the row numbers of these batches, endlessly."""
        sampler = BucketedBatchSampler(split.lengths, self.sizes.batch, SEED)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from sampler
