"""Compare two studies of the same points, paired by seed, to test whether their difference in settings matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from hskd.analysis.stats.curves import NONE
from hskd.analysis.stats.strategies import adjusted, paired_test
from hskd.analysis.table import Study
from hskd.errors import HskdError
from hskd.grid.record import grid_content
from hskd.grid.spec import GridSpec
from hskd.results import ResultsFolder
from hskd.statistics import CONFIDENCE

PAIR_COLUMNS = ["name", "fraction", "first", "second", "difference", "low", "high", "p", "p_holm", "n", "verdict"]
OWN = ("name", "trials", "sweeps", "include", "exclude", "seeds", "more_seeds", "arms")
"""Keys of a grid that say which points and seeds it has, rather than how they were run."""


def pair(first: Study, second: Study, above_none: bool = False, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return second - first at every point that two studies share, with paired t-tests over their shared seeds.

    Args:
        first: a study.
        second: another study, of the same task and split. Trials of one seed share everything that the seed decides
            (dropout, ``W``), and also the batches where the training examples are the same.
        above_none: compare each point's gain over its own study's *none* instead of its score. Effects that change
            both equally then cancel.
        confidence: of the intervals; a verdict needs an adjusted p below ``1 - confidence``.

    Returns:
        A row per point, by rising fraction: name; fraction (of the first study); first, second (means over the shared
        seeds, shares of 1); difference, low, high (t-interval of this row alone), p (two-sided), p_holm (over the rows
        of the table), n (seeds), verdict (``second higher``, ``first higher`` or ``undetermined``).

    Raises:
        HskdError: the studies are of different tasks or splits, share no point and seed, or lack a *none* to compare
            with.
    """
    for column in ("task", "score_split"):
        first_value, second_value = getattr(first, column), getattr(second, column)
        if first_value != second_value:
            raise HskdError(
                f"{column}: {first_value} and {second_value} cannot be paired; give two results of the same {column}."
            )
    scores = [study.scores for study in (first, second)]
    if above_none:
        if any(NONE not in table for table in scores):
            raise HskdError("above none: one of the two has no trials of the arm none; run it, or compare scores.")
        scores = [table.drop(columns=NONE).sub(table[NONE], axis=0) for table in scores]
    shared = [name for name in first.points.index if all(name in table for table in scores)]
    rows: list[dict[str, Any]] = []
    for name in shared:
        pairs = pd.concat([table[name] for table in scores], axis=1, keys=["first", "second"]).dropna()
        if pairs.empty:
            continue
        test = paired_test((pairs["second"] - pairs["first"]).to_numpy(), confidence)
        row = {"name": name, "a": "second higher", "b": "first higher", "n": len(pairs)}
        row |= {"fraction": first.amount(name, "fraction"), **pairs.mean().to_dict()}
        rows.append(row | dict(zip(("difference", "low", "high", "p"), test, strict=True)))
    if not rows:
        raise HskdError("the two results share no point and seed, so there is nothing to compare.")
    return pd.DataFrame(adjusted(rows, confidence), columns=PAIR_COLUMNS)


def grid_differences(first: Path, second: Path) -> list[str]:
    """Return the settings in which the grids of two results folders differ, a text per key; empty if one is unknown."""
    grids = [_grid(folder) for folder in (first, second)]
    if not all(grids):
        return []
    old, new = (_flat({key: value for key, value in grid.items() if key not in OWN}) for grid in grids)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key, _OFF) != new.get(key, _OFF)]
    return [f"{key} {old.get(key, _OFF)}, then {new.get(key, _OFF)}" for key in keys]


def _grid(folder: Path) -> dict[str, Any]:
    """Return the grid of a results folder, with defaults filled in where this version knows all its keys."""
    content = ResultsFolder(folder).grid() or {}
    try:
        return grid_content(GridSpec.model_validate(content))
    except ValidationError:
        return content


_OFF = "off"
"""Value of a key that a grid does not mention."""


def _flat(content: Any, key: str = "") -> dict[str, Any]:
    """Return values by dotted keys, such as ``training.hsk_lr``. Keys that are off or empty are left out."""
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list) and any(isinstance(part, dict) for part in content):
        parts = {str(i): part for i, part in enumerate(content)}.items()
    else:
        return {} if content is None or content is False or content in ([], {}) else {key: content}
    flattened: dict[str, Any] = {}
    for name, part in parts:
        flattened |= _flat(part, f"{key}.{name}" if key else str(name))
    return flattened
