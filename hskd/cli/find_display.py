"""Display of a running search: what is known, what runs next and why, trials run and time left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hskd.cli.progress import Display, bars, console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from hskd.minimum.search import Batch, Search


class FindDisplay(Display):
    """A table of what is known above the progress bar, or plain lines without a terminal."""

    def __init__(self, progress: Any, live: Live | None) -> None:
        super().__init__(progress)
        self._live = live
        self._bars = progress
        self._started = time.monotonic()
        self._run = 0

    def next_batch(self, batch: Batch, search: Search, waiting: int) -> None:
        """Show the start of a batch; ``waiting`` of its trials have no result yet."""
        rows = known_rows(search, batch, waiting, self._time_left(search, batch))
        if self._live is None:
            if waiting:
                self.say("; ".join(f"{name}: {value}" for name, value in rows if name in ("stage", "next", "trials")))
            return
        from rich.console import Group

        self._live.update(Group(_grid(rows), self._bars))

    @override
    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        self._run += 1
        super().trials(done, failed, total, news, running)

    def _time_left(self, search: Search, batch: Batch) -> str:
        """Return the longest time left, at the pace so far."""
        if not self._run:
            return ""
        seconds = (time.monotonic() - self._started) / self._run * (search.settings.budget - search.known.trials)
        return f"at most {max(1, round(seconds / 60))} min"


def known_rows(search: Search, batch: Batch, waiting: int, time_left: str = "") -> list[tuple[str, str]]:
    """Return what a search knows, as names and values."""
    known, settings = search.known, search.settings
    done = "" if waiting == len(batch.trials) else f" ({len(batch.trials) - waiting} done already)"
    rows = [("stage", batch.stage), ("next", f"{batch.why}: {len(batch.trials)} trials{done}")]
    if known.gap is not None and not math.isnan(known.gap.mean):
        state = {"below": "shown", "open": "not shown yet"}.get(known.gap.verdict, "not shown")
        rows.append(("gap", f"{-100 * known.gap.mean:.2f} points ({state}, {known.gap.n} seeds)"))
    for test in known.tests:
        if test.candidate is not None and test.judgement.n:
            one = search.chosen[test.candidate]
            verdict = "enough" if test.is_enough else "too little" if test.is_too_little else test.judgement.verdict
            text = (
                f"{one.bytes_per_example:,.0f} bytes, loses {100 * test.loss:.2f}: {verdict} ({test.judgement.n} seeds)"
            )
            rows.append((one.name, text))
    rows.append(("trials", f"{known.trials} of {settings.budget}" + (f", {time_left}" if time_left else "")))
    return rows


def _grid(rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    return table


@contextmanager
def find_display() -> Iterator[FindDisplay]:
    """Show a display for the duration of a search."""
    from rich.live import Live

    drawn = bars(auto_refresh=False)
    live = Live(drawn, console=console(), transient=True) if console().is_terminal else None
    with live if live is not None else nullcontext():
        display = FindDisplay(drawn, live)
        yield display
        display.end()
