"""Provenance of a report: facts about the trials from the results folder, and the commands that repeat them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from hskd.analysis.stats.sufficiency import MARGIN
from hskd.analysis.table import Study
from hskd.errors import brief
from hskd.grid.changes import differences
from hskd.grid.spec import GridSpec, load_grid, presets
from hskd.heads.metrics import in_unit
from hskd.results import GRID_FILE, ResultsFolder
from hskd.trials.result import TrialResult

Facts = list[tuple[str, str]]

_SETTINGS = {
    "hsk_epochs": "epochs of the HSK stage",
    "hsk_lr": "learning rate of the HSK stage",
    "prediction_epochs": "epochs of the prediction stage",
    "prediction_lr": "learning rate of the prediction stage",
    "warmup": "warm-up, share of the steps",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradients clipped at norm",
    "tau": "temperature",
    "hsk_loss": "loss of the HSK stage",
}


def facts(study: Study, folder: Path | None) -> Facts:
    """Facts about how a study was made, as pairs of a name and a text, in reading order.

    Args:
        study: the trials.
        folder: the results folder; None for a table alone, of which less is known.
    """
    trials = study.trials
    arms = trials.groupby("arm", sort=False)["name"].agg(["nunique", "size"])
    counts = ", ".join(f"{arm} {row['size']}" for arm, row in arms.iterrows())
    results = _results(trials, folder)
    first = results[0].as_json() if results else {}
    made_by = _keys(first.get("made_by"))
    parameters = first.get("student_parameters")
    known_facts: Facts = [
        ("task", f"{study.task}, {study.train_examples:,} training examples; scored on {study.score_split}"),
        ("teacher", f"{study.teacher}{_teacher(first)}; it scores {in_unit(study.teacher_score, study.unit)}"),
        ("student", study.student + (f", {parameters:,} parameters" if parameters else "")),
        ("trials", f"{len(trials)}: {counts}"),
        ("trials not done", _not_done(folder)),
        ("read from", "" if folder else "the table alone, whose trials are not here to compare it with"),
        ("seeds", ", ".join(map(str, sorted(trials["seed"].unique())))),
        ("specs", f"{(study.points['arm'] == 'spec').sum()}"),
        *_settings(trials, first),
        ("switches of compat", ", ".join(map(str, _keys(first.get("settings")).get("compat") or ()))),
        ("knowledge", "from the teacher, in the training loop" if _keys(first.get("config")).get("online") else ""),
        (
            "machine",
            _join(_all(results, "machine"), _values(trials, "device"), _values(trials, "dtype", "arithmetic in")),
        ),
        ("threads of a trial", _values(trials, "threads")),
        ("time", _time(trials)),
        ("versions", ", ".join(f"{name} {made_by[name]}" for name in _VERSIONS if made_by.get(name))),
        ("git commit", _values(trials, "git_commit")),
    ]
    return [(name, text) for name, text in known_facts if text]


def commands(path: Path, out: Path, margin: float, axis: str = "bytes") -> list[tuple[str, str]]:
    """The shell commands behind a report, each after a note that says what it does.

    Args:
        path: of the results, as the user gave it.
        out: folder of the report.
        margin: of the minimum, a share of 1.
        axis: what orders the amounts: ``bytes`` or ``values``.
    """
    content = ResultsFolder(path).grid() if path.is_dir() else None
    grid_commands = [_grid_command(path, content)] if content is not None else []
    report = ["hskd", "report", str(path)]
    if out != (path if path.is_dir() else path.parent) / "report":
        report += ["--out", str(out)]
    if margin != MARGIN:
        report += ["--margin", f"{100 * margin:g}"]
    if axis != "bytes":
        report += ["--axis", axis]
    return [*grid_commands, ("made this page", shlex.join(report))]


_VERSIONS = ("hskd", "python", "torch", "transformers", "datasets", "accelerate", "numpy")


def _grid_command(folder: Path, content: dict[str, Any]) -> tuple[str, str]:
    """The command that runs the grid of ``folder``: a preset with its changes, or else the grid's file."""
    name = str(content.get("name"))
    command = ["hskd", "grid", "run", str(folder / GRID_FILE)]
    note = "runs the grid, from the file that says how it was run"
    grid = _recorded(content)
    if grid is not None and name in presets():
        preset, seeds = load_grid(name), []
        if isinstance(grid.seeds, int) and grid.more_seeds is None:
            preset = preset.model_copy(update={"seeds": grid.seeds, "more_seeds": None})
            seeds = ["--seeds", str(grid.seeds)]
        changes = differences(preset.model_dump(mode="json"), grid.model_dump(mode="json"))
        sets = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        command = ["hskd", "grid", "run", name, *seeds, *sets]
        note = "runs the grid, a preset" + (" with changes" if changes else "")
    if folder != Path("results") / name:
        command += ["--out", str(folder)]
    return note, shlex.join(command)


