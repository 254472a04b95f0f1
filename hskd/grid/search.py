"""How a grid's learning rates are chosen: a search on the dev split, on seeds that the grid does not report.

The arms *none* and *full* are searched alike, and small specs beside them: a rate that is best for full HSK may spoil a
student that learns from little. A search adds each trial to a table and skips what its work folder has done already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hskd.errors import HskdError
from hskd.grid.executors import Workers
from hskd.grid.run import GridProgress
from hskd.grid.spec import GridSpec
from hskd.io import atomic_path
from hskd.results import ResultsFolder, load
from hskd.trials.config import Machine, TrialConfig
from hskd.trials.workspace import Workspace

SEARCH_KEYS = ["student", "train_examples", "arm", "hsk_epochs", "prediction_epochs", "hsk_lr", "prediction_lr"]
"""The columns that say what a trial of a search tried; beside them stand the seed and the dev score."""
NONE_KEYS = ["grid", "none_lr"]
"""The columns that tell the rows of :func:`none_trials` apart, beside the seed."""


@dataclass(frozen=True)
class Rates:
    """The learning rates that a search tries, and on which points.

    Attributes:
        none: rates of the arm *none*.
        hsk: rates of the HSK stage.
        prediction: rates of the prediction stage after it; every pair with ``hsk`` is tried.
        specs: labels of small specs that are searched beside full HSK.
    """

    none: Sequence[float]
    hsk: Sequence[float]
    prediction: Sequence[float]
    specs: Sequence[str] = ()


def search_trials(grid: GridSpec, rates: Rates) -> list[TrialConfig]:
    """The trials of a search: *none* at each rate of its own, *full* and the small specs at each pair of rates."""
    machine = Machine.here()
    bare = grid.model_copy(update={"sweeps": (), "include": tuple(rates.specs), "arms": (), "more_seeds": None})
    trials = [
        trial
        for none_rate in rates.none
        for trial in bare.model_copy(update={"none_lr": none_rate}).trials(machine)
        if trial.settings.arm == "none"
    ]
    for hsk_rate in rates.hsk:
        for prediction_rate in rates.prediction:
            training = bare.training.model_copy(update={"hsk_lr": hsk_rate, "prediction_lr": prediction_rate})
            at_rates = bare.model_copy(update={"training": training})
            trials += [trial for trial in at_rates.trials(machine) if trial.settings.arm != "none"]
    return trials


def search(grid: GridSpec, rates: Rates, table: Path, work: Path, workers: int, progress: GridProgress) -> pd.DataFrame:
    """Run a search, and add each trial to ``table`` as soon as it is done.

    Args:
        grid: the grid whose rates are searched, with the seeds of the search.
        rates: what is tried.
        table: the CSV file to add to.
        work: folder of artifacts; trials that an earlier search left there are not run again.
        workers: trials at a time.
        progress: is told of each trial.

    Returns:
        Mean, least and greatest dev score of every setting in ``table``, and how many seeds it has.

    Raises:
        HskdError: a trial failed.
    """
    trials = search_trials(grid, rates)
    workspace = Workspace(work, trials)
    workspace.ensure_shared(progress)
    outcomes = Workers(workers).run(workspace, trials, work / "rates" / grid.name, progress)
    for done, (config, result, error) in enumerate(outcomes, start=1):
        if result is None:
            raise HskdError(f"{config.title}: {error}")
        row = search_row(config, result.metrics["dev"]["score"])
        progress.trials(done, 0, len(trials), str(row))
        add_rows(table, pd.DataFrame([row]), SEARCH_KEYS)
    scores = pd.read_csv(table).groupby(SEARCH_KEYS, dropna=False)["dev_score"]
    return scores.agg(["mean", "min", "max", "count"])


def search_row(config: TrialConfig, dev_score: float) -> dict[str, Any]:
    """A trial's row in the table of a search."""
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
    return dict(zip(SEARCH_KEYS, values, strict=True)) | {"seed": settings.seed, "dev_score": dev_score}


def none_trials(folder: Path) -> pd.DataFrame:
    """The scores of a finished grid's trials of *none*: one row for each seed, under the name of the grid."""
    trials = load(folder)
    none = trials.loc[trials["arm"] == "none", ["prediction_lr", "seed", "dev_score", "score"]]
    none.insert(0, "grid", (ResultsFolder(folder).grid() or {}).get("name", folder.name))
    return none.rename(columns={"prediction_lr": "none_lr"})


def add_none_trials(folders: Sequence[Path], table: Path) -> pd.DataFrame:
    """Add the trials of *none* of finished grids, run at different rates, to ``table``.

    Returns:
        Mean dev score and score of every grid and rate in ``table``, and how many seeds it has.
    """
    rows = add_rows(table, pd.concat([none_trials(folder) for folder in folders]), NONE_KEYS)
    return rows.groupby(NONE_KEYS)[["dev_score", "score"]].agg(["mean", "count"])


def add_rows(path: Path, rows: pd.DataFrame, setting: Sequence[str]) -> pd.DataFrame:
    """Write ``rows`` into a table, in the place of those of the same setting and seed; returns the whole table."""
    earlier = [pd.read_csv(path)] if path.is_file() else []
    keys = [*setting, "seed"]
    table = pd.concat([*earlier, rows]).drop_duplicates(keys, keep="last").sort_values(keys)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return table
