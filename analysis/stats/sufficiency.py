"""Find the least HSK that is enough: the smallest amount shown to lose less than a margin against full HSK.

Amounts are ordered beforehand, and tested from the largest down, each at the full level, until a test fails. This
fixed-sequence procedure needs no correction for multiple tests: the claim is wrong at most as often as one test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import pandas as pd

from hskd.analysis.stats.curves import NONE, contrast
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.intervals import MIN_SEEDS, MOST_SEEDS, Estimate, Interval, seeds_to_show_no_loss
from hskd.analysis.table import AMOUNT_COLUMNS, Study
from hskd.errors import HskdError
from hskd.statistics import CONFIDENCE, POWER

MARGIN = 0.005
"""Loss of score against full HSK at which an amount is still enough: half a point."""
NO_SPEC = "No trial of the arm spec is done, so there is nothing to compare."
"""The answer for a study without specs."""


@dataclass(frozen=True, eq=False)
class Sufficiency:
    """The least sufficient amount of one strategy: more than ``above``, at most ``name``, each at the confidence.

    Attributes:
        strategy: of the specs (see :class:`~hskd.analysis.table.Study`).
        verdict: ``sufficient`` (``name`` is enough), ``all`` (the largest amount below full is not enough, so ``name``
            is full), or ``undetermined``.
        reason: the evidence, or what is missing, in words.
        name: the smallest point shown to lose less than the margin; empty where undetermined.
        fraction: its share of full HSK; NaN where undetermined.
        bytes_per_example: its size on disk; NaN where undetermined.
        above: the largest insufficient point: it and all smaller points, *none* included, are shown to lose more than
            the margin. Empty where there is no such point.
        above_fraction: its share of full HSK; NaN where there is no such point.
        margin: the allowed loss, in words.
        limit: the allowed loss, as a score (a share of 1).
        gap: *full* - *none*, with its two-sided interval.
        gap_shown: whether the gap is shown to be wide enough for a verdict: more than the margin, or above 0 if a share
            of it may be lost. None where too little ran to test that.
        seeds_needed: number of seeds for a decision at the largest amount below full, if it loses nothing (80 %
            power). None where the verdict does not need it, or where more seeds would not be enough.
        confidence: of every claim (one-sided).
        new_examples: whether the claims cover new test examples of the same kind, or only these test examples.
        tests: a row per amount, from *none* to the largest below full: name, amount, loss against full, low and high
            (its one-sided bounds), n (seeds), verdict of this amount alone (``sufficient``, ``insufficient``,
            ``not resolved`` or ``too few seeds``).
    """

    strategy: str
    verdict: str
    reason: str
    name: str
    fraction: float
    bytes_per_example: float
    above: str
    above_fraction: float
    margin: str
    limit: float
    gap: Interval
    gap_shown: bool | None
    seeds_needed: int | None
    confidence: float
    new_examples: bool
    tests: pd.DataFrame = field(repr=False)

    @property
    def sentence(self) -> str:
        """The answer with its evidence."""
        whose = f" ({self.strategy})" if self.strategy else ""
        scope = "for new test examples like these" if self.new_examples else "on these very test examples"
        sure = f"{100 * self.confidence:g} % confidence, {scope}"
        more = f" {self._more}" if self._more else ""
        if self.verdict == "sufficient":
            amount = f"{percent(self.fraction)} of full HSK, {self.bytes_per_example:,.0f} bytes an example"
            return f"Enough{whose}: {self.name} ({amount}). {self.reason}{more} ({sure}.)"
        if self.verdict == "all":
            return f"Nothing below full is enough{whose}, of what was tried. {self.reason} ({sure}.)"
        return f"Undetermined{whose}: {self.reason}{more}" + (f" ({sure}.)" if self.gap.n >= MIN_SEEDS else "")

    @property
    def _more(self) -> str:
        if self.above in ("", NONE):
            return ""
        return f"{self.above} ({percent(self.above_fraction)}) is not enough: it loses more than {self.margin}."


def minimum_sufficient(
    study: Study,
    margin: float = MARGIN,
    share: float | None = None,
    confidence: float = CONFIDENCE,
    by: str = AMOUNT_COLUMNS[0],
    answers: Answers | None = None,
) -> list[Sufficiency]:
    """Return the least HSK that loses less than a margin against full, for each strategy of a study.

    Args:
        study: the trials. Without *full* or *none*, the verdicts are undetermined.
        margin: score that may be lost (a share of 1).
        share: used instead of ``margin``: the share of the gap from *none* to *full* that may be lost.
        confidence: of each one-sided claim.
        by: the column that orders the amounts, ``bytes_per_example`` or ``fraction``.
        answers: if given, the claims cover new test examples of the same kind; otherwise only these test examples.

    Raises:
        HskdError: ``margin`` is not in [0, 1), ``share`` not between 0 and 1, ``confidence`` not between 0.5 and 1, or
            ``by`` is an unknown column.
    """
    if not 0 <= margin < 1:
        raise HskdError(f"margin: {margin} is out of range; expected a share of 1 (0.005 is half a point).")
    if share is not None and not 0 < share < 1:
        raise HskdError(f"share: {share} is out of range; expected a share of the gap between 0 and 1.")
    if not 0.5 < confidence < 1:
        raise HskdError(f"confidence: {confidence} is out of range; expected a number between 0.5 and 1, such as 0.95.")
    return [
        _Question(study, strategy, margin, share, confidence, by, answers).answer() for strategy in study.strategies
    ]


class _Tested(NamedTuple):
    """The test of one amount, by itself."""

    name: str
    amount: float
    loss: float
    low: float
    high: float
    n: int
    verdict: str


@dataclass
class _Question:
    study: Study
    strategy: str
    allowed: float
    share: float | None
    confidence: float
    by: str
    answers: Answers | None

    def __post_init__(self) -> None:
        self.steps, self.full = self.study.ladder(self.strategy, self.by)
        self.has_none = NONE in self.study.points.index
        known = self.full and self.has_none
        self.gap = self._estimate({self.full: 1.0, NONE: -1.0}) if known else Estimate.of([])
        self.limit = self.allowed if self.share is None else self.share * self.gap.mean
        self.margin = _in_points(self.allowed) if self.share is None else f"{100 * self.share:g} % of the gap"
        self.limit_text = self.margin if self.share is None else f"{self.margin} ({_in_points(self.limit)})"

        least = self.allowed if self.share is None else 0
        self.gap_shown = None if self._missing() else bool(self.gap.lower(self.confidence) > least)

    def answer(self) -> Sufficiency:
        if problem := self._missing():
            return self._sufficiency("undetermined", problem)
        tests = {name: self._test(name) for name in (NONE, *self.steps)}
        table = pd.DataFrame(tests.values(), columns=_Tested._fields)
        problem = self._no_gap() or self._disorder(tests)
        if problem:
            return self._sufficiency("undetermined", problem, tests=table)
        above = _last_of_run([tests[name] for name in (NONE, *self.steps)], "insufficient")
        smallest = _last_of_run([tests[name] for name in self.steps[::-1]], "sufficient")
        largest = tests[self.steps[-1]]
        if smallest:
            test = tests[smallest]
            reason = (
                f"It {self._loses(test)}; the loss is at most {_in_points(test.high)}, so less than {self.limit_text} "
                f"({test.n} seeds)."
            )
            return self._sufficiency("sufficient", reason, smallest, above, tests=table)
        if largest.verdict == "insufficient":
            reason = (
                f"Even {self._sized(largest.name)} {self._loses(largest)}; the loss is at least "
                f"{_in_points(largest.low)}, so more than {self.limit_text} ({largest.n} seeds)."
            )
            return self._sufficiency("all", reason, self.full, above, tests=table)
        needed = None
        if largest.n >= MIN_SEEDS:
            needed = seeds_to_show_no_loss(self._beyond(largest.name), self.limit, self.confidence)
        reason = self._not_resolved(largest, needed)
        return self._sufficiency("undetermined", reason, above=above, tests=table, needed=needed)

    def _missing(self) -> str:
        if not self.full:
            return "there is no full arm of the same mapping and loss to compare with; run it."
        if not self.has_none:
            return "there is no none arm, so nothing shows that HSK helps at all; run it."
        if self.gap.n < MIN_SEEDS:
            shared = f"{self.gap.n} seed{'' if self.gap.n == 1 else 's'}"
            return f"too few seeds: full and none share {shared}, and it takes {MIN_SEEDS} or more to judge chance."
        return "" if self.steps else "there is no spec with less HSK than full."

    def _no_gap(self) -> str:
        if self.gap_shown:
            return ""
        least, most = self.gap.lower(self.confidence), self.gap.upper(self.confidence)
        text = (
            f"no gap: {self.full} scores {_in_points(self.gap.mean)} above none, at least {_points(least)} "
            f"({self.gap.n} seeds), which is not shown to be more than {self.margin if self.share is None else 0}."
        )
        if self.share is None and most < self.allowed:
            text += f" None itself is enough at this margin: {self.full} gains at most {_in_points(most)} over it."
        return text

    def _disorder(self, tests: dict[str, _Tested]) -> str:
        passed = ""
        for name in self.steps:
            if tests[name].verdict == "sufficient":
                passed = passed or name
            elif passed and tests[name].verdict == "insufficient":
                return (
                    f"not ordered: {self._sized(name)} loses more than {self.limit_text}, while {self._sized(passed)}, "
                    "which is less HSK, loses less. More HSK is not better here, so there is no least amount."
                )
        return ""

    def _not_resolved(self, largest: _Tested, needed: int | None) -> str:
        which = f"{self._sized(largest.name)}, the largest amount below full,"
        if largest.n < MIN_SEEDS:
            return f"too few seeds: {which} shares {largest.n} with {self.full}, and it takes {MIN_SEEDS} or more."
        text = (
            f"not resolved: {which} {self._loses(largest)}; the loss is between {_points(largest.low)} and "
            f"{_in_points(largest.high)} ({largest.n} seeds), so neither less nor more than {self.limit_text} is shown."
        )
        if needed is None:
            more = ": it takes more test examples." if self.answers else "."
            return f"{text} Even {MOST_SEEDS:,} seeds would hardly do{more}"
        if needed > largest.n:
            return f"{text} If it loses nothing, {needed} seeds would show that ({100 * POWER:.0f} % power)."
        return (
            f"{text} {needed} seeds would do if it lost nothing ({100 * POWER:.0f} % power): it loses about that much."
        )

    def _estimate(self, weights: dict[str, float]) -> Estimate:
        return contrast(self.study, weights, self.answers)

    def _beyond(self, name: str) -> Estimate:
        """Return the loss against full. A share of the gap, which varies with the seeds, is subtracted here."""
        share = self.share or 0.0
        weights = {self.full: 1.0 - share} | ({NONE: share} if share else {})
        return self._estimate(weights | {name: weights.get(name, 0.0) - 1.0})

    def _test(self, name: str) -> _Tested:
        estimate = self._beyond(name)
        shift = 0.0 if self.share is None else self.limit  # turns the estimate back into a loss
        low, high = estimate.lower(self.confidence) + shift, estimate.upper(self.confidence) + shift
        verdict = "not resolved"
        if estimate.n < MIN_SEEDS:
            verdict = "too few seeds"
        elif high < self.limit:
            verdict = "sufficient"
        elif low > self.limit:
            verdict = "insufficient"
        amount = self.study.amount(name, self.by)
        return _Tested(name, amount, estimate.mean + shift, low, high, estimate.n, verdict)

    def _sufficiency(
        self,
        verdict: str,
        reason: str,
        name: str = "",
        above: str = "",
        tests: pd.DataFrame | None = None,
        needed: int | None = None,
    ) -> Sufficiency:
        return Sufficiency(
            strategy=self.strategy,
            verdict=verdict,
            reason=reason,
            name=name,
            fraction=self.study.amount(name, "fraction") if name else math.nan,
            bytes_per_example=self.study.amount(name, "bytes_per_example") if name else math.nan,
            above=above,
            above_fraction=self.study.amount(above, "fraction") if above else math.nan,
            margin=self.margin,
            limit=self.limit,
            gap=self.gap.interval(self.confidence),
            gap_shown=self.gap_shown,
            seeds_needed=needed,
            confidence=self.confidence,
            new_examples=self.answers is not None,
            tests=pd.DataFrame(columns=_Tested._fields) if tests is None else tests,
        )

    def _loses(self, test: _Tested) -> str:
        if test.loss < 0:
            return f"gains {_in_points(-test.loss)} over {self.full}"
        return f"loses {_in_points(test.loss)} against {self.full}"

    def _sized(self, name: str) -> str:
        return f"{name} ({percent(self.study.amount(name, 'fraction'))})"


def _last_of_run(tests: list[_Tested], verdict: str) -> str:
    """Return the last name of the initial run of ``tests`` with this verdict; empty where there is no such run."""
    run = list(takewhile(lambda test: test.verdict == verdict, tests))
    return run[-1].name if run else ""


def _points(score: float) -> str:
    """Return a score as text in points (hundredths), with at most two decimals."""
    text = f"{100 * score:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _in_points(score: float) -> str:
    return "1 point" if _points(score) == "1" else f"{_points(score)} points"


def percent(fraction: float) -> str:
    """Return a share as text, a percentage with two digits."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"
