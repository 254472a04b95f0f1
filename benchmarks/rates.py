"""How a grid's learning rates are chosen: a search on the dev split, on seeds that the grid does not report.

The arms *none* and *full* are searched alike, and small specs beside them: a rate that is best for full HSK may spoil a
student that learns from little. ``python -m benchmarks.rates mr-joint`` writes what it saw to
``results/rates/mr-joint.csv`` and prints it; run again, it goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from hskd.artifacts import atomic_path
from hskd.cli.grid import Set
from hskd.cli.progress import display
from hskd.grid.changes import changed, parse_changes
from hskd.grid.config import Machine, TrialConfig
from hskd.grid.executors import Workers
from hskd.grid.spec import GridSpec, load_grid
from hskd.grid.study import Study

SETTING = ["student", "train_examples", "arm", "hsk_epochs", "prediction_epochs", "hsk_lr", "prediction_lr"]
"""What was tried; beside it stand the seed and the dev score."""


def searched(
    grid: GridSpec, none_rates: list[float], hsk_rates: list[float], last_rates: list[float], specs: list[str]
) -> list[TrialConfig]:
    """*none* at each of ``none_rates``; *full* and ``specs`` at each pair of ``hsk_rates`` and ``last_rates``."""
    machine = Machine.here()
    bare = grid.model_copy(update={"sweeps": (), "include": tuple(specs), "arms": (), "more_seeds": None})
    trials = [
        trial
        for rate in none_rates
        for trial in bare.model_copy(update={"none_lr": rate}).trials(machine)
        if trial.settings.arm == "none"
    ]
    for hsk_rate in hsk_rates:
        for last_rate in last_rates:
            training = bare.training.model_copy(update={"hsk_lr": hsk_rate, "prediction_lr": last_rate})
            changed = bare.model_copy(update={"training": training})
            trials += [trial for trial in changed.trials(machine) if trial.settings.arm != "none"]
    return trials


def row(config: TrialConfig, dev_score: float) -> dict[str, object]:
    """One trial of the search."""
    settings = config.settings
    values = (
        config.student_name,
        config.task.train_examples,
        config.point,
        settings.hsk_epochs,
        settings.prediction_epochs,
        settings.hsk_lr if settings.arm != "none" else None,
        settings.prediction_lr,
    )
    return dict(zip(SETTING, values, strict=True)) | {"seed": settings.seed, "dev_score": dev_score}


def add_rows(path: Path, rows: pd.DataFrame, setting: list[str]) -> pd.DataFrame:
    """Write rows into a table, in the place of those of the same setting and seed; the whole of it."""
    known = [pd.read_csv(path)] if path.is_file() else []
    keys = [*setting, "seed"]
    table = pd.concat([*known, rows]).drop_duplicates(keys, keep="last").sort_values(keys)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return table


def numbers(text: str) -> list[float]:
    """``4e-4,8e-4`` as numbers; nothing as none."""
    return [float(part) for part in text.split(",") if part]


def main(
    grid: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML")],
    none_lr: Annotated[str, typer.Option(help="Rates of none.")] = "4e-4,8e-4,1.6e-3,3.2e-3",
    hsk_lr: Annotated[str, typer.Option(help="Rates of the HSK stage.")] = "4e-4,8e-4,1.6e-3,3.2e-3",
    prediction_lr: Annotated[str, typer.Option(help="Rates of the prediction stage after it.")] = "2e-4,4e-4,8e-4",
    specs: Annotated[str, typer.Option(help="Labels of small specs to search beside full HSK.")] = "",
    changes: Set = None,
    hsk_epochs: Annotated[int | None, typer.Option(help="Epochs of the HSK stage [default: the grid's].")] = None,
    prediction_epochs: Annotated[int | None, typer.Option(help="Epochs of the prediction stage.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds that the grid does not report.")] = "100,101",
    workers: Annotated[int, typer.Option(help="Trials at a time.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder of artifacts.")] = Path("work"),
) -> None:
    """Print the mean dev score of every setting."""
    spec = changed(load_grid(grid), parse_changes(changes or []))
    spec = spec.model_copy(update={"seeds": tuple(int(seed) for seed in seeds.split(","))})
    epochs = {"hsk_epochs": hsk_epochs, "prediction_epochs": prediction_epochs}
    training = spec.training.model_copy(update={name: count for name, count in epochs.items() if count is not None})
    spec = spec.model_copy(update={"training": training})
    trials = searched(spec, numbers(none_lr), numbers(hsk_lr), numbers(prediction_lr), specs.split())
    path = Path("results/rates") / f"{spec.name}.csv"
    with display() as shown:
        study = Study(trials, work, shown)
        study.build()
        outcomes = Workers(workers).run(study, trials, work / "rates" / spec.name)
        for done, (config, result, error) in enumerate(outcomes, start=1):
            if result is None:
                raise SystemExit(error)
            entry = row(config, result["metrics"]["dev"]["score"])
            shown.trials(done, 0, len(trials), str(entry))
            add_rows(path, pd.DataFrame([entry]), SETTING)
    scores = pd.read_csv(path).groupby(SETTING, dropna=False)["dev_score"]
    print(scores.agg(["mean", "min", "max", "count"]).to_string(float_format="%.4g"))


if __name__ == "__main__":
    typer.run(main)
