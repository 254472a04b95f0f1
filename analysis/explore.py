"""Look at results interactively: choose a student, a margin and a figure, and see the verdict change."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hskd.analysis.report.sheets import BYTES_SHARE, Sheet, verdicts_sheet
from hskd.analysis.stats.curves import points
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.joint import surface
from hskd.analysis.stats.sufficiency import MARGIN, NO_SPEC, Sufficiency, minimum_sufficient
from hskd.analysis.table import AXES, CSV_FILE, KEYS, Study, studies
from hskd.errors import HskdError, brief
from hskd.io import with_home
from hskd.results import TABLE_FILE, TRIALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hskd.analysis.widgets import Controls

FIGURES = {
    "curve": "Score against amount",
    "curve_relative": "Share of the gap that is closed",
    "sufficiency": "Loss against full HSK",
    "surface": "Mean scores by layers, tokens and neurons",
}
"""Titles of the figures, by the names of their files in a report."""
_DPI, _LINE = 100, 100
"""Dots an inch of a picture, characters of a line."""


@dataclass(frozen=True)
class Choice:
    """What is shown; see the arguments of :func:`explore`."""

    results: str
    student: str
    margin: float
    axis: str
    figure: str
    new_examples: bool


@dataclass(frozen=True, eq=False)
class _Source:
    """A study, and what does not depend on the margin."""

    study: Study

    @cached_property
    def points(self) -> pd.DataFrame:
        return points(self.study)

    @cached_property
    def answers(self) -> Answers | None:
        return Answers.read(self.study.folder, self.study)


class Explorer:
    """Results seen with one choice, which :meth:`choose` and, in Jupyter, widgets change."""

    choice: Choice
    answers: list[Sufficiency]
    """The verdict for each strategy."""

    def __init__(self, folders: Mapping[str, Path], student: str | None, **choice: Any) -> None:
        self.folders = dict(folders)
        self._sources: dict[str, dict[str, _Source]] = {}
        self._curves: dict[Any, Figure] = {}
        self._pictures: dict[Any, bytes] = {}
        self._controls: Controls | None = None
        first = next(iter(self.folders))
        self._show(Choice(results=first, student=self._label(first, student), **choice))

    def choose(self, **changes: Any) -> Explorer:
        """Change fields of :class:`Choice`, and return the explorer.

        Raises:
            HskdError: there is no such choice, or the folder cannot be read. The choice stays as it was.
        """
        folder, student = (changes.get(name, getattr(self.choice, name)) for name in ("results", "student"))
        if folder != self.choice.results and "student" not in changes:
            there = {source.study.student for source in self._studies(folder).values()}
            student = self.study.student if self.study.student in there else None
        self._show(replace(self.choice, **changes | {"student": self._label(folder, student)}))
        if self._controls is not None:
            self._controls.show()
        return self

    def _show(self, choice: Choice) -> None:
        _check(choice)
        source = self._studies(choice.results)[choice.student]
        kept = source.answers if choice.new_examples else None
        if choice.new_examples and kept is None:
            raise HskdError(f"new_examples: {choice.results} lacks predictions or labels. Choose new_examples=False.")
        self.answers = minimum_sufficient(source.study, choice.margin / 100, by=AXES[choice.axis], answers=kept)
        self.choice, self._source = choice, source

    def _studies(self, results: str) -> dict[str, _Source]:
        if results not in self.folders:
            raise HskdError(f"results: {brief(results)} is no folder here. Choose one of {', '.join(self.folders)}.")
        if results not in self._sources:
            read = studies(self.folders[results])
            self._sources[results] = dict(zip(_labels(read), map(_Source, read), strict=True))
        return self._sources[results]

    def _label(self, results: str, student: str | None) -> str:
        sources = self._studies(results)
        for label, source in sources.items():
            if student in (None, label, source.study.student):
                return label
        raise HskdError(f"student: {brief(student)} is not in {results}. Choose one of {', '.join(sources)}.")

    @property
    def students(self) -> list[str]:
        """The students of the folder, with what else tells its studies apart."""
        return [*self._studies(self.choice.results)]

    @property
    def study(self) -> Study:
        """The trials that are compared."""
        return self._source.study

    @property
    def verdict(self) -> str:
        """How little is enough at this margin, in the words of ``hskd report``: a line for each strategy."""
        return "\n".join(self._sentences)

    @property
    def _sentences(self) -> list[str]:
        return [answer.sentence for answer in self.answers] or [NO_SPEC]

    @property
    def sheet(self) -> Sheet:
        """The table as data and as text."""
        return verdicts_sheet(self._source.points, self.answers, self.study.unit)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each point: what it is, its score, loss and verdict; shares of 1."""
        return self.sheet.data

    @property
    def figure(self) -> Figure:
        """The chosen figure, drawn anew; an HskdError where the results do not allow it or matplotlib is missing."""
        return self._drawing()[0]()

    @property
    def caption(self) -> str:
        """What the figure shows, in sentences."""
        return self._drawing()[1]()

    def _drawing(self) -> tuple[Callable[[], Figure], Callable[[], str]]:
        """What draws the chosen figure, and what says what it shows."""
        try:
            from hskd.analysis.figures import marginal_utility as curve_of
            from hskd.analysis.figures import sufficiency as tests_of
            from hskd.analysis.figures import surface as surface_of
        except ModuleNotFoundError as error:
            library = str(error.name).partition(".")[0]
            raise HskdError(f"figure: {library} is not installed: pip install 'hskd[analysis]'.") from None
        name, study, answers = self.choice.figure, self.study, self.answers
        if name == "sufficiency":
            return partial(tests_of.sufficiency_figure, answers), partial(tests_of.caption, answers)
        if name == "surface":
            if study.dimension != "joint":
                raise HskdError(f"figure: only {study.dimension} varies in this study. Choose curve.")
            scores = surface(study)
            return partial(surface_of.surface_figure, scores), partial(surface_of.caption, scores)
        x, relative, table = AXES[self.choice.axis], name == "curve_relative", self._source.points
        return (
            partial(curve_of.marginal_utility_figure, study, x, relative, answers, table=table),
            partial(curve_of.caption, study, relative, answers, table=table),
        )

    @property
    def picture(self) -> bytes:
        """The figure as PNG, of which only what another margin changes is drawn anew."""
        choice, answers = self.choice, self.answers
        source = (choice.results, choice.student, choice.axis, choice.figure)
        # A curve shows the margin by its strip alone, which says what the verdicts say.
        verdicts = tuple((one.strategy, one.verdict, one.name, one.above) for one in answers)
        changing = {"surface": (), "sufficiency": (choice.margin, choice.new_examples)}.get(choice.figure, verdicts)
        if (source, changing) not in self._pictures:
            drawn = self._curves.get(source)
            if drawn is None or not self._moved(drawn):
                drawn = self.figure
            if choice.figure.startswith("curve"):
                self._curves[source] = drawn
            file = io.BytesIO()
            drawn.savefig(file, format="png", dpi=_DPI)
            self._pictures[source, changing] = file.getvalue()
        return self._pictures[source, changing]

    def _moved(self, curve: Figure) -> bool:
        from hskd.analysis.figures.marginal_utility import move_minimum

        return move_minimum(curve, self.study, self.answers, self._source.points, AXES[self.choice.axis])

    @property
    def widgets(self) -> Any:
        """A box of all widgets; an HskdError where ipywidgets is missing."""
        if self._controls is None:
            try:
                from hskd.analysis.widgets import Controls
            except ModuleNotFoundError as error:
                raise HskdError(f"widgets: {error.name} is not installed: pip install 'hskd[notebook]'.") from None
            self._controls = Controls(self)
        return self._controls.box

    def verdict_html(self) -> str:
        """The study's title and the verdict."""
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self._sentences)
        return f"<p><b>{escape(self.study.title)}</b></p>{sentences}"

    def table_html(self) -> str:
        """The table and what its columns mean."""
        sheet = self.sheet
        with pd.option_context("display.max_colwidth", None):
            return f"{sheet.text_table.to_html(index=False, border=0)}\n<p>{escape(sheet.about)}</p>"

    def _picture_html(self) -> str:
        try:
            encoded = base64.b64encode(self.picture).decode()
            alt = FIGURES[self.choice.figure]
            return f'<img alt="{alt}" src="data:image/png;base64,{encoded}"><p>{escape(self.caption)}</p>'
        except HskdError as error:
            return f"<p>{escape(str(error))}</p>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The widgets, and text for where they are not shown; without ipywidgets the figure too."""
        page = f"{self.verdict_html()}\n{self.table_html()}"
        try:
            bundle: dict[str, Any] = self.widgets._repr_mimebundle_()
        except HskdError:
            bundle, page = {}, f"{page}\n{self._picture_html()}"
        return {**bundle, "text/plain": repr(self), "text/html": page}

    def __repr__(self) -> str:
        sheet = self.sheet
        rows = sheet.text_table.rename(columns={BYTES_SHARE: "of full's"}).to_string(index=False)
        sentences = [textwrap.fill(sentence, _LINE) for sentence in (*self._sentences, sheet.about)]
        return "\n\n".join([self.study.title, *sentences[:-1], rows, sentences[-1]])


