"""Build the ``hskd distill`` command that repeats a point of a study."""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

import pandas as pd

from hskd.analysis.table import Study
from hskd.errors import HskdError
from hskd.hashing import canonical_json
from hskd.results import ResultsFolder
from hskd.spec import HSKSpec
from hskd.trials.config import TaskPlan, TrialConfig
from hskd.trials.settings import DistillSettings

_FROM_TABLE = ("hsk_epochs", "prediction_epochs", "hsk_lr", "prediction_lr")


def distil_command(study: Study, name: str, examples: int | None = None) -> str:
    """The ``hskd distill`` command that distils point ``name`` as the trials of ``study`` did, quoted for a shell.

    Settings come from the trial's file if the study's folder has it. Otherwise they come from the table, which lacks
    some, such as the batch size. Defaults, the seed and the machine are left out. The paths of the student and the
    store are unknown: ``runs/student`` and ``runs/superset`` stand for them.

    Args:
        study: the trials.
        name: a point of the arm *spec* or *full*.
        examples: training examples [default: as many as the trials had].
    """
    row = study.trials[study.trials["name"] == name].iloc[0]
    kept = ResultsFolder(study.folder).result(row["trial"]) if study.folder and "trial" in row else None
    result = kept.as_json() if kept else {}
    config = result.get("config") or {}
    task: dict[str, Any] = {"task": study.task}
    if "task" in config:
        task = _task(TaskPlan.model_validate(config["task"]))
    if examples is not None or "task" not in config:
        task["train_examples"] = examples or study.train_examples
    settings = config.get("settings") or {column: row[column] for column in _FROM_TABLE if column in row}
    return _command(task, _spec(str(row["spec"]), result), str(row["spec"]), settings)


def command_of(config: TrialConfig) -> str:
    """The ``hskd distill`` command of a trial, quoted for a shell, with the paths of :func:`distil_command`."""
    assert config.spec is not None, "an arm without HSK has no spec"
    label = config.spec.label
    written = _spec(label, {"spec_fields": config.spec.model_dump(mode="json")})
    return _command(_task(config.task), written, label, config.settings.model_dump(mode="json"))


def _command(task: dict[str, Any], spec: str, label: str, settings: dict[str, Any]) -> str:
    options = {
        **task,
        "student": "runs/student",
        "store": "runs/superset",
        "spec": spec,
        **_changed(settings),
        "out": "runs/" + re.sub(r"[^\w.]+", "-", label),
    }
    words = ["hskd", "distill"]
    for option, value in options.items():
        words += [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _task(plan: TaskPlan) -> dict[str, Any]:
    fields = plan.model_dump(exclude_none=True, exclude={"held_out"})
    if plan.text_columns:
        fields["text_columns"] = ",".join(plan.text_columns)
    return {"task": fields.pop("name"), **fields}


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not defaults. Epochs that the table holds as floats become integers."""
    changed = {}
    for field, declared in DistillSettings.model_fields.items():
        value = settings.get(field)
        if isinstance(value, list | tuple):
            value = ",".join(value) or None
        if field in ("arm", "seed") or value is None or pd.isna(value) or value == declared.default:
            continue
        whole = isinstance(value, float) and value.is_integer() and math.isfinite(value) and field.endswith("epochs")
        changed[field] = int(value) if whole else value
    return changed


def _spec(label: str, result: dict[str, Any]) -> str:
    """The label, or JSON where a label cannot express the spec (explicit layer pairs)."""
    try:
        return HSKSpec.parse(label).label
    except HskdError:
        fields = result.get("spec_fields")
        return canonical_json(fields) if fields else label
