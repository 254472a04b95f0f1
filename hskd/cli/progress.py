"""Progress on the terminal: bars where someone watches, plain lines where not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hskd import processes

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """One progress bar at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None
        self._overall: TaskID | None = None

    def begin(self, title: str, total: int) -> None:
        """Start a bar of ``total`` steps; the one before is finished."""
        self.end()
        if console.is_terminal:
            self._bar = self._progress.add_task(title, total=total)
        else:
            console.print(f"{title}: {total} steps")

    def advance(self, steps: int = 1) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._progress.advance(self._bar, steps)

    def step(self) -> None:
        """Move the bar on by one."""
        self.advance()

    def end(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        """A trial of a grid ended."""
        if self._overall is None and console.is_terminal:
            self._overall = self._progress.add_task("trials", total=total)
        if self._overall is not None:
            parts = ["trials", f"{running} running" if running else "", f"{failed} failed" if failed else ""]
            description = ", ".join(part for part in parts if part)
            self._progress.update(self._overall, completed=done + failed, description=description)
        self.say(f"{done + failed}/{total} {news}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        console.print(message)


@contextmanager
def display() -> Iterator[Display]:
    """A display for the length of a command."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console.quiet = not processes.is_main()
    with Progress(*columns, console=console, transient=True) as progress:
        shown = Display(progress)
        yield shown
        shown.end()
