"""Differences between trials of the same seed, which saw the same batches: what an arm or spec gains over another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95


def above(trials: pd.DataFrame, arm: str = "none") -> pd.DataFrame:
    """What every arm and spec scores above ``arm``, seed by seed.

    Args:
        trials: one row per trial, with the columns arm, spec, seed, score; one task, student and training set.
        arm: what the others are compared with.

    Returns:
        A row per arm and spec that shares two seeds or more with ``arm``: arm, spec, mean, low, high (shares of 1;
        the bounds of the 95 % paired t-interval), n (seeds).
    """
    base = trials[trials["arm"] == arm].set_index("seed")["score"]
    rows = []
    for (name, spec), group in trials[trials["arm"] != arm].groupby(["arm", "spec"], sort=False):
        difference = (group.set_index("seed")["score"] - base).dropna()
        n = len(difference)
        if n < 2:
            continue
        mean = float(difference.mean())
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * difference.std(ddof=1) / np.sqrt(n))
        rows.append({"arm": name, "spec": spec, "mean": mean, "low": mean - half, "high": mean + half, "n": n})
    return pd.DataFrame(rows, columns=["arm", "spec", "mean", "low", "high", "n"])
