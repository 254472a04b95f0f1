"""The report: one page that answers how little is enough, with every figure and table that the results allow."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from hskd.analysis.figures import marginal_utility as curve
from hskd.analysis.figures import next_byte as next_byte_of
from hskd.analysis.figures import pareto as pareto_of
from hskd.analysis.figures import strategies as strategies_of
from hskd.analysis.figures import style
from hskd.analysis.figures import sufficiency as sufficiency_of
from hskd.analysis.figures import surface as surface_of
from hskd.analysis.report import provenance, sheets
from hskd.analysis.report.sheets import Sheet
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.joint import next_byte, pareto, surface
from hskd.analysis.stats.strategies import by_amount, compare_strategies, winners
from hskd.analysis.stats.sufficiency import MARGIN, NO_SPEC, minimum_sufficient
from hskd.analysis.table import AXES, CSV_FILE, Study, studies
from hskd.errors import HskdError
from hskd.io import write_text
from hskd.results import ResultsFolder, load, write_csv
from hskd.statistics import CONFIDENCE

INDEX = "index.html"

_CURVE_TITLES = {"bytes": "Score against bytes", "values": "Score against the fraction of full HSK's values"}


@dataclass(frozen=True)
class Picture:
    """A figure on the page: what it shows, the SVG in base64, and whether it is as wide as a column only."""

    title: str
    caption: str
    svg: str
    half: bool


@dataclass
class PagePart:
    """A heading of the page, and below it sentences, figures and tables; a sentence says what is missing."""

    title: str
    sentences: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Sheet] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """What the page says of one study."""

    study: Study
    slug: str
    answers: list[tuple[str, list[str]]]
    parts: list[PagePart]
    facts: provenance.Facts


def write_report(
    path: Path,
    out: Path | None = None,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    axis: str = "bytes",
) -> Path:
    """Write the report on a table of results.

    ``out`` gets ``index.html``, which needs no other file, ``figures/`` (PNG and SVG) and ``tables/`` (CSV with every
    number, LaTeX as on the page); of several studies each has these two in a folder of its own. The trials of a results
    folder are in ``trials.csv``. The same table gives the same bytes.

    Args:
        path: a results folder or a table (see :func:`hskd.analysis.table.read_trials`).
        out: folder of the report [default: ``report`` in the results folder].
        margin: what may be lost against full HSK and still be called enough, a share of 1.
        confidence: of intervals and claims.
        axis: what orders the amounts: ``bytes`` an example, or ``values``, the fraction of full HSK's.

    Returns:
        The path of ``index.html``.

    Raises:
        HskdError: the table is refused, ``axis`` is neither, or ``out`` cannot be written. One seed or a missing arm is
            no error: the report then says what cannot be said.
    """
    path = Path(path)
    if axis not in AXES:
        raise HskdError(f"axis: {axis!r}: expected {' or '.join(AXES)}.")
    out = out or (path if path.is_dir() else path.parent) / "report"
    all_studies = studies(path)
    slugs = _slugs(all_studies)
    sections = [
        _section(study, out / slug if len(slugs) > 1 else out, slug, margin, confidence, axis)
        for study, slug in zip(all_studies, slugs, strict=True)
    ]
    environment = Environment(
        loader=PackageLoader("hskd.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        sections=sections,
        commands=provenance.commands(path, out, margin, axis),
        confidence=confidence,
    )
    if path.is_dir() and ResultsFolder(path).exists:
        write_csv(load(path), out / CSV_FILE)
    write_text(out / INDEX, page)
    return out / INDEX


def _slugs(all_studies: Sequence[Study]) -> list[str]:
    """A file name for each study; names that differ only in signs get a number."""
    slugs: list[str] = []
    for study in all_studies:
        slug, number = study.slug, 1
        while slug in slugs:
            number += 1
            slug = f"{study.slug}-{number}"
        slugs.append(slug)
    return slugs


def _section(study: Study, out: Path, slug: str, margin: float, confidence: float, axis: str) -> Section:
    maker = _Maker(study, out, margin, confidence, axis)
    parts = [maker.curve_part(), maker.minimum_part(), maker.strategies_part(), maker.joint_part()]
    return Section(study, slug, maker.answers, parts, provenance.facts(study, study.folder))


class _Maker:
    """Makes the parts of one study's section, and writes their files."""

    def __init__(self, study: Study, out: Path, margin: float, confidence: float, axis: str) -> None:
        self.study = study
        self.axis = axis
        self.out = out
        self.confidence = confidence
        kept = Answers.read(study.folder, study)
        how: dict[str, Any] = {"margin": margin, "confidence": confidence, "by": AXES[axis]}
        self.these = minimum_sufficient(study, **how)
        self.new = minimum_sufficient(study, **how, answers=kept) if kept else []
        self.comparison = compare_strategies(study, confidence)

    @property
    def answers(self) -> list[tuple[str, list[str]]]:
        """Headings and the sentences that answer the question, the minimum first."""
        if not self.study.strategies:
            return [("Nothing can be said", [NO_SPEC])]
        headed_answers = [("On these very test examples", [answer.sentence for answer in self.these])]
        missing = "Not known: the predictions of the trials, or the labels, are not kept beside this table."
        headed_answers.append(
            ("For new test examples like these", [answer.sentence for answer in self.new] or [missing])
        )
        better = [f"{dimension}: {sentence}" for dimension, (_, sentence) in winners(self.comparison).items()]
        return [*headed_answers, ("Which strategy", better)] if better else headed_answers

    def curve_part(self) -> PagePart:
        """The curves, and the scores behind them."""
        study, confidence = self.study, self.confidence
        part = PagePart("Score against amount")
        [other] = set(AXES) - {self.axis}
        curves = (
            ("curve", _CURVE_TITLES[self.axis], self.axis, False),
            (f"curve_{other}", _CURVE_TITLES[other], other, False),
            ("curve_relative", "Share of the gap that is closed", self.axis, True),
        )
        for name, title, along, relative in curves if study.strategies else curves[:1]:
            x, minimum = AXES[along], self.these if along == self.axis else ()
            draw = partial(curve.marginal_utility_figure, study, x, relative, minimum, confidence=confidence)
            self._draw(part, name, title, draw, partial(curve.caption, study, relative, minimum, confidence))
        self._tabulate(part, sheets.points_sheet(points(study, confidence), study.unit))
        steps = marginal_utility(study, confidence, AXES[self.axis])
        if steps.empty:
            part.sentences.append("Marginal utility: it takes two amounts of one strategy.")
        else:
            self._tabulate(part, sheets.marginal_utility_sheet(steps, AXES[self.axis]))
        return part

    def minimum_part(self) -> PagePart:
        """The tests that the answers rest on."""
        part = PagePart("How sure the minimum is")
        for name, title, answers in (
            ("sufficiency", "Loss against full HSK, these test examples", self.these),
            ("sufficiency_new_examples", "Loss against full HSK, new test examples", self.new),
        ):
            if answers or answers is self.these:
                draw = partial(sufficiency_of.sufficiency_figure, answers)
                self._draw(part, name, title, draw, partial(sufficiency_of.caption, answers))
        tested = [answer for answer in (*self.these, *self.new) if not answer.tests.empty]
        if tested:
            self._tabulate(part, sheets.minimum_sheet(tested))
        return part

    def strategies_part(self) -> PagePart:
        """Which selector, mapping or precision is better."""
        part = PagePart("Strategies at equal amounts")
        if self.comparison.empty:
            part.sentences.append("Strategies: only one per dimension, so there is nothing to compare.")
            return part
        draw = partial(strategies_of.strategies_figure, self.comparison)
        say = partial(strategies_of.caption, self.comparison, self.confidence)
        self._draw(part, "strategies", "Differences between strategies", draw, say)
        self._tabulate(part, sheets.strategies_sheet(self.comparison))
        self._tabulate(part, sheets.by_amount_sheet(by_amount(self.study, self.confidence)))
        return part

    def joint_part(self) -> PagePart:
        """All dimensions together."""
        study, confidence = self.study, self.confidence
        part = PagePart("Several dimensions at once")
        if study.dimension != "joint":
            part.sentences.append(f"Joint: only {study.dimension} varies in this study.")
            return part
        scores, front, steps = surface(study), pareto(study, confidence), next_byte(study, confidence)
        title = "Mean scores by layers, tokens and neurons"
        self._draw(
            part, "surface", title, partial(surface_of.surface_figure, scores), partial(surface_of.caption, scores)
        )
        draw, say = partial(pareto_of.pareto_figure, study, front), partial(pareto_of.caption, front, confidence)
        self._draw(part, "pareto", "Pareto front of score against bytes", draw, say)
        draw, say = (
            partial(next_byte_of.next_byte_figure, study, steps),
            partial(next_byte_of.caption, steps, confidence),
        )
        self._draw(part, "next_byte", "Where the next byte goes", draw, say)
        if not scores.empty:
            self._tabulate(part, sheets.surface_sheet(scores, self.study.unit))
        if front["front"].any():
            self._tabulate(part, sheets.pareto_sheet(front, self.study.unit))
        if not steps.empty:
            self._tabulate(part, sheets.next_byte_sheet(steps))
        return part

    def _draw(self, part: PagePart, name: str, title: str, draw: Callable[[], Figure], say: Callable[[], str]) -> None:
        """Add a figure to a part; where the results do not allow it, the sentence that says why."""
        try:
            figure = draw()
        except HskdError as error:
            part.sentences.append(f"{title}: not drawn. {_sentence(str(error))}")
            return
        style.save(figure, self.out / "figures" / f"{name}.png")
        vector = style.save(figure, self.out / "figures" / f"{name}.svg")
        encoded = base64.b64encode(vector.read_bytes()).decode()
        part.pictures.append(Picture(title, say(), encoded, figure.get_figwidth() <= style.COLUMN))

    def _tabulate(self, part: PagePart, sheet: Sheet) -> None:
        sheet.write(self.out / "tables")
        part.tables.append(sheet)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
