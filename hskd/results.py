"""Result tables: one tidy row per trial, rebuilt from the trials' JSON files whenever asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from hskd.artifacts import atomic_path, read_json
from hskd.errors import CorruptionError, HskdError

TABLE = "trials"
GRID_FILE = "grid.json"
"""The grid that the results are of, and the ids of its trials."""

COLUMNS = {
    "trial": "fingerprint of the trial's config; names its files in trials/",
    "task": "name of the task",
    "teacher": "the teacher's model",
    "student": "kind and sizes of the student",
    "train_examples": "examples that the student trained on, augmented ones included",
    "arm": "spec, full, none, paper_none, gold or shuffled",
    "spec": "label of the HSK spec; empty but for the arms spec, full and shuffled",
    "seed": "decides batches, dropout and W",
    "fraction": "kept values / values of full HSK of the same mapping, on real tokens",
    "fraction_padded": "the same, counted on tokens padded to the maximum length, as in the paper",
    "kept_values": "values kept, over all training examples",
    "bytes_per_example": "what the spec's store takes on disk",
    "n": "depth: top student layers kept",
    "l_top": "depth: teacher layer, or share of its layers, that the top student layer learns from",
    "length": "length: selector",
    "k": "length: tokens kept of an example",
    "width": "width: selector",
    "w": "width: share of the neurons kept",
    "precision": "precision: selector",
    "score": "what is reported: the score on score_split after the last epoch, a share of 1",
    "score_split": "test where it has labels, else dev",
    "mismatched_score": "mnli: the score on the mismatched split beside score_split",
    "dev_score": "score on dev after the last epoch",
    "best_dev_score": "best score on dev over the epochs of the last stage; for information, not for reporting",
    "dev_scores": "score on dev after each epoch of the last stage, separated by spaces",
    "teacher_score": "the teacher's score on score_split",
    "held_out_hsk_loss": "after the HSK stage: loss against full HSK of the same mapping, on dev examples",
    "hsk_epochs": "epochs of the HSK stage",
    "prediction_epochs": "epochs of the last stage",
    "hsk_lr": "learning rate of the HSK stage",
    "prediction_lr": "peak learning rate of the last stage",
    "hsk_seconds": "time of the HSK stage",
    "prediction_seconds": "time of the last stage",
    "examples_per_second": "over both stages, each example counted once an epoch",
    "clipped_share": "share of the steps, over both stages, whose gradient was clipped",
    "peak_memory_bytes": "peak resident memory of the process that ran the trial, which may have run others before",
    "dtype": "fp32, or bf16 for autocast",
    "device": "where the student trained",
    "threads": "CPU threads of the trial",
    "git_commit": "of the code",
}
"""Every column of the table, and what it means."""


def load(path: str | Path) -> pd.DataFrame:
    """The table of a results folder (or of its ``trials`` folder): one row per trial that is done.

    Where ``grid.json`` lists the grid's trials, others that lie there too (from before the grid was changed, say)
    are left out.

    Raises:
        HskdError: there is no results folder, or no trial is done.
        CorruptionError: a result cannot be read.
    """
    folder = Path(path)
    trials = folder if folder.name == TABLE else folder / TABLE
    if not trials.is_dir():
        raise HskdError(f"{folder}: no results there (there is no folder {TABLE}); run the grid first (hskd grid run).")
    files = sorted(file for file in trials.glob("*.json") if not file.name.endswith(".error.json"))
    grid = trials.with_name(GRID_FILE)
    if grid.is_file():
        planned = set(read_json(grid).get("trials", ()))
        files = [file for file in files if file.stem in planned]
    if not files:
        raise HskdError(f"{trials}: no trial is done yet; run the grid first (hskd grid run).")
    table = pd.DataFrame([_row(file) for file in files], columns=list(COLUMNS))
    return table.sort_values(["student", "seed", "fraction", "arm", "spec", "trial"], kind="stable", ignore_index=True)


def write_table(out: Path) -> pd.DataFrame:
    """Rebuild ``trials.csv`` and ``trials.parquet`` in ``out`` from the JSON files, and return the table."""
    table = load(out)
    with atomic_path(out / f"{TABLE}.csv") as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(out / f"{TABLE}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    return table


def _row(file: Path) -> dict[str, Any]:
    result = read_json(file)
    try:
        return row(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{file}: not a trial's result ({error!r}); delete it and run the grid.") from None


def row(result: dict[str, Any]) -> dict[str, Any]:
    """A trial's result as a row of the table."""
    settings, stages = result["settings"], result["stages"]
    spec = result["spec_fields"] or {}
    split = "test" if "test" in result["metrics"] else "dev"
    hsk, last = stages.get("hsk", {}), stages.get("prediction", {})
    steps = hsk.get("steps", 0) + last.get("steps", 0)
    clipped = sum(stage.get("steps", 0) * stage.get("clipped_share", 0) for stage in (hsk, last))
    seconds = hsk.get("seconds", 0.0) + last.get("seconds", 0.0)
    epochs = hsk.get("epochs", 0) + last.get("epochs", 0)
    return {
        "trial": result["id"],
        "task": result["task"],
        "teacher": result["config"]["teacher"]["model"],
        "student": result["student_name"],
        "train_examples": result["train_examples"],
        "arm": settings["arm"],
        "spec": result["spec"] or "",
        "seed": settings["seed"],
        **{name: result[name] for name in ("fraction", "fraction_padded", "kept_values", "bytes_per_example")},
        "n": _text(spec, "depth", "n"),
        "l_top": _text(spec, "depth", "l_top"),
        "length": _text(spec, "length", "selector"),
        "k": _text(spec, "length", "k"),
        "width": _text(spec, "width", "selector"),
        "w": spec.get("width", {}).get("w"),
        "precision": _text(spec, "precision", "selector"),
        "score": result["metrics"][split]["score"],
        "score_split": split,
        "mismatched_score": result["metrics"].get(f"{split}_mismatched", {}).get("score", math.nan),
        "dev_score": result["metrics"]["dev"]["score"],
        "best_dev_score": result["best_dev_score"],
        "dev_scores": " ".join(str(score) for score in result["dev_scores"]),
        "teacher_score": result["teacher_metrics"][split]["score"],
        "held_out_hsk_loss": hsk.get("held_out_loss"),
        "hsk_epochs": hsk.get("epochs", 0),
        "prediction_epochs": last.get("epochs", 0),
        "hsk_lr": settings["hsk_lr"] if hsk else None,
        "prediction_lr": settings["prediction_lr"],
        "hsk_seconds": hsk.get("seconds", 0.0),
        "prediction_seconds": last.get("seconds", 0.0),
        "examples_per_second": epochs * result["train_examples"] / seconds if seconds else None,
        "clipped_share": clipped / steps if steps else None,
        "peak_memory_bytes": result["peak_memory_bytes"],
        "dtype": result["dtype"],
        "device": result["device"],
        "threads": result["threads"],
        "git_commit": result["made_by"]["git_commit"],
    }


def _text(spec: dict[str, Any], dimension: str, field: str) -> str:
    """A field as text: amounts are numbers or ``all``, and a Parquet column has one type."""
    value = spec.get(dimension, {}).get(field)
    return "" if value is None else str(value)
