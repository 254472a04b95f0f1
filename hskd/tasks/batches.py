"""Which examples go together in a batch, and in what order: functions of a seed and an epoch, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from hskd.selectors import mix
from hskd.tasks.tokenized import TokenizedSplit

Indices = NDArray[np.int64]

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEAD_INPUTS = (*MODEL_INPUTS, "words")

CHUNK_BATCHES = 50
"""Batches' worth of shuffled examples that are sorted by length together, as Trainer's ``group_by_length`` has it."""


def model_inputs(batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The part of a batch that a model takes, on ``device`` if one is given; ids and labels stay behind."""
    return {name: batch[name].to(device) for name in MODEL_INPUTS if name in batch}


def head_inputs(batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The part of a batch that a model and its head take: :func:`model_inputs`, and which tokens begin words."""
    return {name: batch[name].to(device) for name in HEAD_INPUTS if name in batch}


def is_padded(batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether a batch has pads. Ask while it is on the CPU: a GPU would have to be waited for."""
    return not bool(batch["attention_mask"].all())


def bucketed_batches(lengths: NDArray[np.integer], batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Random batches of examples of similar length.

    Shuffle, cut into chunks of ``CHUNK_BATCHES`` batches, sort each chunk by length, cut it into batches, shuffle
    the batches. Every example comes exactly once. Where ``batch_size`` does not divide N, the last of the shuffled
    examples make a short batch, which stays last.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch.
        seed: not negative.
        epoch: from 0.

    Returns:
        ceil(N / batch_size) arrays of int64 indices.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).astype(np.int64, copy=False)
    full = len(order) - len(order) % batch_size
    order, rest = order[:full], order[full:]
    chunk = CHUNK_BATCHES * batch_size
    batches: list[Indices] = []
    for start in range(0, full, chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part.reshape(-1, batch_size))
    batches = [batches[i] for i in rng.permutation(len(batches))]
    return [*batches, rest] if len(rest) else batches


def sequential_batches(lengths: NDArray[np.integer], batch_size: int) -> list[Indices]:
    """All examples in the order of their length (ties in row order), for evaluation and extraction.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch; the last may have fewer.

    Returns:
        ceil(N / batch_size) arrays of int64 indices.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int64, copy=False)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class Deal:
    """Who takes what of a batch: by default one process takes it whole.

    Attributes:
        accumulate: shares of each process, one after the other.
        process: the process that takes, from 0.
        processes: how many there are.
    """

    accumulate: int = 1
    process: int = 0
    processes: int = 1


WHOLE = Deal()


class Share(list[int]):
    """Rows that one process takes at a time, and the part of a whole batch that they are, between 0 and 1.

    ``draw`` is a number that looks random and depends on the seed and the step alone: what is drawn for a batch is
    drawn by it. All shares of a batch have the same.
    """

    def __init__(self, rows: Iterable[int], part: float = 1.0, draw: int = 0) -> None:
        super().__init__(rows)
        self.part = part
        self.draw = draw


def shares(batch: Indices, deal: Deal, draw: int = 0) -> list[Share]:
    """What one process takes of a batch, in shares.

    The batch is cut in the order of its rows, which is that of their lengths, and each piece is dealt out, so that
    processes have about as much to do. Over all processes, every row is in one share. Where there are fewer rows than
    shares, some hold a row that counts for nothing (their part is 0): a process has to take every step.

    Args:
        batch: (B,) rows, at least one.
        deal: says which process, of how many, and in how many shares.
        draw: the number of the batch that its shares tell.
    """
    rows_by_share = [piece[deal.process :: deal.processes] for piece in np.array_split(batch, deal.accumulate)]
    return [Share((rows if len(rows) else batch[:1]).tolist(), len(rows) / len(batch), draw) for rows in rows_by_share]


class BucketedBatchSampler(Sampler[list[int]]):
    """:func:`bucketed_batches` of the epoch that was set last (0 at first), as a torch batch sampler."""

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        whole_only: bool = False,
        deal: Deal = WHOLE,
        epoch_examples: int | None = None,
    ) -> None:
        """See :func:`bucketed_batches` and :func:`shares`.

        Epochs are counted from ``first_epoch``; with ``whole_only``, a short batch is left out. An epoch has as many
        batches as one of ``epoch_examples`` would have: of fewer examples, those of pass after pass.
        """
        self.lengths = lengths
        self.epoch_examples = len(lengths) if epoch_examples is None else epoch_examples
        self.whole_only = whole_only
        # accelerate reads it when it prepares a loader.
        self.batch_size = batch_size
        self.seed = seed
        self.first_epoch = first_epoch
        self.deal = deal
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives this epoch's batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Shares in an epoch."""
        return self._batches(self.epoch_examples) * self.deal.accumulate

    def _batches(self, examples: int) -> int:
        full, short = divmod(examples, self.batch_size)
        return full + bool(short and not self.whole_only)

    def __iter__(self) -> Iterator[Share]:
        """This process's shares of the batches of the epoch that is set.

        Each epoch advances torch's generator by one draw, however many workers read the batches. A loader would do it
        itself, but only where it starts workers anew; the dropout of every recorded trial comes after this draw.
        """
        torch.empty((), dtype=torch.int64).random_()
        in_epoch, in_pass = self._batches(self.epoch_examples), self._batches(len(self.lengths))
        first = (self.first_epoch + self.epoch) * in_epoch
        batches: list[Indices] = []
        for step in range(first, first + in_epoch):
            number, place = divmod(step, in_pass)
            if not batches or place == 0:
                # The short one, which may be left out, is the last.
                batches = bucketed_batches(self.lengths, self.batch_size, self.seed, number)
            yield from shares(batches[place], self.deal, int(mix(self.seed, step)) >> 1)


class BatchDataset(Dataset[dict[str, Any]]):
    """A tokenised split as a torch data set of whole batches; :func:`batch_loader` loads them.

    A batch holds what :meth:`~hskd.tasks.TokenizedSplit.collate` gives, and ``share``, the part of a whole batch that
    it is, ``draw``, the number by which what is drawn for it is drawn, and ``padded``, whether it has pads.

    Args:
        split: the examples.
    """

    in_workers = True
    """Whether worker processes can read the batches."""

    def __init__(self, split: TokenizedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        """Examples."""
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A batch of one example."""
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """The batch of these rows: what a ``DataLoader`` asks for."""
        batch: dict[str, Any] = self.split.collate(rows)
        share = rows if isinstance(rows, Share) else Share(rows)
        return {**batch, "share": share.part, "draw": share.draw, "padded": is_padded(batch)}


def batch_loader(
    dataset: BatchDataset, sampler: BucketedBatchSampler, device: torch.device, workers: int = 0
) -> DataLoader[Any]:
    """A loader of whole batches on ``device``, whose ``set_epoch`` reaches the sampler.

    It is one batch ahead: the next batch is on its way to the device before a step begins. The batches, and what is
    drawn during training, do not depend on ``workers``.

    Args:
        dataset: makes the batches.
        sampler: says which rows are in a batch.
        device: where the batches are wanted. Those that workers read for a GPU come through pinned memory.
        workers: processes that read; ignored where the data set cannot be read in one.
    """
    workers = workers if dataset.in_workers else 0
    if workers:
        # Workers do not tokenise. Unless this is set, the library warns about every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=dataset.in_workers and device.type == "cuda",
        generator=torch.Generator(),  # Not the global one, of which only the sampler takes a draw.
    )
    # The sampler has dealt the batches out among processes already.
    return prepare_data_loader(  # type: ignore[no-any-return]
        loader, device, num_processes=1, process_index=0, put_on_device=True, non_blocking=True
    )


def _identity(batch: Any) -> Any:
    return batch
