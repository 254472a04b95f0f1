"""Write a report: one page that says how little is enough, with its figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hskd.analysis.figures import equal_bytes as equal_bytes_of
from hskd.analysis.figures import marginal_utility as curve
from hskd.analysis.figures import next_byte as next_byte_of
from hskd.analysis.figures import pareto as pareto_of
from hskd.analysis.figures import strategies as strategies_of
from hskd.analysis.figures import style
from hskd.analysis.figures import sufficiency as sufficiency_of
from hskd.analysis.figures import surface as surface_of
from hskd.analysis.report import provenance, sheets
from hskd.analysis.report import verdict as verdict_of
from hskd.analysis.report.pictures import Picture, Texts, gain_texts, point_texts
from hskd.analysis.report.rendering import render
from hskd.analysis.report.sheets import Sheet
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.equal_bytes import equal_bytes, sentences
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


@dataclass
class PagePart:
    """A heading with the sentences, figures and tables below it. A sentence says what is missing."""

    title: str
    sentences: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Sheet] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """The part of the page about one study."""

    study: Study
    slug: str
    verdict: verdict_of.Verdict
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

    ``out`` gets ``index.html``, which needs no other file, ``figures/`` (PNG and SVG) and ``tables/`` (CSV with all
    digits, LaTeX as on the page). With several studies, each has its own folder with ``figures/`` and ``tables/``.
    For a results folder, ``trials.csv`` holds the trials. The same table gives the same bytes.

    Args:
        path: a results folder or a table (see :func:`hskd.analysis.table.read_trials`).
        out: folder of the report [default: ``report`` in the results folder].
        margin: loss against full HSK that still counts as enough, a share of 1.
        confidence: of intervals and claims.
        axis: what orders the amounts: ``bytes`` (an example) or ``values`` (the fraction of full HSK's values).

    Returns:
        The path of ``index.html``.

    Raises:
        HskdError: the table is refused, ``axis`` is unknown, or ``out`` cannot be written. With one seed or a missing
            arm there is no error: the report says what cannot be concluded.
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
    page = render(
        "report.html.j2",
        sections=sections,
        most_verdicts=verdict_of.MOST_VERDICTS,
        commands=provenance.commands(path, out, margin, axis),
        confidence=confidence,
    )
    if path.is_dir() and ResultsFolder(path).exists:
        write_csv(load(path), out / CSV_FILE)
    write_text(out / INDEX, page)
    return out / INDEX


def _slugs(all_studies: Sequence[Study]) -> list[str]:
    """A folder name for each study. Equal names get a number."""
    slugs: list[str] = []
    for study in all_studies:
        slug, number = study.slug, 1
        while slug in slugs:
            number += 1
            slug = f"{study.slug}-{number}"
        slugs.append(slug)
    return slugs


def _section(study: Study, out: Path, slug: str, margin: float, confidence: float, axis: str) -> Section:
    maker = _Maker(study, out, slug, margin, confidence, axis)
    parts = [maker.curve_part(), maker.minimum_part(), maker.strategies_part(), maker.joint_part()]
    return Section(study, slug, maker.verdict, maker.answers, parts, provenance.facts(study, study.folder))


class _Maker:
    """Makes the parts of one study's section and writes their files."""

    def __init__(self, study: Study, out: Path, slug: str, margin: float, confidence: float, axis: str) -> None:
        self.study = study
        self.axis = axis
        self.out = out
        self.slug = slug
        self.confidence = confidence
        self.points = points(study, confidence)
        self.points_sheet = sheets.points_sheet(self.points, study.unit)
        self.texts = point_texts(self.points_sheet, confidence)
        kept = Answers.read(study.folder, study)
        how: dict[str, Any] = {"margin": margin, "confidence": confidence, "by": AXES[axis]}
        self.these = minimum_sufficient(study, **how)
        self.new = minimum_sufficient(study, **how, answers=kept) if kept else []
        self.comparison = compare_strategies(study, confidence)
        evidence = verdict_of.Evidence(study, self.these, self.new, kept)
        self.verdict = verdict_of.verdict(evidence, self.points, AXES[axis])

    @property
    def answers(self) -> list[tuple[str, list[str]]]:
        """Headings, each with the sentences below it: the minimum first, then the strategies."""
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
        """The curves, with the scores and gains that they show."""
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
            say = partial(curve.caption, study, relative, minimum, confidence)
            self._draw(part, name, title, draw, say, self.texts | self._gain_texts(x))
        self._tabulate(part, self.points_sheet)
        steps = marginal_utility(study, confidence, AXES[self.axis])
        if steps.empty:
            part.sentences.append("Marginal utility: it takes two amounts of one strategy.")
        else:
            self._tabulate(part, sheets.marginal_utility_sheet(steps, AXES[self.axis]))
        return part

    def minimum_part(self) -> PagePart:
        """The tests behind the answers."""
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
        """Comparisons of selectors, mappings, precisions and losses."""
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
        """Figures and tables of a study in which several dimensions vary."""
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
        self._draw(part, "pareto", "Pareto front of score against bytes", draw, say, self.texts)
        compared = equal_bytes(study, confidence)
        draw, say = (
            partial(equal_bytes_of.equal_bytes_figure, study, compared),
            partial(equal_bytes_of.caption, compared, confidence),
        )
        self._draw(part, "equal_bytes", "Specs that take about the same bytes", draw, say, self.texts)
        part.sentences += sentences(compared, study.unit)
        draw, say = (
            partial(next_byte_of.next_byte_figure, study, steps),
            partial(next_byte_of.caption, steps, confidence),
        )
        self._draw(part, "next_byte", "Where the next byte goes", draw, say)
        if not scores.empty:
            self._tabulate(part, sheets.surface_sheet(scores, self.study.unit))
        if front["front"].any():
            self._tabulate(part, sheets.pareto_sheet(front, self.study.unit))
        if not compared.empty:
            self._tabulate(part, sheets.equal_bytes_sheet(compared, study.unit))
        if not steps.empty:
            self._tabulate(part, sheets.next_byte_sheet(steps))
        return part

    def _gain_texts(self, x: str) -> Texts:
        steps = marginal_utility(self.study, self.confidence, x)
        return {} if steps.empty else gain_texts(sheets.marginal_utility_sheet(steps, x), self.confidence)

    def _draw(
        self,
        part: PagePart,
        name: str,
        title: str,
        draw: Callable[[], Figure],
        say: Callable[[], str],
        texts: Texts | None = None,
    ) -> None:
        """Add a figure with the texts of its markers to a part. If it cannot be drawn, add a sentence that says why."""
        try:
            figure = draw()
        except HskdError as error:
            part.sentences.append(f"{title}: not drawn. {_sentence(str(error))}")
            return
        style.save(figure, self.out / "figures" / f"{name}.png")
        vector = style.save(figure, self.out / "figures" / f"{name}.svg")
        part.pictures.append(Picture.of(figure, vector, f"{self.slug}-{name}", title, say(), texts or {}))

    def _tabulate(self, part: PagePart, sheet: Sheet) -> None:
        sheet.write(self.out / "tables")
        part.tables.append(sheet)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
