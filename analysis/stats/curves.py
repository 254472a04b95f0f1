"""Score against amount of HSK: points with their intervals, and the gain from each doubling of the amount.

All differences are paired by seed, because trials of one seed see the same batches in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hskd.analysis.stats.intervals import Estimate, Interval, ratio_of
from hskd.analysis.table import AMOUNT_COLUMNS, Study
from hskd.statistics import CONFIDENCE

if TYPE_CHECKING:
    from hskd.analysis.stats.examples import Answers

CLOSE = 0.5
"""In doublings: points closer than this are one step of :func:`marginal_utility`."""

NONE = "none"
_NOTHING = Interval(math.nan, math.nan, math.nan, 0)
_STEP_COLUMNS = ["strategy", "from_name", "to_name", "low_x", "high_x", "at", "gain", "low", "high", "n"]


def contrast(study: Study, weights: Mapping[str, float], answers: Answers | None = None) -> Estimate:
    """Return the mean over seeds of a weighted sum of points' scores, such as ``{"full": 1, "none": -1}``.

    Only seeds that all the points share are used. With ``answers``, the variance covers new test examples of the same
    kind; without, only these test examples.
    """
    scores = study.scores
    values = np.sum([weight * scores[name].to_numpy(np.float64) for name, weight in weights.items()], axis=0)
    shared = ~np.isnan(values)
    if answers is None or shared.sum() < 2:
        return Estimate.of(values[shared])
    variance = answers.variance(weights, scores.index[shared].tolist())
    return Estimate.of(values[shared], variance, answers.df)


def points(study: Study, confidence: float = CONFIDENCE, answers: Answers | None = None) -> pd.DataFrame:
    """Return every point of a study with its intervals, by rising amount.

    Args:
        study: the trials.
        confidence: of the two-sided t-intervals over seeds.
        answers: if given, the intervals also cover new test examples of the same kind, and are wider.

    Returns:
        A row per point, with these columns:

        * arm, name, strategy;
        * fraction; kept_per_example (values kept of an example, NaN where the table does not say); bytes_per_example;
          bytes_share (of full HSK's bytes in fp16, NaN where the table has no such trial);
        * mean, low, high (shares of 1) and n (seeds);
        * above_none and its bounds (shares of 1, paired by seed);
        * relative and its bounds: the share of the gap from *none* to the *full* of the same mapping that is closed,
          with Fieller's interval; NaN where *full* does not score above *none*.

        Bounds are NaN with fewer than two seeds. The bounds of ``relative`` are also NaN where the gap is not shown to
        be above 0. Columns that need *none* or *full* are NaN where that arm is missing.
    """
    rows = []
    has_none = NONE in study.points.index
    for name, point in zip(study.points.index, study.points.to_dict("records"), strict=True):
        mean = contrast(study, {name: 1.0}, answers).interval(confidence)
        above = contrast(study, _difference(name, NONE), answers).interval(confidence) if has_none else _NOTHING
        gain = _relative(study, name, point["reference"], confidence, answers) if has_none else _NOTHING
        row = {column: point[column] for column in ("arm", "strategy", "fraction", "bytes_per_example")}
        row |= {"name": name, **mean._asdict()}
        row |= {f"above_none{end}": value for end, value in zip(("", "_low", "_high"), above[:3], strict=True)}
        row |= {f"relative{end}": value for end, value in zip(("", "_low", "_high"), gain[:3], strict=True)}
        rows.append(row)
    table = pd.DataFrame(rows)
    table["kept_per_example"] = table["name"].map(_kept(study))
    table["bytes_share"] = table["bytes_per_example"] / study.full_bytes
    first = ["arm", "name", "strategy", "fraction", "kept_per_example", "bytes_per_example", "bytes_share"]
    table = table[[*first, *(column for column in table if column not in first)]]
    return table.sort_values([*AMOUNT_COLUMNS, "mean"], kind="stable", ignore_index=True)


def marginal_utility(study: Study, confidence: float = CONFIDENCE, x: str = AMOUNT_COLUMNS[0]) -> pd.DataFrame:
    """Return the student's gain in score per doubling of the HSK, from each step of a strategy to the next.

    The last step of a strategy is the *full* of its mapping. Points closer than half a doubling are pooled first: the
    mean of their scores, at the geometric mean of their amounts. *none* is not a step, because its amount is 0.

    Args:
        study: the trials.
        confidence: of the two-sided t-intervals over seeds, paired by seed.
        x: the column of amounts, ``bytes_per_example`` or ``fraction``.

    Returns:
        A row per pair of neighbouring steps: strategy; from_name and to_name (pooled names joined by `` + ``); low_x,
        high_x and ``at``, their geometric mean; gain, low, high (shares of 1 per doubling); n (seeds).

    Raises:
        HskdError: ``x`` is not a column of amounts.
    """
    rows = []
    for strategy in study.strategies:
        names, full = study.ladder(strategy, x)
        steps = _pool({name: study.amount(name, x) for name in [*names, *([full] if full else [])]})
        for (low_names, low_x), (high_names, high_x) in pairwise(steps):
            doublings = math.log2(high_x / low_x)
            weights = dict.fromkeys(high_names, 1 / len(high_names) / doublings)
            weights |= dict.fromkeys(low_names, -1 / len(low_names) / doublings)
            gain = contrast(study, weights).interval(confidence)
            ends = (" + ".join(low_names), " + ".join(high_names), low_x, high_x, math.sqrt(low_x * high_x))
            rows.append((strategy, *ends, *gain))
    return pd.DataFrame(rows, columns=_STEP_COLUMNS)


def _difference(name: str, other: str) -> dict[str, float]:
    return {name: 0.0} if name == other else {name: 1.0, other: -1.0}


def _relative(study: Study, name: str, full: str, confidence: float, answers: Answers | None) -> Interval:
    if not full:
        return _NOTHING
    if answers is not None:
        here, anew = _ratio(study, name, full, confidence, None), _ratio(study, name, full, confidence, answers)
        # As in Estimate: an interval for new examples is never the narrower one. NaN stays where either is unbounded.
        return here._replace(low=float(np.minimum(here.low, anew.low)), high=float(np.maximum(here.high, anew.high)))
    return _ratio(study, name, full, confidence, None)


def _ratio(study: Study, name: str, full: str, confidence: float, answers: Answers | None) -> Interval:
    # Each estimate must use the seeds that all three points share, so the others join it with weight 0.
    seeds = {name: 0.0, full: 0.0, NONE: 0.0}
    numerator = contrast(study, seeds | _difference(name, NONE), answers)
    denominator = contrast(study, seeds | _difference(full, NONE), answers)
    if not denominator.mean > 0:  # a spec that harms less than full does would close a share of such a gap
        return _NOTHING
    difference = contrast(study, seeds | _difference(name, full), answers)
    return ratio_of(numerator, denominator, difference, confidence)


def _kept(study: Study) -> pd.Series[float]:
    if "kept_values" not in study.trials:
        return pd.Series(dtype=float)
    first = study.trials.drop_duplicates("name").set_index("name")
    return pd.to_numeric(first["kept_values"], errors="coerce") / study.train_examples


def _pool(amounts: dict[str, float]) -> list[tuple[list[str], float]]:
    """Return the steps of :func:`marginal_utility`: names and the geometric mean of their amounts, ascending."""
    groups = [[name] for name in sorted(amounts, key=amounts.__getitem__)]

    def at(group: list[str]) -> float:
        return math.prod(amounts[name] for name in group) ** (1 / len(group))

    while len(groups) > 1:
        apart = [math.log2(at(high) / at(low)) for low, high in pairwise(groups)]
        nearest = min(range(len(apart)), key=apart.__getitem__)
        if apart[nearest] >= CLOSE:
            break
        groups[nearest : nearest + 2] = [groups[nearest] + groups[nearest + 1]]
    return [(group, at(group)) for group in groups]
