"""Look at results interactively: choose trials, a margin and a figure, and see the verdict change."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
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
    import ipywidgets
    from matplotlib.figure import Figure

    from hskd.analysis.widgets import Controls

FIGURES = {
    "curve": "Score against amount",
    "curve_relative": "Share of the gap that is closed",
    "sufficiency": "Loss against full HSK",
    "surface": "Mean scores by layers, tokens and neurons",
}
"""The figures by the names that their files have in a report, and their titles."""
_PICTURE_DPI = 100
_WIDTH = 100
"""Characters of a line of the verdict in a terminal."""


@dataclass(frozen=True)
class Choice:
    """What an explorer shows.

    Attributes:
        results: name of the results folder.
        student: the student, with whatever else tells the studies of the folder apart.
        margin: points of score that may be lost against full HSK and still be enough.
        axis: what orders amounts: ``bytes`` an example, or ``values``, the fraction of full HSK's.
        figure: one of ``FIGURES``.
        new_examples: whether the verdict is for new test examples like these, or for these very ones.
    """

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
    """Results seen with one choice of student, margin and figure. In Jupyter it shows itself with widgets.

    :meth:`choose` changes the choice, and so do the widgets.
    """

    choice: Choice
    """What is shown."""
    answers: list[Sufficiency]
    """The verdict for each strategy, as :func:`~hskd.analysis.stats.sufficiency.minimum_sufficient` gives it."""

    def __init__(self, folders: Mapping[str, Path], **choice: Any) -> None:
        self.folders = dict(folders)
        """The results folders by name."""
        self._sources: dict[str, dict[str, _Source]] = {}
        self._curves: dict[Any, Figure] = {}
        self._pictures: dict[Any, bytes] = {}
        self._controls: Controls | None = None
        first = next(iter(self.folders))
        student = choice.pop("student", None)
        self._show(Choice(results=first, student=self._label(first, student), **choice))

    def choose(
        self,
        *,
        results: str | None = None,
        student: str | None = None,
        margin: float | None = None,
        axis: str | None = None,
        figure: str | None = None,
        new_examples: bool | None = None,
    ) -> Explorer:
        """Change the choice, keep whatever is not given, and return the explorer.

        Args:
            results: name of a folder; its study of the same student is shown, or else its first.
            student: a student of the folder.
            margin: points of score.
            axis: ``bytes`` or ``values``.
            figure: one of ``FIGURES``.
            new_examples: makes the verdict hold for new test examples too.

        Raises:
            HskdError: there is no such choice, or the folder cannot be read. The choice stays as it was.
        """
        before = self.choice
        folder = before.results if results is None else results
        if student is None and folder != before.results:
            same = self._source.study.student
            student = same if any(one.study.student == same for one in self._studies(folder).values()) else None
        elif student is None:
            student = before.student
        others = {"margin": margin, "axis": axis, "figure": figure, "new_examples": new_examples}
        given = {name: value for name, value in others.items() if value is not None}
        self._show(replace(before, results=folder, student=self._label(folder, student), **given))
        if self._controls is not None:
            self._controls.show()
        return self

    def _show(self, choice: Choice) -> None:
        _check(choice)
        source = self._studies(choice.results)[choice.student]
        kept = source.answers if choice.new_examples else None
        if choice.new_examples and kept is None:
            raise HskdError(
                f"new_examples: the predictions or labels of {choice.results} are not kept, so nothing is known of new "
                "test examples; leave it out."
            )
        self.answers = minimum_sufficient(source.study, choice.margin / 100, by=AXES[choice.axis], answers=kept)
        self.choice, self._source = choice, source

    def _studies(self, results: str) -> dict[str, _Source]:
        if results not in self.folders:
            raise HskdError(f"results: {brief(results)} is not among the folders; choose {_either(self.folders)}.")
        if results not in self._sources:
            read = studies(self.folders[results])
            self._sources[results] = dict(zip(_labels(read), map(_Source, read), strict=True))
        return self._sources[results]

    def _label(self, results: str, student: str | None) -> str:
        """What the study of a student is called among those of its folder; by default the first."""
        sources = self._studies(results)
        matching = [label for label, one in sources.items() if student in (None, label, one.study.student)]
        if not matching:
            raise HskdError(f"student: {brief(student)} is not in {results}; choose {_either(sources)}.")
        return matching[0]

    @property
    def students(self) -> list[str]:
        """The students to choose from, in the results folder that is chosen."""
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
        """The table, with the same in text for people."""
        return verdicts_sheet(self._source.points, self.answers, self.study.unit)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each point, from the least HSK up.

        The columns are arm, name, strategy, fraction, bytes_per_example, bytes_share, mean, low, high and n (see
        :func:`~hskd.analysis.stats.curves.points`); loss, loss_low and loss_high (against full, with one-sided bounds;
        shares of 1) and verdict (of each point by itself).
        """
        return self.sheet.data

    @property
    def figure(self) -> Figure:
        """The chosen figure, drawn anew.

        Raises:
            HskdError: the results do not allow it, or matplotlib is missing.
        """
        study, name = self.study, self.choice.figure
        modules = _figures()
        if name == "sufficiency":
            return modules.sufficiency.sufficiency_figure(self.answers)
        if name == "surface":
            return modules.surface.surface_figure(self._surface())
        x, relative = AXES[self.choice.axis], name == "curve_relative"
        table = self._source.points
        return modules.marginal_utility.marginal_utility_figure(study, x, relative, self.answers, table=table)

    @property
    def caption(self) -> str:
        """What the chosen figure shows, in sentences.

        Raises:
            HskdError: as :attr:`figure`.
        """
        name, modules = self.choice.figure, _figures()
        if name == "sufficiency":
            return modules.sufficiency.caption(self.answers)
        if name == "surface":
            return modules.surface.caption(self._surface())
        relative, table = name == "curve_relative", self._source.points
        return modules.marginal_utility.caption(self.study, relative, self.answers, table=table)

    def _surface(self) -> pd.DataFrame:
        if self.study.dimension != "joint":
            raise HskdError(f"figure: only {self.study.dimension} varies in this study; choose curve.")
        return surface(self.study)

    @property
    def picture(self) -> bytes:
        """The chosen figure as PNG. Where only the margin has changed, no more is drawn anew than that changes.

        Raises:
            HskdError: as :attr:`figure`.
        """
        choice, answers = self.choice, self.answers
        source = (choice.results, choice.student, choice.axis, choice.figure)
        # A curve shows the margin by its strip alone, which says what the verdicts say.
        verdicts = tuple((one.strategy, one.verdict, one.name, one.above) for one in answers)
        changing = {"surface": (), "sufficiency": (choice.margin, choice.new_examples)}.get(choice.figure, verdicts)
        key = (*source, changing)
        if key not in self._pictures:
            drawn = self._curves.get(source)
            move = _figures().marginal_utility.move_minimum
            table = self._source.points
            if drawn is None or not move(drawn, self.study, answers, table, AXES[choice.axis]):
                drawn = self.figure
            if choice.figure.startswith("curve"):
                self._curves[source] = drawn
            file = io.BytesIO()
            drawn.savefig(file, format="png", dpi=_PICTURE_DPI)
            self._pictures[key] = file.getvalue()
        return self._pictures[key]

    @property
    def widgets(self) -> ipywidgets.VBox:
        """The widgets, for a layout of your own.

        Raises:
            HskdError: ipywidgets is missing.
        """
        if self._controls is None:
            try:
                from hskd.analysis.widgets import Controls
            except ModuleNotFoundError as error:
                raise HskdError(
                    f"widgets: need {error.name}, which is not installed: pip install 'hskd[notebook]'. Without it, "
                    "change the choice with choose(margin=1)."
                ) from None
            self._controls = Controls(self)
        return self._controls.box

    def verdict_html(self) -> str:
        """The study's title and the verdict as HTML."""
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self._sentences)
        return f"<p><b>{escape(self.study.title)}</b></p>{sentences}"

    def table_html(self) -> str:
        """The table and what its columns mean, as HTML."""
        sheet = self.sheet
        with pd.option_context("display.max_colwidth", None):
            table = sheet.text_table.to_html(index=False, border=0)
        return f"{table}\n<p>{escape(sheet.about)}</p>"

    def _picture_html(self) -> str:
        try:
            encoded = base64.b64encode(self.picture).decode()
            title = escape(FIGURES[self.choice.figure])
            return f'<img alt="{title}" src="data:image/png;base64,{encoded}"><p>{escape(self.caption)}</p>'
        except HskdError as error:
            return f"<p>{escape(str(error))}</p>"

    def _repr_mimebundle_(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> dict[str, Any]:
        """The widgets, with verdict and table for where they are not shown; without ipywidgets the figure too."""
        page = f"{self.verdict_html()}\n{self.table_html()}"
        try:
            bundle: dict[str, Any] = self.widgets._repr_mimebundle_()
        except HskdError:
            bundle, page = {}, f"{page}\n{self._picture_html()}"
        return {**bundle, "text/plain": repr(self), "text/html": page}

    def __repr__(self) -> str:
        sheet = self.sheet
        sentences = [textwrap.fill(text, _WIDTH) for text in (self.study.title, *self._sentences)]
        rows = sheet.text_table.rename(columns={BYTES_SHARE: "of full's"}).to_string(index=False)
        return "\n\n".join([*sentences, rows, textwrap.fill(sheet.about, _WIDTH)])


def explore(
    folder: str | Path | Iterable[str | Path],
    *,
    student: str | None = None,
    margin: float = 100 * MARGIN,
    axis: str = "bytes",
    figure: str = "curve",
    new_examples: bool = False,
) -> Explorer:
    """Show results in Jupyter, to choose a student and a margin and to see the verdict, the table and the curve change.

    In Jupyter the last line of a cell shows the widgets; without ipywidgets it shows the same as text and a picture.
    Elsewhere print the explorer, or take its ``verdict``, ``table`` and ``figure``.

    Args:
        folder: a results folder, its table as CSV, a folder of results folders, or several of these.
        student: the student that is shown first [default: the first of the results].
        margin: points of score that may be lost against full HSK and still be enough.
        axis: what orders amounts: ``bytes`` an example, or ``values``, the fraction of full HSK's.
        figure: ``curve``, ``curve_relative``, ``sufficiency`` or ``surface``.
        new_examples: makes the verdict hold for new test examples too, where the trials' predictions are kept.

    Raises:
        HskdError: there are no results, they cannot be read, or there is no such choice.
    """
    return Explorer(
        _folders(folder), student=student, margin=margin, axis=axis, figure=figure, new_examples=new_examples
    )


def _figures() -> Any:
    """The package of figures, with the modules that are needed here.

    Raises:
        HskdError: a library that draws is missing.
    """
    try:
        from hskd.analysis import figures
        from hskd.analysis.figures import marginal_utility, sufficiency, surface  # noqa: F401
    except ModuleNotFoundError as error:
        needs = f"figure: needs {error.name}, which is not installed: pip install 'hskd[analysis]'."
        raise HskdError(needs) from None
    return figures


def _folders(folder: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """The results folders that are meant, by their names; by their paths where two have one name."""
    given = [folder] if isinstance(folder, (str, Path)) else [*folder]
    paths = list(dict.fromkeys(path for one in given for path in _results_at(Path(with_home(str(one))))))
    if not paths:
        raise HskdError("folder: none is given; expected a results folder, such as results/mr-joint.")
    names = [path.resolve().name for path in paths]
    return dict(zip(names if len(set(names)) == len(names) else map(str, paths), paths, strict=True))


def _results_at(path: Path) -> list[Path]:
    if path.is_file() or _holds_results(path):
        return [path]
    if not path.is_dir():
        raise HskdError(f"folder: {path} does not exist; expected the folder of a grid's results. Give its path.")
    inner = sorted(one for one in path.iterdir() if one.is_dir() and _holds_results(one))
    if not inner:
        raise HskdError(
            f"folder: {path} holds no results, and no folder in it does; expected the folder of a grid's results. Run "
            "the grid first (hskd grid run), or give the path of its results."
        )
    return inner


def _holds_results(path: Path) -> bool:
    return (path / TRIALS).is_dir() or (path / TABLE_FILE).is_file() or (path / CSV_FILE).is_file()


def _labels(read: list[Study]) -> list[str]:
    """A name for each study of a folder: the student, and what else differs among them."""
    columns = ["student", *(key for key in KEYS if key != "student" and len({getattr(one, key) for one in read}) > 1)]

    def text(study: Study, column: str) -> str:
        value = getattr(study, column)
        return f"{value:,} training examples" if column == "train_examples" else str(value)

    return [" · ".join(text(study, column) for column in columns) for study in read]


def _check(choice: Choice) -> None:
    margin = choice.margin
    if isinstance(margin, bool) or not isinstance(margin, Real) or not 0 <= margin < 100:
        raise HskdError(f"margin: {brief(margin)} is out of range; expected points of score from 0 on, such as 0.5.")
    for name, value, known in (("axis", choice.axis, AXES), ("figure", choice.figure, FIGURES)):
        if value not in known:
            raise HskdError(f"{name}: {brief(value)} is unknown; choose {_either(known)}.")


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
