"""Find the least HSK that is enough for a task: ``hskd.find`` and its result."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hskd.analysis.report.distil_command import command_of
from hskd.errors import HskdError
from hskd.grid.changes import changed
from hskd.grid.executors import Executor, InProcess, Workers
from hskd.grid.spec import GridSpec
from hskd.minimum.finished import Finished, read_finished, write_finished
from hskd.minimum.live import Question, Runner, Trials, Watcher, grid_of, has_rates, record, settings_for
from hskd.minimum.search import Confirmation, Search, SearchSettings, Trial
from hskd.minimum.space import Space, with_constraints
from hskd.progress import Silent
from hskd.trials.config import Machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE, BUDGET = 0.5, 60
"""Defaults: points of score that a spec may lose, and the number of trials."""


@dataclass(frozen=True, eq=False, repr=False)
class FindResult(Finished):
    """The result of a search. Jupyter displays it as text, figure and table.

    Attributes:
        folder: of the results. The other attributes are those of :class:`~hskd.minimum.finished.Finished`.
    """

    folder: Path

    @classmethod
    def load(cls, folder: Path | str) -> FindResult:
        """Return the result of the search that ended in a folder. Neither data nor models are needed, and nothing runs.

        Raises:
            HskdError: no search ended there, or another version wrote its file.
            CorruptionError: the file is damaged.
        """
        return cls(**vars(read_finished(Path(folder))), folder=Path(folder))

    @property
    def answer(self) -> str | None:
        """The label of the cheapest spec that is shown to be enough; None where there is none."""
        return None if self.outcome.answer is None else self.chosen[self.outcome.answer].name

    @property
    def too_little(self) -> str | None:
        """The largest point that is shown not to be enough: a label, ``none`` for no HSK, or None."""
        index = self.outcome.too_little
        return None if index is None else "none" if index < 0 else self.chosen[index].name

    @property
    def margin(self) -> str:
        """The loss that is allowed, in words."""
        if self.settings.margin_share is not None:
            return f"{100 * self.settings.margin_share:g} % of the gap from none to full"
        return f"{100 * self.settings.tolerance:g} points"

    @property
    def limit(self) -> float:
        """The loss that is allowed, as a share of 1. A share of the gap is taken of the estimated gap."""
        gap = self.outcome.known.gap
        if self.settings.margin_share is None:
            return self.settings.tolerance
        return self.settings.margin_share * (-gap.mean if gap is not None else math.nan)

    @property
    def sentence(self) -> str:
        """The answer with its evidence."""
        outcome, trials = self.outcome, f"{self.outcome.known.trials} trials"
        sure = f"{100 * (1 - self.settings.level):g} % confidence, on these test examples"
        if outcome.answer is not None:
            size = self.chosen[outcome.answer].bytes_per_example
            part = f"{size:,.0f} bytes an example, {100 * size / self.full_bytes:.2g} % of those of full HSK"
            text = f"Enough: {self.answer} ({part}). {outcome.reason} It may lose {self.margin}. ({sure}, {trials}.)"
        else:
            text = f"{outcome.verdict[0].upper()}{outcome.verdict[1:]}. {outcome.reason} ({trials}.)"
        if self.too_little is not None:
            text += f" Shown not to be enough: {self.too_little}."
        return text

    @cached_property
    def tests(self) -> pd.DataFrame:
        """The tests on fresh seeds, a row per candidate, from the most bytes to the fewest.

        Columns: name, bytes_per_example, loss (against full, a share of 1), low, high (its bounds), n (seeds), verdict
        (``enough``, ``too little`` or ``not resolved``).
        """
        rows = [self._row(test) for test in self.outcome.known.tests]
        columns = ["name", "bytes_per_example", "loss", "low", "high", "n", "verdict"]
        return pd.DataFrame(rows, columns=columns).sort_values("bytes_per_example", ascending=False, ignore_index=True)

    def _row(self, test: Confirmation) -> dict[str, Any]:
        assert test.candidate is not None
        one, judgement = self.chosen[test.candidate], test.judgement
        shift = test.loss - judgement.mean  # the test is about the loss minus the loss that is allowed
        return {
            "name": one.name,
            "bytes_per_example": one.bytes_per_example,
            "loss": test.loss,
            "low": judgement.low + shift,
            "high": judgement.high + shift,
            "n": judgement.n,
            "verdict": "enough" if test.is_enough else "too little" if test.is_too_little else "not resolved",
        }

    @cached_property
    def screened(self) -> pd.DataFrame:
        """The results on search seeds, a row per candidate tried, from the fewest bytes to the most.

        Columns: name, bytes_per_example, n (seeds), loss (mean, against the mean of full), expected and spread (mean
        and spread of the loss as estimated from all screened candidates).
        """
        scores, first = self.outcome.scores, self.settings.first_search_seed
        full = [one.reported for seed, one in scores.get(("full", None), {}).items() if seed >= first]
        estimates, rows = self.outcome.known.estimates, []
        for (arm, index), by_seed in scores.items():
            values = [one.reported for seed, one in by_seed.items() if seed >= first]
            if arm == "spec" and index is not None and values and estimates is not None:
                one = self.chosen[index]
                loss = sum(full) / len(full) - sum(values) / len(values)
                expected, spread = float(estimates.mean[index]), float(estimates.spread[index])
                rows.append((one.name, one.bytes_per_example, len(values), loss, expected, spread))
        columns = ["name", "bytes_per_example", "n", "loss", "expected", "spread"]
        return pd.DataFrame(rows, columns=columns).sort_values("bytes_per_example", ignore_index=True)

    @property
    def gap(self) -> float:
        """The estimated score of full minus none, a share of 1; NaN where the search did not measure it."""
        return math.nan if self.outcome.known.gap is None else -self.outcome.known.gap.mean

    def figure(self) -> Figure:
        """Draw losses against full by bytes, of screened and of confirmed candidates."""
        from hskd.analysis.figures.minimum import minimum_figure

        return minimum_figure(self.tests, self.screened, self.limit, self.gap)

    def __repr__(self) -> str:
        return f"{self.title}\n{self.sentence}"

    def _repr_html_(self) -> str:
        from hskd.analysis.figures.style import DPI

        picture = io.BytesIO()
        self.figure().savefig(picture, format="png", dpi=DPI / 2)
        encoded = base64.b64encode(picture.getvalue()).decode()
        parts = [
            f"<p>{escape(self.sentence)}</p>",
            f'<img alt="Losses by bytes" src="data:image/png;base64,{encoded}">',
        ]
        parts.append(self.tests.to_html(index=False, float_format="{:.4g}".format))
        if self.command is not None:
            parts.append(f"<pre>{escape(self.command)}</pre>")
        return "\n".join(parts)


def find(  # noqa: PLR0913
    task: str,
    *,
    tolerance: float = TOLERANCE,
    margin_share: float | None = None,
    budget_trials: int = BUDGET,
    seconds: float | None = None,
    student: str | None = None,
    space: str | Space | None = None,
    constraints: Mapping[str, Any] | None = None,
    search_rates: bool | None = None,
    changes: Mapping[str, Any] | None = None,
    settings: SearchSettings | None = None,
    out: Path | str | None = None,
    work: Path | str = "work",
    workers: int = 1,
    executor: Executor | None = None,
    machine: Machine | None = None,
    watcher: Watcher | None = None,
) -> FindResult:
    """Find the cheapest spec that is shown to be enough, with few trials. A search that was stopped resumes.

    Args:
        task: a task, a preset, or the path of a grid's YAML file.
        tolerance: points of score that may be lost against full HSK.
        margin_share: used instead of ``tolerance``: the share of the gap from none to full that may be lost.
        budget_trials: largest number of trials, finished ones included.
        seconds: time after which no further trials begin.
        student: name of the student, where the grid has several.
        space: specs to choose from: a space, ``paper``, or the path of a YAML file [default: by the models' sizes].
        constraints: fields of the space, such as ``most_bytes``, ``most_layers`` and ``attention``.
        search_rates: whether learning rates are searched [default: where the grid has none, or one list by family].
        changes: dotted keys of the grid and their values, as ``hskd grid run --set`` takes them.
        settings: further settings of the search.
        out: folder of the results [default: ``results/find-NAME``].
        work: folder of artifacts, shared with grids.
        workers: number of trials that run at a time.
        executor: runs the trials [default: in this process, or in ``workers`` processes].
        machine: precision, device and threads [default: this machine's].
        watcher: receives progress reports.

    Raises:
        HskdError: an input cannot be read, no trial can be run, or the grid's rates by family are to be kept.
        MismatchError: ``out`` holds trials of another task, teacher, student or training.
    """
    grid = changed(grid_of(task), changes or {})
    grid = with_student(grid, student)
    if search_rates is None:
        search_rates = not has_rates(grid)
    if grid.rates:
        if not search_rates:
            raise HskdError(
                "rates: the grid lists rates by family, and a search tries specs of families that the list lacks. Use "
                "--rates search, or give one hsk_lr and prediction_lr under training instead of the list."
            )
        grid = grid.model_copy(update={"rates": ()})
    folder = Path(out) if out is not None else Path("results") / f"find-{grid.name}"
    machine = machine or Machine.here()
    trials = Trials(grid, machine, Path(work))
    asked = replace(
        settings or SearchSettings(), tolerance=tolerance / 100, margin_share=margin_share, budget=budget_trials
    )
    asked = settings_for(trials, asked, search_rates)
    chosen_space = space if isinstance(space, Space) else trials.space(space)
    chosen_space = with_constraints(chosen_space, constraints or {})
    chosen = trials.candidates(chosen_space)
    record(folder, Question(grid, chosen_space, asked, machine))
    full_bytes = trials.size_of(trials.full_spec)
    search = Search(chosen, full_bytes, asked)
    executor = executor or (Workers(workers) if workers > 1 else InProcess())
    runner = Runner(trials, chosen, folder, executor, watcher or _Quiet(), seconds)
    outcome = runner.run(search)
    command = None
    if outcome.answer is not None:
        rates = search.rates_of("spec", outcome.answer)
        command = command_of(trials.config(Trial("spec", outcome.answer, asked.first_seed, rates), chosen))
    title = f"{trials.grid.task.name} · {trials.student.name}"
    result = FindResult(outcome, chosen, full_bytes, asked, title, command, folder)
    write_finished(folder, result)
    return result


def find_each(task: str, students: Sequence[str] | None = None, **asked: Any) -> list[FindResult]:
    """Run one search per student of a grid. With several students, each has its own results folder.

    Args:
        task: as in :func:`find`.
        students: names of the students [default: all students of the grid].
        **asked: other arguments of :func:`find`.

    Raises:
        HskdError: as in :func:`find`, or the grid has no student of such a name.
    """
    grid = changed(grid_of(task), asked.get("changes") or {})
    names = list(students or [student.name for student in grid.students])
    for name in names:
        with_student(grid, name)
    folder = Path(asked.pop("out", None) or Path("results") / f"find-{grid.name}")
    return [find(task, student=name, out=folder / name if len(names) > 1 else folder, **asked) for name in names]


def with_student(grid: GridSpec, name: str | None) -> GridSpec:
    """Return the grid with only one of its students.

    Raises:
        HskdError: the grid has no student of that name, or has several students and ``name`` is None.
    """
    names = [student.name for student in grid.students]
    if name is None and len(names) == 1:
        return grid
    matching = [student for student in grid.students if student.name == name]
    if not matching:
        raise HskdError(f"--students {name or ''}: the grid {grid.name} has {', '.join(names)}; name one of them.")
    return grid.model_copy(update={"students": (matching[0],)})


class _Quiet(Silent):
    """Watcher that reports nothing."""

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None: ...

    def next_batch(self, batch: Any, search: Any, waiting: int) -> None: ...
