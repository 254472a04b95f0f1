"""Which examples go together in a batch, and in what order: functions of a seed and an epoch, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from hskd.tasks.tokenized import TokenizedSplit

Indices = NDArray[np.int64]

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

CHUNK_BATCHES = 50
"""Batches' worth of shuffled examples that are sorted by length together, as Trainer's ``group_by_length`` has it."""


def model_inputs(batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The part of a batch that a model takes, on ``device`` if one is given; ids and labels stay behind."""
    return {name: batch[name].to(device) for name in MODEL_INPUTS if name in batch}


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
    # accelerate, which shares a batch out among processes, drops a short batch anywhere but at the end.
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


class BucketedBatchSampler(Sampler[list[int]]):
    """:func:`bucketed_batches` of the epoch that was set last (0 at first), as a torch batch sampler."""

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        drop_last: bool = False,
    ) -> None:
        """See :func:`bucketed_batches`; epochs are counted from ``first_epoch``, a short batch may be left out."""
        self.lengths = lengths
        self.drop_last = drop_last
        # accelerate reads it when it shares a batch out among processes.
        self.batch_size = batch_size
        self.seed = seed
        self.first_epoch = first_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives this epoch's batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, short = divmod(len(self.lengths), self.batch_size)
        return full + bool(short and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch that is set."""
        # Lists: accelerate concatenates batches with +.
        for batch in bucketed_batches(self.lengths, self.batch_size, self.seed, self.first_epoch + self.epoch):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch.tolist()


def _identity(batch: Any) -> Any:
    return batch


class EpochDataLoader(DataLoader[Any]):
    """A loader of whole batches whose ``set_epoch``, which ``Trainer`` calls, reaches the batch sampler.

    It is one batch ahead: the next batch is read before a step begins, while an accelerator is busy with the last one.

    Resuming inside an epoch, ``Trainer`` has accelerate rebuild the loader around the same sampler, and sets the
    sampler's epoch itself.
    """

    def __init__(self, dataset: TokenizedSplit, batch_sampler: BucketedBatchSampler, **options: Any) -> None:
        """``options`` are the other arguments of torch's ``DataLoader``."""
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=batch_sampler,
            **{"collate_fn": _identity, **options},
        )

    def __iter__(self) -> Any:
        """The batches of the epoch that is set."""
        batches = super().__iter__()
        ahead = next(batches, None)
        while ahead is not None:
            batch, ahead = ahead, next(batches, None)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives this epoch's batches."""
        if isinstance(self.batch_sampler, BucketedBatchSampler):
            self.batch_sampler.set_epoch(epoch)
