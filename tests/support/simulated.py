"""Simulated result tables in the format of a grid's, only for tests and never as results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hskd.grid.spec import GridSpec
from hskd.results import COLUMNS
from hskd.spec import HSKSpec

STUDENT_LAYERS, TEACHER_LAYERS, TOKENS, WIDTH = 3, 6, 27, 384
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

GRIDS: dict[str, dict[str, Any]] = {
    "depth": {"sweeps": [{"n": [1, 2, 3], "l_top": [4, 5, 6]}]},
    "length": {"sweeps": [{"k": [1, 2, 3, 5, 10, "all"], "length": ["attention_no_sep", "left", "random"]}]},
    "selectors": {
        "sweeps": [
            {"k": [1, 3, 10], "length": ["attention_no_sep", "left", "random"]},
            {"k": [3, 10], "length": ["attention"]},
            {"k": [1], "length": ["cls"]},
        ]
    },
    "width": {"sweeps": [{"w": [0.003, 0.01, 0.03, 0.1, 0.3, "all"], "width": ["magnitude", "random", "uniform"]}]},
    "joint": {
        "sweeps": [{"n": [1, 2], "k": [1, 3, 8], "w": [0.03, 0.1, 0.3]}],
        "include": ["2l_8t_0.5w", "2l_all_0.5w,width=magnitude"],
        "arms": ["paper_none", "gold", "shuffled"],
    },
    "demo": {"include": ["1l_1t_0.1w", "1l_3t_0.1w", "2l_3t_0.1w", "2l_8t_0.1w", "2l_8t_0.5w"]},
}
"""Grids by name, as in a grid's YAML file."""

# Fraction of full HSK that closes about two thirds of the gap. It is low, so that each grid's curve has a knee.
_KNEES = {"depth": 0.3, "length": 0.06, "selectors": 0.06}
# Share of the effect of the HSK that a strategy gets, so that strategies differ.
_WORTH = {"left": 0.55, "random": 0.4, "uniform": 0.75}


def simulate(
    grid: str = "demo",
    seeds: int = 5,
    none: float = 0.755,
    gap: float = 0.032,
    noise: float = 0.004,
    random_state: int = 0,
    **changes: Any,
) -> pd.DataFrame:
    """Return the table of one of :data:`GRIDS`.

    Args:
        grid: its name.
        seeds: number of trials of each spec and arm.
        none: mean score without HSK, a share of 1.
        gap: gain of full HSK over none.
        noise: deviation of one trial; a seed shifts all its trials with the same deviation.
        random_state: seed of the noise.
        changes: columns to set, such as ``task="cola"``.
    """
    made = GridSpec.model_validate({"name": grid, "seeds": seeds, **GRIDS[grid]})
    points: list[tuple[str, HSKSpec | None]] = [("none", None)]
    points += [(arm, None) for arm in made.arms if arm != "shuffled"]
    points += [("full", full) for full in made.fulls()]
    points += [("shuffled", full) for full in made.fulls() if "shuffled" in made.arms]
    points += [("spec", spec) for spec in made.specs()]
    random = np.random.default_rng(random_state)
    shift = noise * random.standard_normal(seeds)
    rows = []
    for arm, spec in points:
        fraction, stored = _amounts(spec)
        share = _share(arm, spec, fraction, _KNEES.get(grid, 0.01))
        for seed in range(seeds):
            score = none + gap * share + shift[seed] + noise * random.standard_normal()
            rows.append(_row(arm, spec, seed, fraction, stored, round(float(score), 4)) | changes)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write(folder: Path, *tables: pd.DataFrame) -> Path:
    """Write tables, one below the other, as the ``trials.csv`` of ``folder``, and return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).to_csv(folder / "trials.csv", index=False)
    return folder


def _amounts(spec: HSKSpec | None) -> tuple[float, float]:
    """Return the fraction of full HSK and the bytes an example."""
    if spec is None:
        return 0.0, 0.0
    layers = len(spec.depth.kept(STUDENT_LAYERS, TEACHER_LAYERS))
    k: Any = getattr(spec.length, "k", 1)
    tokens = TOKENS if k == "all" else min(k, TOKENS)
    neurons = spec.width.count(WIDTH)
    kept = layers * tokens * neurons
    index = 0 if spec.width.fixed(WIDTH) is not None else min(WIDTH // 8, 2 * neurons)
    stored = kept * BYTES[spec.precision.selector] + layers * tokens * (index + 1) + 8
    return kept / ((STUDENT_LAYERS + 1) * TOKENS * WIDTH), float(stored)


def _share(arm: str, spec: HSKSpec | None, fraction: float, knee: float) -> float:
    """Return the share of the gap between none and full that is closed, without noise."""
    if spec is None or arm == "shuffled":
        return {"none": 0.0, "paper_none": -0.3, "gold": -0.5, "shuffled": 0.15}[arm]
    l_top: Any = getattr(spec.depth, "l_top", 1.0)
    mapping = {4: 0.8, 5: 1.15}.get(l_top, 1.0)
    if arm == "full":
        return mapping
    worth = _WORTH.get(spec.length.selector, 1.0) if getattr(spec.length, "k", "all") != "all" else 1.0
    worth *= _WORTH.get(spec.width.selector, 1.0) if getattr(spec.width, "w", 1.0) != 1.0 else 1.0
    return float(mapping * (1 - np.exp(-worth * fraction / knee)))


def _row(arm: str, spec: HSKSpec | None, seed: int, fraction: float, stored: float, score: float) -> dict[str, Any]:
    def field(dimension: str, name: str) -> Any:
        value = getattr(getattr(spec, dimension, None), name, "")
        return value if name == "w" else str(value)

    staged = spec is not None
    return {
        "trial": f"{arm}-{spec.fingerprint if spec else 'x'}-{seed}",
        "task": "mr",
        "teacher": "offline:minilm",
        "student": "rosita-3l-2h-96ffn",
        "train_examples": 2000,
        "arm": arm,
        "spec": spec.label if spec else "",
        "seed": seed,
        "fraction": fraction,
        "fraction_padded": fraction * TOKENS / 64,
        "kept_values": round(fraction * (STUDENT_LAYERS + 1) * TOKENS * WIDTH * 2000),
        "bytes_per_example": stored,
        "n": field("depth", "n"),
        "l_top": field("depth", "l_top"),
        "length": field("length", "selector"),
        "k": field("length", "k"),
        "width": field("width", "selector"),
        "w": field("width", "w") if staged else None,
        "precision": field("precision", "selector"),
        "score": score,
        "score_split": "test",
        "dev_score": score,
        "best_dev_score": score,
        "dev_scores": f"{score}",
        "teacher_score": 0.817,
        "held_out_hsk_loss": 0.5 if staged else None,
        "hsk_epochs": 4 if staged else 0,
        "prediction_epochs": 2 if staged else 6,
        "hsk_lr": 8e-4 if staged else None,
        "prediction_lr": 2e-4 if staged else 8e-4,
        "hsk_seconds": 15.0 if staged else 0.0,
        "prediction_seconds": 10.0,
        "examples_per_second": 400.0,
        "clipped_share": 0.4,
        "peak_memory_bytes": 1.5e9,
        "dtype": "bf16",
        "device": "cpu",
        "threads": 1,
        "git_commit": "abc1" * 10,
    }