def explore(
    folder: str | Path | Iterable[str | Path],
    *,
    student: str | None = None,
    margin: float = 100 * MARGIN,
    axis: str = "bytes",
    figure: str = "curve",
    new_examples: bool = False,
) -> Explorer:
    """Show results in Jupyter: choose a student and a margin, and see the verdict, the table and the curve change.

    Without ipywidgets a cell shows text and a picture. Elsewhere print the explorer, or take its ``verdict``, ``table``
    and ``figure``.

    Args:
        folder: a results folder, its table as CSV, a folder of results folders, or several of these.
        student: of the folder [default: the first].
        margin: points of score that may be lost against full HSK.
        axis: what orders amounts: ``bytes`` an example, or ``values``, the fraction of full HSK's.
        figure: ``curve``, ``curve_relative``, ``sufficiency`` or ``surface``.
        new_examples: makes the verdict hold for new test examples too.

    Raises:
        HskdError: there are no results, they cannot be read, or there is no such choice.
    """
    given = [folder] if isinstance(folder, (str, Path)) else folder
    paths = list(dict.fromkeys(path for one in given for path in _results_at(Path(with_home(str(one))))))
    if not paths:
        raise HskdError("folder: none is given. Expected a results folder, such as results/mr-joint.")
    names = [path.resolve().name for path in paths]
    folders = dict(zip(names if len(set(names)) == len(names) else map(str, paths), paths, strict=True))
    return Explorer(folders, student, margin=margin, axis=axis, figure=figure, new_examples=new_examples)


