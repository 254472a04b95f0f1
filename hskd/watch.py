"""Who is told how far long work is; the command line draws it, workers keep silent."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Receives progress."""

    def begin(self, title: str, total: int) -> None:
        """A part of ``total`` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def say(self, message: str) -> None:
        """Something worth a line."""


class Silent:
    """Tells no one."""

    def begin(self, title: str, total: int) -> None:
        """See :class:`Watcher`."""

    def advance(self, steps: int = 1) -> None:
        """See :class:`Watcher`."""

    def say(self, message: str) -> None:
        """See :class:`Watcher`."""
