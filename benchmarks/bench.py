"""The benchmarks, one test a case: ``hskd bench`` runs them, and so does ``pytest benchmarks/bench.py``.

A test takes its times from the driver, which measured its group's cases in turns (see docs/benchmarks.md), and hands
them to pytest-benchmark.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hskd.benchmarks.replay import seconds_replayed

pytestmark = [pytest.mark.benchmark(timer=seconds_replayed), pytest.mark.timeout(0)]
Replay = Callable[[], None]


def test_training(replay: Replay) -> None:
    """Seconds a batch of every way of training."""
    replay()


def test_lengths(replay: Replay) -> None:
    """Seconds a batch, offline on real lengths and online on padded ones."""
    replay()


def test_extraction(replay: Replay) -> None:
    """Seconds a batch of an extraction, and of the teacher alone."""
    replay()


def test_store(replay: Replay) -> None:
    """Seconds a batch of reading, and of the training that reads."""
    replay()


def test_size(replay: Replay) -> None:
    """Seconds a batch of writing stores; their sizes are in ``extra_info``."""
    replay()


def test_memory(replay: Replay) -> None:
    """Seconds a batch with a small and a large store; memory is in ``extra_info``."""
    replay()


def test_scale(replay: Replay) -> None:
    """Seconds a batch with ever more stored examples."""
    replay()


def test_grid(replay: Replay) -> None:
    """Seconds a trial of grids of several sizes; what is not training is in ``extra_info``."""
    replay()
