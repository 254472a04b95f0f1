from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from hskd.heads import SequenceClassification
from hskd.tasks.batches import (
    BatchDataset,
    BucketedBatchSampler,
    Deal,
    batch_loader,
    bucketed_batches,
    sequential_batches,
    shares,
)
from hskd.tasks.task import Split, Task, TaskData
from hskd.tasks.tokenized import TokenizedSplit, tokenize

lengths_of = st.lists(st.integers(1, 64), max_size=300).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths_of, st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 20))
def test_bucketed_batches_are_a_partition(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
    batches = bucketed_batches(lengths, batch_size, seed, epoch)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    again = bucketed_batches(lengths.copy(), batch_size, seed, epoch)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    assert len(BucketedBatchSampler(lengths, batch_size, seed)) == len(batches)


@given(lengths_of, st.integers(1, 9))
def test_sequential_batches_are_a_sorted_partition(lengths: np.ndarray, batch_size: int) -> None:
    batches = sequential_batches(lengths, batch_size)
    order = [i for batch in batches for i in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(st.integers(0, 1000), st.integers(0, 50))
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    lengths = np.arange(200) % 30

    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(bucketed_batches(lengths, 8, seed, epoch)).tolist()  # type: ignore[no-any-return]

    assert flat(seed, epoch) != flat(seed, epoch + 1)
    assert flat(seed, epoch) != flat(seed + 1, epoch)


def test_batches_hold_similar_lengths_in_no_order() -> None:
    lengths = np.random.default_rng(0).integers(3, 64, 3200)
    batches = bucketed_batches(lengths, 32, 0, 0)
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 5
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)


@pytest.fixture
def split(tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedSplit:
    texts = ["film " * (i % 7) + f"story {i}" for i in range(37)]
    task = Task("t", ("a",), "label", SequenceClassification(("no", "yes"), ("accuracy",)), 1, 16)
    return tokenize(TaskData(task, {"train": Split.of("train", [texts], [0] * 37)}), tokenizer, tmp_path)["train"]


def ids_of(loader: Any) -> list[list[int]]:
    return [batch["example_ids"].tolist() for batch in loader]


def loader_of(split: TokenizedSplit, workers: int = 0) -> Any:
    sampler = BucketedBatchSampler(split.lengths, 4, seed=3)
    return batch_loader(BatchDataset(split), sampler, torch.device("cpu"), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_epoch_that_is_set(split: TokenizedSplit, workers: int) -> None:
    loader = loader_of(split, workers)
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(ids_of(loader))
        assert epochs[-1] == [split.ids[batch].tolist() for batch in bucketed_batches(split.lengths, 4, 3, epoch)]
    assert len(loader) == len(epochs[0]) == 10
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_inside_an_epoch_goes_on_with_its_batches(split: TokenizedSplit, workers: int) -> None:
    loader = loader_of(split, workers)
    loader.set_epoch(2)
    wanted = ids_of(loader)[3:]
    resumed = skip_first_batches(loader_of(split, workers), 3)
    # Trainer does this after it skips batches: set_epoch if there is one, then on the sampler's inner sampler.
    if hasattr(resumed, "set_epoch"):
        resumed.set_epoch(2)
    resumed.batch_sampler.batch_sampler.set_epoch(2)
    assert ids_of(resumed) == wanted


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
def test_shares_hold_every_row_once(size: int, accumulate: int, processes: int) -> None:
    batch = np.arange(100, 100 + size)
    dealt = [shares(batch, Deal(accumulate, process, processes)) for process in range(processes)]
    assert [len(mine) for mine in dealt] == [accumulate] * processes
    every = [share for mine in dealt for share in mine]
    assert sorted(row for share in every if share.part for row in share) == batch.tolist()
    assert all(share.part in (0, len(share) / size) and set(share) <= set(batch.tolist()) for share in every)
    assert all(len(share) == 1 for share in every if not share.part)
    sizes = [len(share) * bool(share.part) for share in every]
    assert max(sizes) - min(sizes) <= 2


def test_a_loader_gives_the_shares_of_its_process(split: TokenizedSplit) -> None:
    def loader(*parts: int) -> Any:
        sampler = BucketedBatchSampler(split.lengths, 12, seed=3, deal=Deal(*parts))
        return batch_loader(BatchDataset(split), sampler, torch.device("cpu"))

    whole = list(loader())
    assert [batch["share"] for batch in whole] == [1.0] * 4  # for batches of 12, 12, 12 and 1
    halves = [list(loader(2, process, 2)) for process in (0, 1)]
    assert [len(half) for half in halves] == [8, 8] == [len(loader(2))] * 2
    assert [batch["share"] for batch in halves[0]] == [0.25] * 6 + [1.0, 0.0]
    assert [batch["share"] for batch in halves[1]] == [0.25] * 6 + [0.0, 0.0]
    for step, batch in enumerate(whole):
        parts = [part for half in halves for part in half[2 * step : 2 * step + 2] if part["share"]]
        found = [example for part in parts for example in part["example_ids"].tolist()]
        assert sorted(found) == sorted(batch["example_ids"].tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_takes_one_draw_however_it_is_read(split: TokenizedSplit, workers: int) -> None:
    loader = loader_of(split, workers)
    torch.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_()
    torch.empty((), dtype=torch.int64).random_()
    expected = torch.rand(1)
    torch.manual_seed(5)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        ids_of(loader)
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_says_whether_it_has_pads(split: TokenizedSplit) -> None:
    dataset = BatchDataset(split)
    same = np.flatnonzero(split.lengths == split.lengths[0])[:2].tolist()
    other = int(np.flatnonzero(split.lengths != split.lengths[0])[0])
    assert [dataset.__getitems__(rows)["padded"] for rows in (same, [*same, other], [other])] == [False, True, False]
    assert dataset[3]["share"] == 1.0
