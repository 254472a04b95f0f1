"""Batch composition and order, as functions of a seed and an epoch alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
TargetsInShape = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], dict[str, Any]]
"""Function that returns the targets of a batch on the device (:meth:`BatchDataset.targets_in_shape`)."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEAD_INPUTS = (*MODEL_INPUTS, "words")

CHUNK_BATCHES = 50
"""Number of batches whose shuffled examples are sorted by length together, as in the Trainer's ``group_by_length``."""

PREFETCH = 2
"""Number of batches that each worker process of a loader prepares ahead."""


def model_inputs(batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch that a model takes, moved to ``device`` if given; ids and labels are left out."""
    return {name: batch[name].to(device) for name in MODEL_INPUTS if name in batch}


def head_inputs(batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors that a model and its head take: those of :func:`model_inputs`, and the word starts."""
    return {name: batch[name].to(device) for name in HEAD_INPUTS if name in batch}


def is_padded(batch: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a batch has pads. Call it while the batch is on the CPU: on a GPU it would synchronise."""
    return not bool(batch["attention_mask"].all())


def bucketed_batches(lengths: NDArray[np.integer], batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Return random batches of examples of similar length.

    The examples are shuffled and split into chunks of ``CHUNK_BATCHES`` batches. Each chunk is sorted by length and
    split into batches, and then the batches are shuffled. Every example occurs exactly once. If ``batch_size`` does not
    divide N, the last of the shuffled examples form a short batch, which stays last.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a batch.
        seed: a number that is not negative.
        epoch: counted from 0.

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
    """Return batches of all examples sorted by length (ties in row order), for evaluation and extraction.

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
    """How a batch is divided among processes and accumulation steps. By default, one process takes it whole.

    Attributes:
        accumulate: shares of a batch that each process takes, one after the other (gradient accumulation).
        process: index of this process, from 0.
        processes: number of processes.
    """

    accumulate: int = 1
    process: int = 0
    processes: int = 1


WHOLE = Deal()


class Share(list[int]):
    """Rows that one process takes at a time, with ``part``, their fraction of the whole batch (0 to 1).

    ``draw`` is a pseudo-random number that depends on the seed and the step alone and is the same for all shares of a
    batch. It seeds every random choice made for the batch.
    """

    def __init__(self, rows: Iterable[int], part: float = 1.0, draw: int = 0) -> None:
        super().__init__(rows)
        self.part = part
        self.draw = draw


def shares(batch: Indices, deal: Deal, draw: int = 0) -> list[Share]:
    """Return the part of a batch that one process takes, as a list of shares.

    The batch is split in row order, which is order of length, and each piece is dealt out among the processes, so that
    all have about the same work. Over all processes, every row is in exactly one share. If there are fewer rows than
    shares, some shares hold a row with weight 0 (``part`` is 0), because every process has to take every step.

    Args:
        batch: (B,) rows, at least one.
        deal: the process, the number of processes, and the number of shares.
        draw: the ``draw`` of every share of this batch.
    """
    rows_by_share = [piece[deal.process :: deal.processes] for piece in np.array_split(batch, deal.accumulate)]
    return [Share((rows if len(rows) else batch[:1]).tolist(), len(rows) / len(batch), draw) for rows in rows_by_share]


class BucketedBatchSampler(Sampler[list[int]]):
    """A torch batch sampler that yields :func:`bucketed_batches` of the epoch last set (initially 0)."""

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

        Epochs are counted from ``first_epoch``. With ``whole_only``, a short batch is left out. An epoch has as many
        batches as ``epoch_examples`` examples would fill. If there are fewer examples, an epoch takes several passes.
        """
        self.lengths = lengths
        self.epoch_examples = len(lengths) if epoch_examples is None else epoch_examples
        self.whole_only = whole_only
        # accelerate reads this attribute when it prepares a loader.
        self.batch_size = batch_size
        self.seed = seed
        self.first_epoch = first_epoch
        self.deal = deal
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of shares in an epoch."""
        return self._batches(self.epoch_examples) * self.deal.accumulate

    def _batches(self, examples: int) -> int:
        full, short = divmod(examples, self.batch_size)
        return full + bool(short and not self.whole_only)

    def __iter__(self) -> Iterator[Share]:
        """Yield this process's shares of the batches of the current epoch.

        Each epoch advances torch's generator by one draw, regardless of the number of workers. A ``DataLoader`` makes
        this draw only when it starts new workers. The dropout of every recorded trial comes after this draw.
        """
        torch.empty((), dtype=torch.int64).random_()
        in_epoch, in_pass = self._batches(self.epoch_examples), self._batches(len(self.lengths))
        first = (self.first_epoch + self.epoch) * in_epoch
        batches: list[Indices] = []
        for step in range(first, first + in_epoch):
            number, place = divmod(step, in_pass)
            if not batches or place == 0:
                # whole_only leaves out the short batch, which is the last of a pass.
                batches = bucketed_batches(self.lengths, self.batch_size, self.seed, number)
            yield from shares(batches[place], self.deal, int(mix(self.seed, step)) >> 1)


class BatchDataset(Dataset[dict[str, Any]]):
    """A tokenised split as a torch data set of whole batches, for :func:`batch_loader`.

    A batch holds the tensors of :meth:`~hskd.tasks.TokenizedSplit.collate` and three more entries: ``share``, its
    fraction of the whole batch; ``draw``, which seeds the random choices for it; and ``padded``, whether it has pads.

    Args:
        split: the examples.
    """

    in_workers = True
    """Whether worker processes can read the batches."""

    def __init__(self, split: TokenizedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return a batch of one example."""
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """Return the batch of these rows; a ``DataLoader`` calls this method."""
        batch: dict[str, Any] = self.split.collate(rows)
        share = rows if isinstance(rows, Share) else Share(rows)
        return {**batch, "share": share.part, "draw": share.draw, "padded": is_padded(batch)}

    def targets_in_shape(self) -> TargetsInShape | None:
        """Return a function that gives a batch's further entries on the device, in shapes that do not vary.

        It is called with row numbers ``(B,)`` and inputs on the device. The result is None if shapes vary.
        """
        return (lambda rows, inputs: {}) if self.split.word_starts is None else None


def batch_loader(
    dataset: BatchDataset, sampler: BucketedBatchSampler, device: torch.device, workers: int = 0
) -> DataLoader[Any]:
    """Return a loader of whole batches on ``device``; its ``set_epoch`` is passed on to the sampler.

    The next batch is already on its way to the device when a step begins, and each worker prepares ``PREFETCH`` more.
    Neither the batches nor the random numbers drawn during training depend on ``workers``.

    Args:
        dataset: makes the batches.
        sampler: gives the rows of each batch.
        device: where the batches go. Batches for a GPU pass through pinned memory if workers can read the data set.
        workers: number of worker processes; ignored if the data set cannot be read in worker processes.
    """
    workers = workers if dataset.in_workers else 0
    if workers:
        # Workers do not tokenise, but without this setting the tokenizers library warns about every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=dataset.in_workers and device.type == "cuda",
        generator=torch.Generator(),  # Not the global generator: only the sampler may draw from that.
    )
    # The sampler has already divided the batches among the processes.
    return prepare_data_loader(  # type: ignore[no-any-return]
        loader, device, num_processes=1, process_index=0, put_on_device=True, non_blocking=True
    )


def _identity(batch: Any) -> Any:
    return batch
