"""Times that were measured in another process, as pytest-benchmark takes them: through a timer of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_now = 0.0


def seconds_replayed() -> float:
    """The timer: seconds of all that was replayed so far."""
    return _now


def replay(benchmark: Any, seconds: Sequence[float]) -> None:
    """Give the fixture ``benchmark`` one round for each of ``seconds``; its test must have the timer above."""
    left = iter(seconds)

    def advance() -> None:
        global _now
        _now += next(left)

    benchmark.pedantic(advance, rounds=len(seconds))
