"""The verdict at the top of a report: for each study, how much is enough, in words that need no documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from hskd.analysis.report.recommendation import tested_together
from hskd.analysis.stats.curves import NONE, contrast
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.intervals import MIN_SEEDS
from hskd.analysis.stats.sufficiency import Sufficiency, percent
from hskd.analysis.table import Study
from hskd.errors import HskdError
from hskd.heads.metrics import in_unit
from hskd.selectors.basis import BasisWidth
from hskd.selectors.codebook import CodebookWidth
from hskd.selectors.length import Pool
from hskd.spec import HSKSpec
from hskd.statistics import POWER

Kind = Literal["enough", "nothing less", "no gap", "undetermined"]
MOST_VERDICTS = 5
"""Of more studies, a page shows the verdicts as a table."""


@dataclass(frozen=True)
class Verdict:
    """What a report says first of a study.

    Attributes:
        kind: ``enough`` (some amount below full is), ``nothing less`` (than full), ``no gap`` or ``undetermined``.
        headline: the answer.
        sentences: its evidence and, where seeds are missing, what to run.
        row: the same as a row of a table: column, text.
    """

    kind: Kind
    headline: str
    sentences: tuple[str, ...]
    row: dict[str, str]


@dataclass(frozen=True)
class Evidence:
    """A study, and the tests that its section of the report shows.

    Attributes:
        study: the trials.
        these: the least that is enough of each strategy, for these test examples.
        new: the same for new test examples; empty where the trials' predictions are not kept.
        answers: the predictions, where they are kept.
    """

    study: Study
    these: Sequence[Sufficiency]
    new: Sequence[Sufficiency]
    answers: Answers | None


def verdict(evidence: Evidence, points: pd.DataFrame, by: str) -> Verdict:
    """The verdict on a study, from the tests that its section shows.

    With several strategies, the choice among them must not cost confidence: they are tested by
    :func:`~hskd.analysis.report.recommendation.tested_together`.

    Args:
        evidence: the study and its tests.
        points: of the study, as :func:`hskd.analysis.stats.curves.points` gives them.
        by: the column of amounts that orders the tests.
    """
    return _Writer(evidence, points, by).verdict()


class _Writer:
    """Writes the verdict on a study."""

    def __init__(self, evidence: Evidence, points: pd.DataFrame, by: str) -> None:
        self.study, self.alone, self.by = evidence.study, evidence.these, by
        self.points = points.set_index("name")
        self.compared, self.answers, self.new = evidence.study, evidence.these, evidence.new
        self.passes_alone_anew = any(answer.verdict == "sufficient" for answer in evidence.new)
        if len(evidence.these) > 1:
            first = evidence.these[0]
            how: dict[str, Any] = {"margin": first.limit, "confidence": first.confidence, "by": by}
            self.compared, self.answers = tested_together(self.study, **how)
            if evidence.new:
                self.new = tested_together(self.study, **how, answers=evidence.answers)[1]

    def verdict(self) -> Verdict:
        """The verdict: the first kind that applies."""
        if not self.answers:
            text = f"No trial with stored hidden states is done for {self._student}. Run the grid, then this report."
            return self._made("undetermined", "Undetermined: there is nothing to compare yet.", text)
        enough = [answer for answer in self.answers if answer.verdict == "sufficient"]
        if enough:
            return self._enough(min(enough, key=self._cost))
        if all(answer.verdict == "all" for answer in self.answers):
            return self._nothing_less(min(self.answers, key=lambda answer: float(answer.tests["low"].iloc[-1])))
        if all(answer.gap_shown is False for answer in self.alone):
            return self._no_gap(self.alone[0])
        return self._undetermined()

    def _enough(self, answer: Sufficiency) -> Verdict:
        name = answer.name
        test: dict[Any, Any] = answer.tests.set_index("name").loc[name].to_dict()
        share, words = self._share(name), self._words(name)
        headline = f"Enough: {share} of the bytes of all hidden states, with the spec {name}."
        headline = headline if share else f"Enough: the spec {name}."
        size = f"takes {answer.bytes_per_example:,.0f} bytes an example"
        size += f" instead of {self.study.full_bytes:,.0f}" if share else ""
        loss = f"Against full it {_at_most(float(test['high']))}, where {answer.margin} may be lost"
        return self._made(
            "enough",
            headline,
            f"This keeps {words} ({percent(answer.fraction)} of all values) and {size}." if words else f"This {size}.",
            self._scores(name),
            f"{loss} ({self._how_sure(int(test['n']))}); {self._scope(answer)}.",
            name=name,
        )

    def _nothing_less(self, answer: Sufficiency) -> Verdict:
        largest = answer.tests.iloc[-1]
        return self._made(
            "nothing less",
            "Nothing less than all hidden states is enough, of the amounts that were tried.",
            self._scores(),
            f"Even {self._largest(answer)} loses at least {_points(largest['low'])} against full, where "
            f"{answer.margin} may be lost ({self._how_sure(largest['n'])}, on these test examples).",
        )

    def _no_gap(self, answer: Sufficiency) -> Verdict:
        full = self.study.ladder(answer.strategy, self.by)[1]
        gap = contrast(self.study, {full: 1.0, NONE: -1.0})
        least, most = gap.lower(answer.confidence), gap.upper(answer.confidence)
        if most < answer.limit:
            advice = f"None is enough here: full gains at most {_points(most)}."
        else:
            advice = "More seeds may show a gap: run the grid with a larger --seeds."
        return self._made(
            "no gap",
            f"No gap: hidden states are not shown to gain more than {answer.margin}.",
            self._scores(),
            f"The gain of full over none is {_points(gap.mean)}, and at least {_points(least)} is shown "
            f"({_seeds(gap.n)}, {100 * answer.confidence:g} % confidence), so how much is enough cannot be said.",
            advice,
        )

    def _undetermined(self) -> Verdict:
        passed = [f"{one.name} ({one.strategy})" for one in self.alone if one.verdict == "sufficient"]
        undetermined = [one for one in self.alone if one.verdict == "undetermined"]
        if passed:
            evidence = (
                f"Each of these is shown to be enough when it is tested alone: {', '.join(passed)}. More seeds are "
                f"needed to choose among {len(self.alone)} strategies."
            )
        elif undetermined:
            evidence = self._reason(min(undetermined, key=lambda answer: answer.seeds_needed or math.inf))
        else:
            evidence = (
                "Tested alone, each strategy needs all hidden states. More seeds are needed to show it of all of them."
            )
        seeds = f"{_seeds(self._most_seeds)} {'does' if self._most_seeds == 1 else 'do'}"
        return self._made(
            "undetermined", f"Undetermined: {seeds} not show how much is enough.", self._scores(), evidence
        )

    def _reason(self, answer: Sufficiency) -> str:
        """Why a strategy's answer is undetermined, and what to run."""
        cause, _, reason = answer.reason.partition(": ")
        if cause == "not resolved":
            largest = answer.tests.iloc[-1]
            too_little = "" if answer.above in ("", NONE) else f"{answer.above} is shown not to be enough. "
            return (
                f"{too_little}{_sentence(self._largest(answer))} loses between {_number(largest['low'])} and "
                f"{_points(largest['high'])} against full, where {answer.margin} may be lost "
                f"({_seeds(largest['n'])}, {100 * answer.confidence:g} % confidence, on these test examples). "
                f"{self._advice(answer, largest['n'])}"
            )
        if cause == "too few seeds":
            return f"{_sentence(reason)} Run the grid with --seeds {MIN_SEEDS} or more."
        return _sentence(reason if cause in ("not ordered", "no gap") else answer.reason)

    def _advice(self, answer: Sufficiency, seeds: int) -> str:
        """What to run where the largest amount below full is not resolved."""
        if answer.seeds_needed is None:
            return "More seeds will hardly settle this. Allow a larger loss with --margin."
        if answer.seeds_needed <= seeds:
            return "It loses about as much as may be lost. Run larger amounts, or allow a larger loss with --margin."
        return (
            f"If it loses nothing, {answer.seeds_needed} seeds show that ({100 * POWER:.0f} % power): run the grid "
            f"with --seeds {answer.seeds_needed}."
        )

    def _scores(self, name: str = "") -> str:
        """A sentence with the student's score at a point, if any, and at both ends of the gap."""
        ends = []
        if NONE in self.points.index:
            ends.append(f"{self._score(NONE)} without hidden states (none)")
        if self._full:
            ends.append(f"{self._score(self._full)} with all of them (full)")
        text = " and ".join(ends)
        if name:
            text = f"{self._score(name, interval=True)}{f', beside {text}' if text else ''}"
            return f"With it {self._student} scores {text}."
        return f"{_sentence(self._student)} scores {text}." if text else ""

    def _scope(self, answer: Sufficiency) -> str:
        """Whether what is shown for these test examples is shown for new ones, too."""
        if not self.new:
            return "this is shown for these test examples"
        new = [one for one in self.new if one.verdict == "sufficient"]
        if not new and self.passes_alone_anew:
            return "for new test examples like these, only strategies that are tested alone are shown to be enough"
        if not new:
            return "this is shown for these test examples, not for new ones"
        least = min(new, key=self._cost)
        if least.name == answer.name:
            return "this is shown for new test examples like these, too"
        return f"for new test examples like these, {least.name} is shown to be enough"

    def _made(self, kind: Kind, headline: str, *sentences: str, name: str = "") -> Verdict:
        row = {
            "verdict": "nothing less is enough" if kind == "nothing less" else kind,
            "spec": name,
            "bytes an example": f"{self.points['bytes_per_example'][name]:,.0f}" if name else "",
            "share of full's bytes": self._share(name) if name else "",
            "score": self._score(name, interval=True) if name else "",
            "none": self._score(NONE) if NONE in self.points.index else "",
            "full": self._score(self._full) if self._full else "",
            "seeds": str(self._most_seeds),
        }
        return Verdict(kind, headline, tuple(sentence for sentence in sentences if sentence), row)

    @property
    def _student(self) -> str:
        return f"the student {self.study.student} on {self.study.task}"

    @property
    def _full(self) -> str:
        """The *full* that specs are compared with, of several the one of the best mean; empty where there is none."""
        fulls = {self.compared.ladder(strategy, self.by)[1] for strategy in self.compared.strategies} - {""}
        names = sorted(fulls) or sorted(self.points.index[self.points["arm"] == "full"])
        return max(names, key=lambda name: float(self.points["mean"][name]), default="")

    @property
    def _most_seeds(self) -> int:
        return int(self.points["n"].max())

    def _cost(self, answer: Sufficiency) -> float:
        return answer.bytes_per_example if self.by == "bytes_per_example" else answer.fraction

    def _point(self, name: str) -> dict[Any, Any]:
        """Return the row of a point."""
        return self.points.loc[name].to_dict()

    def _share(self, name: str) -> str:
        """A point's share of the bytes of full in fp16; empty where that is not in the table."""
        share = float(self._point(name)["bytes_share"])
        return "" if math.isnan(share) else percent(share)

    def _score(self, name: str, interval: bool = False) -> str:
        point = self._point(name)
        text = in_unit(float(point["mean"]), self.study.unit)
        if not interval or math.isnan(point["low"]):
            return text
        confidence = 100 * self.alone[0].confidence
        return f"{text} ({confidence:g} % CI {100 * point['low']:.1f} to {100 * point['high']:.1f})"

    def _largest(self, answer: Sufficiency) -> str:
        name = str(answer.tests["name"].iloc[-1])
        share = self._share(name)
        return f"{name}, the largest amount below full{f' ({share} of its bytes)' if share else ''},"

    def _how_sure(self, seeds: int) -> str:
        text = f"{_seeds(seeds)}, {100 * self.alone[0].confidence:g} % confidence"
        return f"{text} for the choice among {len(self.alone)} strategies" if len(self.alone) > 1 else text

    def _words(self, name: str) -> str:
        """What a spec keeps, such as "2 layers, 8 tokens and 30 % of the neurons"; empty where it is more involved."""
        point: dict[Any, Any] = self.study.points.loc[name].to_dict()
        try:
            spec = HSKSpec.parse(str(point["spec"]))
        except HskdError:
            return ""
        is_plain = not isinstance(spec.width, (BasisWidth, CodebookWidth)) and not isinstance(spec.length, Pool)
        if not is_plain or not point["n"] or not point["k"] or math.isnan(point["w"]):
            return ""
        neurons = "all neurons" if point["w"] == 1 else f"{percent(point['w'])} of the neurons"
        words = f"{_count(point['n'], 'layer')}, {_count(point['k'], 'token')} and {neurons}"
        return words if point["precision"] == "fp16" else f"{words} in {point['precision']}"


def _at_most(loss: float) -> str:
    if loss < 0:
        return f"gains at least {_points(-loss)}"
    return f"loses at most {_points(loss)}"


def _number(score: float) -> str:
    """A score in points without its unit, with two decimals at most."""
    return f"{round(100 * score, 2) + 0.0:g}"


def _points(score: float) -> str:
    return "1 point" if _number(score) == "1" else f"{_number(score)} points"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count:,} seeds"


def _count(amount: str, unit: str) -> str:
    return f"all {unit}s" if amount == "all" else f"{amount} {unit}{'' if amount == '1' else 's'}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
