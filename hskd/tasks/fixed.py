"""Batches of few shapes: token ids lie on the training device, and a batch is gathered there by row numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from hskd.tasks.batches import BatchDataset, TargetsInShape, bucketed_batches
from hskd.tasks.tokenized import TokenizedSplit

WIDTHS = 8
"""Number of widths that batches are padded to. With 8, epochs of CoLA, SST-2 and RTE have 7 to 14 % more tokens than if
every batch is as wide as its longest example; with 4 widths, they have 14 to 38 % more."""


def few_widths(longest: Sequence[int] | np.ndarray, count: int = WIDTHS) -> tuple[int, ...]:
    """Return the widths with which batches have the fewest tokens in total: at most ``count``, ascending.

    Args:
        longest: tokens of the longest example of each batch.
        count: how many widths there may be.
    """
    needed, batches = np.unique(np.asarray(longest), return_counts=True)
    before = np.concatenate([[0], np.cumsum(batches)])
    # fewest[b]: tokens of the batches that need the b smallest widths, if they are padded to few widths.
    fewest = np.concatenate([[0.0], np.full(len(needed), np.inf)])
    starts = []
    for _ in range(min(count, len(needed))):
        # The last width serves a run of needed widths, from a to b.
        of_runs = np.full((len(needed), len(needed)), np.inf)
        for b, width in enumerate(needed):
            of_runs[: b + 1, b] = fewest[: b + 1] + width * (before[b + 1] - before[: b + 1])
        starts.append(of_runs.argmin(0))
        fewest = np.concatenate([[0.0], of_runs.min(0)])
    widths, end = [], len(needed)
    for start in reversed(starts):
        if end:
            widths.append(int(needed[end - 1]))
            end = int(start[end - 1])
    return tuple(reversed(widths))


class PlacedSplit:
    """The tokens of a split on a device, from which batches of fixed shapes are gathered.

    Args:
        split: the examples. Labels of tokens are left out.
        device: where the tokens are placed.
    """

    def __init__(self, split: TokenizedSplit, device: torch.device) -> None:
        def placed(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.array(array)).to(device)

        self._starts = placed(split.offsets[:-1])
        self._lengths = placed(split.lengths)
        self._pads = {"input_ids": split.pad_id, "token_type_ids": 0}
        self._tokens = {
            name: placed(array.astype(np.int64))
            for name, array in (("input_ids", split.input_ids), ("token_type_ids", split.token_type_ids))
            if array is not None
        }
        labelled = split.labels is not None and split.labels_per == "example"
        self._labels = placed(split.labels) if labelled and split.labels is not None else None

    def batch(self, rows: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
        """Return the batch that ``TokenizedSplit.collate`` returns, padded to ``width`` tokens, without example ids.

        Args:
            rows: row numbers of the examples on the device, ``(B,)``. None may be longer than ``width``.
            width: tokens of the batch.
        """
        positions = torch.arange(width, device=rows.device)
        real = positions < self._lengths[rows][:, None]
        place = torch.where(real, self._starts[rows][:, None] + positions, 0)
        batch = {name: torch.where(real, ids[place], self._pads[name]) for name, ids in self._tokens.items()}
        batch["attention_mask"] = real.long()
        if self._labels is not None:
            batch["labels"] = self._labels[rows]
        return batch


class RowDataset(BatchDataset):
    """Batches of few shapes: a loader gives row numbers, and :meth:`complete` gathers the batch on the device.

    Args:
        split: the examples.
        widths: the widths of batches, ascending. The largest must hold the longest example.
        device: where batches are gathered.
        targets: returns the targets of a batch, from row numbers ``(B,)`` and inputs on the device.
    """

    in_workers = False

    def __init__(
        self, split: TokenizedSplit, widths: Sequence[int], device: torch.device, targets: TargetsInShape
    ) -> None:
        super().__init__(split)
        self.widths = tuple(widths)
        self._placed = PlacedSplit(split, device)
        self._targets = targets

    @override
    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """Return ``rows`` ``(B,)`` and the ``width`` of their batch."""
        longest = int(self.split.lengths[list(rows)].max())
        width = next(width for width in self.widths if width >= longest)
        return {"rows": torch.tensor(rows), "width": width}

    def complete(self, rows: torch.Tensor, width: int) -> dict[str, Any]:
        """Return the batch of the examples ``rows`` ``(B,)``, with everything that a loss reads, on the device."""
        inputs = self._placed.batch(rows, width)
        return {"padded": True, **inputs, **self._targets(rows, inputs)}


def in_few_shapes(dataset: BatchDataset, batch_size: int, seed: int, device: torch.device) -> RowDataset | None:
    """Return the same batches in few shapes; None if the shapes of their targets vary with the examples.

    Args:
        dataset: makes the batches.
        batch_size: examples in a batch.
        seed: seed of the batches. The widths are those that suit its first epoch best.
        device: where batches are gathered.
    """
    targets, lengths = dataset.targets_in_shape(), dataset.split.lengths
    if targets is None:
        return None
    longest = [lengths[rows].max() for rows in bucketed_batches(lengths, batch_size, seed, 0)]
    return RowDataset(dataset.split, few_widths([*longest, lengths.max()]), device, targets)
