"""Small tables of trials in the format of a grid's, with scores that a test chooses; never results."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hskd.analysis.table import Study
from hskd.spec import HSKSpec

LAYERS, TOKENS = 4, 27
BYTES = 80_000
"""Bytes an example of full HSK in fp16."""
_BITS = {"fp32": 32, "int8": 8, "int4": 4, "int2": 2}
ARMS = ("none", "full", "paper_none", "gold", "shuffled")
LADDER = ("1l_1t_0.1w", "1l_8t_0.1w", "2l_8t_0.5w", "2l_all_0.5w,width=magnitude")
"""Specs of rising amount; each has at least twice the amount of the one before."""


def table(scores: Mapping[str, Sequence[float]], **changes: Any) -> pd.DataFrame:
    """Return a table with a row per point and seed. A point is a spec's text, or an arm with its mapping.

    Args:
        scores: of each point, by seed from 0; NaN leaves a trial out.
        changes: columns to set, such as ``task="cola"``.
    """
    rows = [
        {**_point(name), "seed": seed, "score": score, **changes}
        for name, values in scores.items()
        for seed, score in enumerate(values)
        if not np.isnan(score)
    ]
    return pd.DataFrame(rows)


def study(scores: Mapping[str, Sequence[float]], **changes: Any) -> Study:
    """Return the study of :func:`table`."""
    return Study.of(table(scores, **changes))


def rescored(made: Study, scores: np.ndarray, names: Sequence[str]) -> Study:
    """Return ``made`` with other scores ``(seeds, names)``, quickly: simulations need thousands."""
    again = copy.copy(made)
    vars(again)["scores"] = pd.DataFrame(scores, columns=list(names))
    return again


def _point(text: str) -> dict[str, Any]:
    arm, _, changes = text.partition(",")
    label = ""
    if arm not in ARMS:
        arm, label = "spec", text
    elif arm in ("full", "shuffled"):
        label = f"all_all_all,{changes}".rstrip(",")
    spec = HSKSpec.parse(label) if label else None
    fields: dict[str, Any] = spec.model_dump(mode="json") if spec else {}

    def text_of(dimension: str, field: str) -> str:
        return str(fields.get(dimension, {}).get(field, ""))

    n, k = (text_of("depth", "n"), text_of("length", "k")) if spec else ("0", "0")
    w = fields.get("width", {}).get("w", np.nan)
    fraction = 0.0
    if spec:
        layers, tokens = (LAYERS if n == "all" else int(n)), (TOKENS if k == "all" else int(k))
        fraction = layers / LAYERS * tokens / TOKENS * w
    return {
        "task": "mr",
        "teacher": "offline:minilm",
        "student": "rosita-3l-2h-96ffn",
        "train_examples": 2000,
        "arm": arm,
        "spec": spec.label if spec else "",
        "fraction": fraction,
        "kept_values": round(fraction * 2000 * LAYERS * TOKENS * 384),
        "bytes_per_example": fraction * BYTES * _BITS.get(text_of("precision", "selector"), 16) / 16,
        "n": n if spec else "",
        "l_top": text_of("depth", "l_top"),
        "length": text_of("length", "selector"),
        "k": k if spec else "",
        "width": text_of("width", "selector"),
        "w": w,
        "precision": text_of("precision", "selector"),
        "score_split": "test",
        "teacher_score": 0.82,
    }
