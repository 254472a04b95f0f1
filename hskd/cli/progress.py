"""Progress on the terminal: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hskd import processes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


@cache
def console() -> Console:
    """Return the console for messages on stderr, without markup. It imports rich, which usage errors do not need."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def tables(width: int | None = None) -> Console:
    """Return the console for tables on stdout. It prints names verbatim, including brackets."""
    from rich.console import Console

    return Console(width=width, highlight=False, markup=False, emoji=False)


class _Notices(logging.Handler):
    """Prints messages of the logger ``hskd``, each line once, in the main process."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._printed: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._printed and processes.launched()[0] == 0:
            self._printed.add(message)
            console().print(f"warning: {message}" if record.levelno >= logging.WARNING else message)


def print_notices() -> None:
    """Print messages of the logger ``hskd``, such as the kind of a task, and hskd's own warnings as lines."""
    logger = logging.getLogger("hskd")
    if any(isinstance(handler, _Notices) for handler in logger.handlers):
        return
    logger.addHandler(_Notices())
    logger.setLevel(logging.INFO)
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *place: Any) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            logger.warning("%s", message)
        else:
            others(message, category, filename, lineno, *place)

    warnings.showwarning = show  # type: ignore[assignment]


_PACKAGE = Path(__file__).resolve().parents[1]

LINE_SECONDS = 15.0
"""Seconds between two lines about the same work when there is no terminal."""


class Lines:
    """Progress of one piece of work as lines of text, for logs."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._started = self._last_line = time.monotonic()
        console().print(f"{title}: {total} steps")

    def advance(self, steps: int) -> None:
        """Count ``steps``, and print a line if the last line is at least ``LINE_SECONDS`` old."""
        self._done += steps
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            minutes, seconds = divmod(round(now - self._started), 60)
            console().print(f"{self._title}: {self._done}/{self._total} steps, {minutes}:{seconds:02}")


class Display:
    """One progress bar at a time, or lines without a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None
        self._lines: Lines | None = None
        self._overall: TaskID | None = None

    def begin(self, title: str, total: int) -> None:
        """Start a bar of ``total`` steps, and finish the previous bar."""
        self.end()
        if console().is_terminal:
            self._bar = self._progress.add_task(title, total=total)
        else:
            self._lines = Lines(title, total)

    def advance(self, steps: int = 1) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._progress.advance(self._bar, steps)
        elif self._lines is not None:
            self._lines.advance(steps)

    def step(self) -> None:
        """Advance the bar by one."""
        self.advance()

    def end(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None
        self._lines = None

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """Show that a trial of a grid ended."""
        if self._overall is None and console().is_terminal:
            self._overall = self._progress.add_task("trials", total=total)
        if self._overall is not None:
            parts = ["trials", f"{running} running" if running else "", f"{failed} failed" if failed else ""]
            description = ", ".join(part for part in parts if part)
            self._progress.update(self._overall, completed=done + failed, description=description)
        self.say(f"{done + failed}/{total} {news}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        console().print(message)


def bars(**options: Any) -> Progress:
    """Return bars with counts and times; ``options`` are those of ``rich.progress.Progress``."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console(), **options)


@contextmanager
def display() -> Iterator[Display]:
    """Show a display for the duration of a command."""
    console().quiet = not processes.is_main()
    drawn = bars(transient=True)
    # Without a terminal, an empty rich display would still print an empty line.
    with drawn if console().is_terminal else nullcontext():
        progress = Display(drawn)
        yield progress
        progress.end()
