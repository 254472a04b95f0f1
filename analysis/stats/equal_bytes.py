"""Compare specs that take about the same bytes: how is a given number of bytes best spent?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import pandas as pd

from hskd.analysis.stats.curves import points
from hskd.analysis.stats.intervals import holm
from hskd.analysis.stats.strategies import UNDETERMINED, paired_test
from hskd.analysis.table import Study
from hskd.statistics import CONFIDENCE

GROUP_SPAN = math.sqrt(2)
"""Largest ratio of bytes within a group: half a doubling, below which marginal utility pools points too."""
BEST_MEAN, BEHIND = "best mean", "behind"

_POINT = ["name", "strategy", "bytes_per_example", "bytes_share", "mean", "low", "high", "n"]
_COLUMNS = ["group", *_POINT, "best", "behind", "behind_low", "behind_high", "p_holm", "verdict"]


def equal_bytes(study: Study, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Compare the specs that take about the same bytes with the one of the best mean among them.

    A group holds the specs from some number of bytes up to half a doubling above it. Groups of one spec are left out.
    The spec of the best mean is chosen after the scores are seen. So the p-values are adjusted (Holm) over **all**
    pairs of a group: with ``confidence``, no spec of a group is falsely shown to be behind.

    Args:
        study: one task, teacher and student.
        confidence: of the intervals, and of the verdicts of a group.

    Returns:
        A row per spec, by rising bytes of the groups and falling means within them:

        * group (numbered from 1), and best: the name of its spec of the best mean;
        * name, strategy, bytes_per_example, bytes_share, mean, low, high and n, as in
          :func:`~hskd.analysis.stats.curves.points`;
        * behind, behind_low, behind_high: how far the best mean is ahead (a share, paired by seed), with the t-interval
          of this pair alone; p_holm (two-sided);
        * verdict: ``best mean``, ``behind`` (shown to be), or ``undetermined``.
    """
    table = points(study, confidence)
    specs = table.loc[table["arm"] == "spec", _POINT].sort_values("bytes_per_example", kind="stable")
    groups = [_compared(study, group, confidence) for group in _groups(specs) if len(group) > 1]
    numbered = [group.assign(group=number) for number, group in enumerate(groups, 1)]
    return pd.concat(numbered, ignore_index=True)[_COLUMNS] if numbered else pd.DataFrame(columns=_COLUMNS)


def _groups(specs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the specs of each group; ``specs`` are sorted by bytes."""
    stored = specs["bytes_per_example"].to_numpy()
    start = 0
    for end in range(1, len(stored) + 1):
        if end == len(stored) or stored[end] > GROUP_SPAN * stored[start]:
            yield specs.iloc[start:end]
            start = end


def _compared(study: Study, group: pd.DataFrame, confidence: float) -> pd.DataFrame:
    group = group.sort_values(["mean", "bytes_per_example"], ascending=[False, True], kind="stable")
    pairs = list(combinations(group["name"], 2))
    tests = [paired_test((study.scores[a] - study.scores[b]).dropna().to_numpy(), confidence) for a, b in pairs]
    adjusted = holm([p for *_, p in tests])
    # The pairs of the best mean come first, in the order of the other specs.
    against = [(*test[:3], p) for test, p in zip(tests, adjusted, strict=True)][: len(group) - 1]
    verdicts = [BEHIND if behind > 0 and p < 1 - confidence else UNDETERMINED for behind, *_, p in against]
    columns = zip((math.nan,) * 4, *against, strict=True)
    named = dict(zip(("behind", "behind_low", "behind_high", "p_holm"), columns, strict=True))
    return group.assign(best=group["name"].iloc[0], **named, verdict=[BEST_MEAN, *verdicts])


def sentences(compared: pd.DataFrame, unit: str = "%") -> list[str]:
    """Say for each group of :func:`equal_bytes` which specs are behind the one of the best mean.

    Args:
        compared: the table.
        unit: unit of 100 times a score.
    """
    texts = []
    for _, rows in compared.groupby("group", sort=False):
        best = rows.iloc[0]
        behind = rows[rows["verdict"] == BEHIND]
        unshown = rows[rows["verdict"] == UNDETERMINED]
        words = [
            f"{span(rows)}: {best['name']} has the best mean of {len(rows)} specs, {100 * best['mean']:.1f} {unit}."
        ]
        if len(behind):
            words.append(f"Shown to be behind it: {', '.join(behind['name'])}.")
        if len(unshown):
            words.append(f"Not shown to be behind: {', '.join(unshown['name'])}.")
        texts.append(" ".join(words))
    return texts


def span(rows: pd.DataFrame) -> str:
    """Return the bytes an example of a group's specs in words."""
    low, high = (f"{value:,.0f}" for value in (rows["bytes_per_example"].min(), rows["bytes_per_example"].max()))
    return f"{low} bytes" if low == high else f"{low} to {high} bytes"
