"""Compare strategies at equal amounts (selectors, mappings, precisions, losses), in pairs and paired by seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from hskd.analysis.stats.intervals import Estimate, holm
from hskd.analysis.stats.points import COMPARED, LOSS, Part, as_kept
from hskd.analysis.table import Study
from hskd.statistics import CONFIDENCE

UNDETERMINED = "undetermined"
COMPARISON_COLUMNS = ["dimension", "a", "b", "matched", "difference", "low", "high", "p", "p_holm", "n", "verdict"]

_WITHOUT_AMOUNT = ("precision", LOSS)
"""Parts without an amount of their own: bits follow from the precision, and a loss takes no HSK."""

Setting = tuple[float, tuple[Part, ...]]
"""Everything that two points must share to be compared along a dimension: the amount there, and all other parts."""


def compare_strategies(study: Study, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Compare every pair of strategies of each dimension, and of losses, over all settings in which both were tried.

    A setting is an amount along the dimension, together with one choice of everything else. For each seed, the
    difference is averaged over the settings. The paired t-test is over the seeds' averages: seeds are random, settings
    are fixed. Only trials that make a complete block (the same seeds in every setting) count.

    Settings in which both strategies keep the same values (all tokens, all neurons, ``cls`` and the first token) say
    nothing and are left out. With all tokens this includes selectors that differ in ``[SEP]``, because nothing is
    ranked there.

    Args:
        study: one task, teacher and student.
        confidence: of the intervals; a verdict needs an adjusted p below ``1 - confidence``.

    Returns:
        A row per pair: dimension; a, b (strategies); matched (settings); difference (score of a minus that of b, a
        share), low, high (its t-interval, for this pair alone; NaN where it cannot be estimated), p (two-sided, NaN
        with fewer than two seeds), p_holm (adjusted over the pairs of the dimension), n (seeds), verdict (the better
        strategy, or ``undetermined``).
    """
    rows: list[dict[str, Any]] = []
    for dimension in COMPARED:
        pairs = [_row(dimension, a, b, block, confidence) for a, b, block, _ in _blocks(study, dimension)]
        rows += adjusted(pairs, confidence)
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def by_amount(study: Study, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Compare strategies as :func:`compare_strategies` does, but at each amount separately.

    The p-values are adjusted over all rows of the table.

    Returns:
        The same columns, and after dimension: amount (number of layers or tokens or share of neurons, as text; for
        precision and loss, which have no amount of their own, the short form of the spec).
    """
    rows = [
        {"amount": amount} | _row(dimension, a, b, block[:, [other == amount for other in amounts]], confidence)
        for dimension in COMPARED
        for a, b, block, amounts in _blocks(study, dimension)
        for amount in dict.fromkeys(amounts)
    ]
    return pd.DataFrame(adjusted(rows, confidence), columns=["dimension", "amount", *COMPARISON_COLUMNS[1:]])


def winners(comparison: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return, for each dimension, the strategy that beats every other (or ``undetermined``), and a sentence about it.

    A strategy wins if it was compared with every other in the table and each verdict names it. So, over all pairs of
    the dimension, a false winner is at most as likely as the comparison's confidence allows.
    """
    winner_by_dimension = {}
    for dimension, rows in comparison.groupby("dimension", sort=False):
        leader, against = _leader(rows)
        beaten = against[against["verdict"] == leader]
        unshown = against[against["verdict"] != leader]
        untried = sorted((set(rows["a"]) | set(rows["b"])) - {leader} - set(against["other"]))
        if unshown.empty and not untried:
            by = ", ".join(_against(row) for row in beaten.to_dict("records"))
            winner_by_dimension[str(dimension)] = (leader, f"{leader} beats every other strategy: {by}.")
            continue
        clauses = [f"beats {', '.join(_against(row) for row in beaten.to_dict('records'))}"] if len(beaten) else []
        clauses += [f"is {_against(row, lead=True)}, which is not shown" for row in unshown.to_dict("records")]
        clauses += [f"was never tried at the same amount as {', '.join(untried)}"] if untried else []
        winner_by_dimension[str(dimension)] = (UNDETERMINED, f"Undetermined: {leader} {', and '.join(clauses)}.")
    return winner_by_dimension


def _blocks(study: Study, dimension: str) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yield pairs of strategies with their differences in score and their amounts.

    The differences are an array of seeds by settings, NaN where a trial is missing. There is an amount per setting.
    """
    points = study.parts
    scores = {name: study.scores[name].to_numpy() for name in points}
    kept = {name: as_kept(parts) for name, parts in points.items()}
    settings: dict[Setting, dict[str, str]] = {}
    for name, parts in points.items():
        strategy, amount = parts[dimension]
        if dimension in ("length", "width", "examples") and math.isinf(amount):
            continue
        rest = tuple(kept[name][other] for other in COMPARED if other != dimension)
        key = (0.0 if dimension in _WITHOUT_AMOUNT else amount, rest)
        settings.setdefault(key, {}).setdefault(strategy, name)
    by_rising_amount = sorted(settings.items(), key=lambda setting: setting[0][0])
    strategies = list(dict.fromkeys(strategy for tried in settings.values() for strategy in tried))
    for a, b in combinations(strategies, 2):
        matched = [
            (scores[tried[a]] - scores[tried[b]], _amount_text(dimension, tried[a], amount))
            for (amount, _), tried in by_rising_amount
            if a in tried and b in tried and kept[tried[a]] != kept[tried[b]]
        ]
        if matched:
            differences, amounts = zip(*matched, strict=True)
            yield a, b, np.stack(differences, axis=1), list(amounts)


def _amount_text(dimension: str, name: str, amount: float) -> str:
    if dimension in _WITHOUT_AMOUNT:
        return name.split(",")[0]
    return "all" if math.isinf(amount) else f"{amount:g}"


def _row(dimension: str, a: str, b: str, block: np.ndarray, confidence: float) -> dict[str, Any]:
    complete = _complete(block)
    seeds, settings = complete.shape
    test = paired_test(complete.mean(axis=1), confidence) if seeds else (math.nan,) * 4
    named = dict(zip(("difference", "low", "high", "p"), test, strict=True))
    return {"dimension": dimension, "a": a, "b": b, "matched": settings, **named, "n": seeds}


def paired_test(differences: np.ndarray, confidence: float) -> tuple[float, float, float, float]:
    """Return mean, low, high (t-interval) and two-sided p of paired differences ``(n,)``.

    With n < 2, everything but the mean is NaN. Where all differences are equal, their spread and so the interval cannot
    be estimated; p is then that of the sign test. This happens with few seeds, because scores are counts of correct
    examples.
    """
    estimate = Estimate.of(differences)
    if estimate.n < 2:
        return estimate.mean, math.nan, math.nan, math.nan
    if np.ptp(differences) < 1e-12:
        p = 1.0 if abs(estimate.mean) < 1e-12 else 2.0 ** (1 - estimate.n)
        return estimate.mean, math.nan, math.nan, p
    p = 2 * float(special.stdtr(estimate.df, -abs(estimate.mean) / math.sqrt(estimate.variance)))
    return (*estimate.interval(confidence)[:3], p)


def _complete(block: np.ndarray) -> np.ndarray:
    """Return the largest complete part of ``block`` (seeds by settings, NaN where missing), if possible of two seeds.

    Candidates are the seeds of one setting, with all settings that have these seeds.
    """
    there = ~np.isnan(block)
    best, best_size = block[:0], (False, 0, 0)
    for setting in range(block.shape[1]):
        seeds = there[:, setting]
        settings = there[seeds].all(axis=0)
        size = (seeds.sum() > 1, seeds.sum() * settings.sum(), seeds.sum())
        if seeds.any() and size > best_size:
            best, best_size = block[seeds][:, settings], size
    return best


def adjusted(rows: list[dict[str, Any]], confidence: float) -> list[dict[str, Any]]:
    """Return ``rows``, one family of tests, with adjusted p and verdict."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        is_significant = p < 1 - confidence
        better = row["a"] if row["difference"] > 0 else row["b"]
        row |= {"p_holm": p, "verdict": better if is_significant else UNDETERMINED}
    return rows


def _leader(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the leading strategy and its rows, seen from its side, with the column ``other``.

    The leader is ahead of the most others; the sum of its differences decides ties.
    """
    flipped = rows.rename(columns={"a": "b", "b": "a"})
    flipped = flipped.assign(difference=-rows["difference"], low=-rows["high"], high=-rows["low"])
    both = pd.concat([rows, flipped]).rename(columns={"a": "strategy", "b": "other"})
    standing = both.assign(ahead=both["difference"] > 0).groupby("strategy", sort=False)[["ahead", "difference"]].sum()
    leader = str(standing.sort_values(["ahead", "difference"], ascending=False, kind="stable").index[0])
    return leader, both[both["strategy"] == leader]


def _against(row: dict[Hashable, Any], lead: bool = False) -> str:
    """Return the comparison of the leader with another strategy in words; ``lead`` adds which of them is ahead."""
    difference = 100 * row["difference"]
    standing = f"{'ahead of' if difference > 0 else 'behind' if difference < 0 else 'level with'} " if lead else ""
    if row["n"] < 2:
        evidence = f"{row['n']} shared seed, so no interval"
    elif math.isnan(row["low"]):
        evidence = f"the same in each of {row['n']} seeds, so no interval; p {row['p_holm']:.2g} after Holm"
    else:
        interval = f"{100 * row['low']:.2f} to {100 * row['high']:.2f}"
        evidence = f"{interval}, p {row['p_holm']:.2g} after Holm, {row['n']} seeds"
    return f"{standing}{row['other']} by {abs(difference):.2f} points ({evidence})"