def _results_at(path: Path) -> list[Path]:
    if path.is_file() or _holds_results(path):
        return [path]
    inner = [one for one in sorted(path.iterdir()) if _holds_results(one)] if path.is_dir() else []
    if not inner:
        problem = "holds no results, nor does a folder in it" if path.is_dir() else "does not exist"
        raise HskdError(f"folder: {path} {problem}. Expected what hskd grid run wrote: give the path of its results.")
    return inner


def _holds_results(path: Path) -> bool:
    return (path / TRIALS).is_dir() or any((path / name).is_file() for name in (TABLE_FILE, CSV_FILE))


def _labels(read: list[Study]) -> list[str]:
    """A name for each study of a folder: the student, and what else differs among them."""
    keys = [key for key in KEYS if key == "student" or len({getattr(one, key) for one in read}) > 1]
    keys.sort(key="student".__ne__)  # the student first
    return [
        " · ".join(f"{value:,} training examples" if isinstance(value, int) else value for value in values)
        for values in ([getattr(study, key) for key in keys] for study in read)
    ]


def _check(choice: Choice) -> None:
    margin = choice.margin
    if isinstance(margin, bool) or not isinstance(margin, Real) or not 0 <= margin < 100:
        raise HskdError(f"margin: {brief(margin)} is out of range. Expected points of score from 0 on, such as 0.5.")
    for name, value, known in (("axis", choice.axis, AXES), ("figure", choice.figure, FIGURES)):
        if value not in known:
            raise HskdError(f"{name}: {brief(value)} is unknown. Choose one of {', '.join(known)}.")
