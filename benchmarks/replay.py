"""Pass times that were measured in another process to pytest-benchmark, through a timer of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_now = 0.0


def seconds_replayed() -> float:
    """Return the sum of all seconds replayed so far; this is the timer of the tests."""
    return _now


def replay(benchmark: Any, seconds: Sequence[float]) -> None:
    """Replay one round for each of ``seconds`` in the fixture ``benchmark``. Its test must use the timer above."""
    left = iter(seconds)

    def advance() -> None:
        global _now
        _now += next(left)

    benchmark.pedantic(advance, rounds=len(seconds))
