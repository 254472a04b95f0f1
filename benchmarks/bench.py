"""The benchmarks, one test per case. ``hskd bench`` or ``pytest benchmarks/bench.py`` runs them.

The driver measures the cases of a group in turns (see docs/benchmarks.md). A test passes the times of its case on to
pytest-benchmark.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hskd.benchmarks.replay import seconds_replayed

pytestmark = [pytest.mark.benchmark(timer=seconds_replayed), pytest.mark.timeout(0)]
Replay = Callable[[], None]


def test_training(replay: Replay) -> None:
    """Seconds per batch of every way of training."""
    replay()


def test_lengths(replay: Replay) -> None:
    """Seconds per batch, offline on real lengths and online on padded ones."""
    replay()


def test_captured(replay: Replay) -> None:
    """Seconds per batch of training whose steps are captured as CUDA graphs."""
    replay()


def test_extraction(replay: Replay) -> None:
    """Seconds per batch of an extraction, and of the teacher alone."""
    replay()


def test_store(replay: Replay) -> None:
    """Seconds per batch of reading a store, and of training from it."""
    replay()


def test_size(replay: Replay) -> None:
    """Seconds per batch of writing stores; their sizes are in ``extra_info``."""
    replay()


def test_memory(replay: Replay) -> None:
    """Seconds per batch with a small and a large store; memory is in ``extra_info``."""
    replay()


def test_scale(replay: Replay) -> None:
    """Seconds per batch with more and more stored examples."""
    replay()


def test_grid(replay: Replay) -> None:
    """Seconds per trial of grids of several sizes; the time outside training is in ``extra_info``."""
    replay()
