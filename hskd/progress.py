"""Who is told how far long work is; the command line draws it, workers keep silent."""

from __future__ import annotations

from typing import Protocol

from typing_extensions import override


class Progress(Protocol):
    """Receives progress."""

    def begin(self, title: str, total: int) -> None:
        """A part of ``total`` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def say(self, message: str) -> None:
        """Something worth a line."""


class Silent(Progress):
    """Tells no one."""

    @override
    def begin(self, title: str, total: int) -> None: ...

    @override
    def advance(self, steps: int = 1) -> None: ...

    @override
    def say(self, message: str) -> None: ...


class Prefixed(Progress):
    """Passes progress on, with ``prefix`` before every title."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress = progress
        self._prefix = prefix

    @override
    def begin(self, title: str, total: int) -> None:
        self._progress.begin(f"{self._prefix}: {title}", total)

    @override
    def advance(self, steps: int = 1) -> None:
        self._progress.advance(steps)

    @override
    def say(self, message: str) -> None:
        self._progress.say(message)
