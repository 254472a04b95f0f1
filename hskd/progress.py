"""The progress-reporting protocol, with a silent and a prefixing implementation.

The command line draws progress bars. Worker processes are silent.
"""

from __future__ import annotations

from typing import Protocol

from typing_extensions import override


class Progress(Protocol):
    """Receives the progress of long work."""

    def begin(self, title: str, total: int) -> None:
        """Begin a part of the work, with ``total`` steps."""

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` more steps as done."""

    def say(self, message: str) -> None:
        """Show a message of one line."""


class Silent(Progress):
    """Ignores all progress."""

    @override
    def begin(self, title: str, total: int) -> None: ...

    @override
    def advance(self, steps: int = 1) -> None: ...

    @override
    def say(self, message: str) -> None: ...


class Prefixed(Progress):
    """Passes progress on to ``progress``, with ``prefix`` before every title."""

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