def _recorded(content: dict[str, Any]) -> GridSpec | None:
    """The grid in ``grid.yaml``; None if this version cannot read it."""
    try:
        return GridSpec.model_validate(content)
    except ValidationError:
        return None


def _results(trials: pd.DataFrame, folder: Path | None) -> list[TrialResult]:
    if folder is None or "trial" not in trials:
        return []
    results = ResultsFolder(folder).results()
    return [results[trial] for trial in trials["trial"] if trial in results]


def _not_done(folder: Path | None) -> str:
    """How many trials of the grid are missing, over all studies; empty if none is or if it is unknown."""
    kept = ResultsFolder(folder) if folder is not None else None
    planned = kept.planned() if kept is not None else None
    if kept is None or planned is None:
        return ""
    missing = set(planned) - kept.done()
    return f"{len(missing)} of the grid's {len(planned)}" if missing else ""


def _teacher(result: dict[str, Any]) -> str:
    plan = _keys(_keys(result.get("config")).get("teacher"))
    settings = _keys(plan.get("settings"))
    if plan.get("fine_tuned") or not settings:
        return ""
    return f", fine-tuned for {settings.get('epochs')} epochs at {_number(settings.get('lr'))}"


def _keys(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one: configs of earlier versions hold other types."""
    return value if isinstance(value, dict) else {}


def _settings(trials: pd.DataFrame, result: dict[str, Any]) -> Facts:
    """The settings of the specs' trials, and the rates that *none* has instead."""
    staged = trials[trials["arm"] == "spec"]
    setting_facts = []
    for name, description in _SETTINGS.items():
        text = _values(staged, name) or _number(_keys(result.get("settings")).get(name))
        setting_facts.append((description, text))
    rates = [_values(trials[trials["arm"] == "none"], column) for column in ("prediction_epochs", "prediction_lr")]
    if all(rates):
        setting_facts.append(("none instead", f"{rates[0]} epochs of the prediction stage at {rates[1]}"))
    return setting_facts


def _values(trials: pd.DataFrame, column: str, prefix: str = "") -> str:
    """The distinct values of a column; empty if the column is missing or empty."""
    if column not in trials:
        return ""
    text = ", ".join(dict.fromkeys(_number(value) for value in trials[column].dropna()))
    return f"{prefix} {text}".strip() if text else ""


def _all(results: list[TrialResult], name: str) -> str:
    return ", ".join(dict.fromkeys(str(result.made_by[name]) for result in results if name in result.made_by))


def _time(trials: pd.DataFrame) -> str:
    stages = ("hsk_seconds", "prediction_seconds")
    if any(column not in trials or trials[column].isna().any() for column in stages):
        return ""
    seconds = trials[list(stages)].sum(axis=1)
    total = seconds.sum()
    text = f"{total / 3600:.1f} hours" if total >= 5400 else f"{total / 60:.0f} minutes"
    return f"{text} of training in all, {seconds.mean():.0f} s a trial (teacher and store apart)"


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    try:
        return str(value)
    except ValueError:  # An integer with thousands of digits.
        return brief(value)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
