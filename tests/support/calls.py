"""A progress reporter that calls plain functions, for tests that count, stop or kill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hskd.progress import Silent
from hskd.runtime import RunOptions
from hskd.store.extract import ExtractOptions


def _nothing(*_: Any) -> None:
    pass


class Calls(Silent):
    """``step`` takes no argument, ``advance`` a number of steps, ``begin`` a title, ``say`` a line."""

    def __init__(
        self,
        step: Callable[[], Any] = _nothing,
        advance: Callable[[int], Any] = _nothing,
        begin: Callable[[str], Any] = _nothing,
        say: Callable[[str], Any] = _nothing,
    ) -> None:
        self._step, self._advance, self._begin, self._say = step, advance, begin, say

    def begin(self, title: str, total: int) -> None:
        self._begin(title)

    def advance(self, steps: int = 1) -> None:
        self._advance(steps)
        for _ in range(steps):
            self._step()

    def say(self, message: str) -> None:
        self._say(message)


def extraction(
    advance: Callable[[int], Any] = _nothing, say: Callable[[str], Any] = _nothing, **options: Any
) -> dict[str, Any]:
    """Return the keyword arguments of ``extract``."""
    return {"options": ExtractOptions(**options), "progress": Calls(advance=advance, say=say)}


CPU_RUN = RunOptions("fp32", torch.device("cpu"))
"""fp32 on the CPU, with checkpoints."""
