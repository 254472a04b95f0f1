"""Recommend a spec: the cheapest that is shown to be as good as full HSK, or the best that fits a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from hskd.analysis.report.distil_command import distil_command
from hskd.analysis.stats.curves import NONE, contrast
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.intervals import Interval
from hskd.analysis.stats.sufficiency import MARGIN, Sufficiency, minimum_sufficient
from hskd.analysis.table import AMOUNT_COLUMNS, Study
from hskd.errors import HskdError
from hskd.heads.metrics import in_unit
from hskd.io import format_bytes
from hskd.statistics import CONFIDENCE

ARMS = ("spec", "full")
"""The arms that can be recommended."""


@dataclass(frozen=True, eq=False)
class Recommendation:
    """A recommended spec with its evidence.

    Attributes:
        spec: label of the spec.
        is_shown: whether the evidence shows what was asked for. If not, ``spec`` is a guess.
        evidence: sentences, the answer first.
        table: a row per point of the arms spec, full and none, by rising bytes. Columns: name, bytes_per_example,
            store_bytes (for all examples), mean (share of 1), n (seeds), below_full and above_none (paired
            differences, shares of 1, each with _low and _high), remark.
        command: the shell command that distils the spec.
    """

    spec: str
    is_shown: bool
    evidence: tuple[str, ...]
    table: pd.DataFrame
    command: str


def recommend(
    study: Study,
    tolerance: float | None = None,
    budget: float | None = None,
    examples: int | None = None,
    share: float | None = None,
    confidence: float = CONFIDENCE,
    answers: Answers | None = None,
) -> Recommendation:
    """Recommend a spec, given the loss against full HSK or the store size that you allow.

    *Allowed loss* (``tolerance`` or ``share``; half a point by default): the spec of fewest bytes that
    :func:`tested_together` shows to be enough. Comparing with the *full* of the best mean is strict, as the best of
    several means is partly luck. If nothing is shown, the guess is the spec of fewest bytes down to which all mean
    losses stay within the limit.

    *Budget*: of the specs that fit, the one with the best mean over the seeds that all of them have. Cheaper specs that
    are not shown to be worse are listed and not recommended. With few seeds hardly any spec is shown to be worse, so
    fewer seeds would lead to a worse choice, and bytes within the budget cost nothing.

    Args:
        study: the trials.
        tolerance: allowed loss in points of score (0.5 is half a per cent).
        budget: bytes of the store.
        examples: in the store [default: as many as the study's students trained on].
        share: allowed loss as a share of the gap from *none* to *full*.
        confidence: of the claim; with a budget, of each two-sided interval.
        answers: makes the claims hold for new test examples, too.

    Raises:
        HskdError: more than one of tolerance, share and budget is given, or one is out of range; no spec fits; the
            study has no trial of the arm spec.
    """
    if sum(given is not None for given in (tolerance, budget, share)) > 1:
        raise HskdError("give one of --tolerance, --margin-share and --budget.")
    if not study.strategies:
        raise HskdError(f"{study.title}: no trial of the arm spec, so there is nothing to recommend. Run the grid.")
    if tolerance is not None and not 0 < tolerance < 100:
        raise HskdError(f"--tolerance {tolerance:g}: expected points of score above 0, such as 0.5.")
    if share is not None and not 0 < share < 1:
        raise HskdError(f"--margin-share {share:g}: expected a share of the gap between 0 and 1, such as 0.1.")
    if not 0.5 < confidence < 1:
        raise HskdError(f"--confidence {confidence:g}: expected a number between 0.5 and 1, such as 0.95.")
    if examples is not None and examples < 1:
        raise HskdError(f"--examples {examples}: expected 1 or more.")
    stored = examples or study.train_examples
    full = _best_full(study)
    if budget is not None:
        name, evidence, remarks = _within(study, budget, stored, full, confidence, answers)
        is_shown = True
    else:
        margin = MARGIN if tolerance is None else tolerance / 100
        name, is_shown, evidence, remarks = _enough(study, margin, share, full, confidence, answers)
    table = _table(study, stored, full, confidence, answers, remarks)
    label = str(study.points.at[name, "spec"])
    return Recommendation(label, is_shown, tuple(evidence), table, distil_command(study, name, examples))


def tested_together(
    study: Study,
    margin: float = MARGIN,
    share: float | None = None,
    confidence: float = CONFIDENCE,
    by: str = AMOUNT_COLUMNS[0],
    answers: Answers | None = None,
) -> tuple[Study, list[Sufficiency]]:
    """Test each strategy so that the best of them can be chosen without losing confidence.

    The error is divided among the strategies, and all are compared with the *full* of the best mean. With one strategy
    this is :func:`~hskd.analysis.stats.sufficiency.minimum_sufficient`, which takes the same arguments.

    Returns:
        The study with that *full* as the reference of every spec, and an answer for each strategy.
    """
    strategies = study.strategies
    full = _best_full(study, by)
    elsewhere = [strategy for strategy in strategies if study.ladder(strategy, by)[1] != full]
    moved = (study.trials["arm"] == "spec") & study.trials["strategy"].isin(elsewhere)
    against = study
    if moved.any():
        against = replace(study, trials=study.trials.assign(reference=study.trials["reference"].mask(moved, full)))
    each = 1 - (1 - confidence) / len(strategies)
    return against, minimum_sufficient(against, margin, share, each, by, answers)


def _best_full(study: Study, by: str = AMOUNT_COLUMNS[0]) -> str:
    """The *full* arm with the best mean, of those that the strategies are compared with; empty without one."""
    fulls = {study.ladder(strategy, by)[1] for strategy in study.strategies} - {""}
    return max(sorted(fulls), key=lambda name: study.scores[name].mean(), default="")


def _enough(
    study: Study, margin: float, share: float | None, full: str, confidence: float, answers: Answers | None
) -> tuple[str, bool, list[str], dict[str, str]]:
    """The recommended name, whether it is shown to be enough, sentences, and a remark on each point."""
    strategies = study.strategies
    against, answered = tested_together(study, margin, share, confidence, "bytes_per_example", answers)
    each = answered[0].confidence
    remarks = {
        name: text for one in answered for name, text in zip(one.tests["name"], one.tests["verdict"], strict=True)
    }
    if full:
        remarks[full] = "full"
    note = []
    if len(strategies) > 1:
        note = [
            f"{len(strategies)} strategies were tried; each is tested at {100 * each:.4g} %, to be sure of the choice."
        ]

    enough = [one for one in answered if one.verdict == "sufficient"]
    if enough:
        best = min(enough, key=lambda one: (one.bytes_per_example, -study.scores[one.name].mean()))
        evidence = [f"{best.name}: the cheapest spec that is shown to be enough.", best.sentence]
        return best.name, True, evidence + note, remarks
    if all(one.verdict == "all" for one in answered):
        return full, True, ["All of it: " + one.sentence for one in answered] + note, remarks
    guess, why = _guess(against, answered, full)
    undetermined = [one.sentence for one in answered if one.verdict == "undetermined"]
    evidence = [f"No spec is shown to be enough. {why}", *undetermined]
    return guess, False, evidence + note, remarks


def _guess(study: Study, answered: list[Sufficiency], full: str) -> tuple[str, str]:
    """The cheapest point down to which its strategy's mean losses stay within the limit, and a sentence."""
    within = {}
    for one in answered:
        steps, reference = study.ladder(one.strategy, "bytes_per_example")
        for name in steps[::-1] if reference else []:
            loss = contrast(study, {reference: 1.0, name: -1.0}).mean
            if not loss < one.limit:
                break
            within[name] = loss
    stored = study.points["bytes_per_example"]
    if within:
        name = min(within, key=lambda candidate: (stored[candidate], within[candidate]))
        loses = f"{100 * within[name]:.2f} points against {full}"
        return name, f"{name} is a guess, not shown: on average it loses {loses}."
    if full:
        return full, f"Every spec loses more than that on average, so {full} is what is left."
    specs = study.points.index[study.points["arm"] == "spec"]
    name = str(study.scores[specs].mean().idxmax())
    return name, f"{name} is a guess, not shown: it has the best mean, and there is no full to compare it with."


def _within(
    study: Study, budget: float, examples: int, full: str, confidence: float, answers: Answers | None
) -> tuple[str, list[str], dict[str, str]]:
    """The recommended name, sentences, and a remark on each point."""
    points = study.points[study.points["arm"].isin(ARMS)]
    stores = points["bytes_per_example"] * examples
    fitting = list(points.index[stores <= budget])
    size = f"for {examples:,} examples"
    if not fitting:
        least = str(stores.idxmin())
        raise HskdError(
            f"no spec of {study.title} fits a budget of {format_bytes(budget)}: the smallest, {least}, takes "
            f"{format_bytes(float(stores[least]))} {size}. Allow more, or run smaller specs."
        )
    scores = study.scores[fitting]
    shared = scores.dropna()
    means = (scores if shared.empty else shared).mean()
    best = str(means.idxmax())  # The cheapest of equal means: points are sorted by amount.
    evidence = [
        f"{best}: its store takes {format_bytes(stores[best])} {size}, of {format_bytes(budget)}; of the "
        f"{len(fitting)} specs that fit it scores best, {in_unit(means[best], study.unit, 2)} on average."
    ]
    ahead = {other: _difference(study, best, other, confidence, answers) for other in (full, NONE, *fitting)}
    evidence += [
        f"Against {other} it scores {_say(ahead[other], confidence)}."
        for other in (full, NONE)
        if other in study.points.index and other != best
    ]
    if len(fitting) > 1:
        evidence.append(
            f"The best of {len(fitting)} means flatters: its lead is part luck, and new seeds will rather score less."
        )
    cheaper = [name for name in fitting if stores[name] < stores[best]]
    unshown = [name for name in cheaper if not ahead[name].low > 0]
    if unshown:
        evidence.append(
            "Cheaper, and not shown to be worse (which does not show that they are as good): "
            + ", ".join(f"{name} ({format_bytes(stores[name])})" for name in unshown)
            + "."
        )
    remarks = (
        dict.fromkeys(fitting, "fits") | dict.fromkeys(cheaper, "worse") | dict.fromkeys(unshown, "not shown worse")
    )
    return best, evidence, remarks | {best: "best mean that fits"}


def _difference(study: Study, name: str, other: str, confidence: float, answers: Answers | None) -> Interval:
    """Score of ``name`` minus that of ``other``, paired by seed; NaN if the study lacks one of them."""
    if name == other or not {name, other} <= set(study.points.index):
        return Interval(0.0 if name == other else math.nan, math.nan, math.nan, 0)
    return contrast(study, {name: 1.0, other: -1.0}, answers).interval(confidence)


def _say(difference: Interval, confidence: float) -> str:
    if math.isnan(difference.mean):
        return "an unknown amount more or less: they share no seed"
    more = "more" if difference.mean >= 0 else "less"
    text = f"{100 * abs(difference.mean):.2f} points {more}"
    if math.isnan(difference.low):
        return f"{text} (one shared seed, so no interval)"
    low, high = 100 * difference.low, 100 * difference.high
    return f"{text} (difference {low:.2f} to {high:.2f}, {100 * confidence:g} %, {difference.n} seeds)"


def _table(
    study: Study, examples: int, full: str, confidence: float, answers: Answers | None, remarks: dict[str, str]
) -> pd.DataFrame:
    rows = []
    listed_points = study.points[study.points["arm"].isin([*ARMS, NONE])].sort_values(
        "bytes_per_example", kind="stable"
    )
    for name, stored in listed_points["bytes_per_example"].items():
        scores = study.scores[str(name)].dropna()
        row = {"name": name, "bytes_per_example": stored, "store_bytes": stored * examples}
        row |= {"mean": scores.mean(), "n": len(scores)}
        for column, a, b in (("below_full", full, str(name)), ("above_none", str(name), NONE)):
            difference = _difference(study, a, b, confidence, answers)
            row |= {column: difference.mean, f"{column}_low": difference.low, f"{column}_high": difference.high}
        rows.append(row | {"remark": remarks.get(str(name), "")})
    return pd.DataFrame(rows)
