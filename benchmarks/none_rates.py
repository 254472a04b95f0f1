"""*None* at several rates, of several grids, in one table.

``python -m benchmarks.none_rates FOLDER...`` takes the trials of *none* out of finished grids, each run with
``--set none_lr=RATE``, and adds them to ``results/rates/none.csv``; then it prints what every rate scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from benchmarks.rates import add_rows
from hskd.artifacts import read_json
from hskd.results import GRID_FILE, load

TABLE = Path("results/rates/none.csv")
SETTING = ["grid", "none_lr"]


def none_trials(folder: Path) -> pd.DataFrame:
    """The scores of a grid's trials of *none*: one row for each seed, under the name of the grid."""
    trials = load(folder)
    none = trials.loc[trials["arm"] == "none", ["prediction_lr", "seed", "dev_score", "score"]]
    none.insert(0, "grid", read_json(folder / GRID_FILE)["name"])
    return none.rename(columns={"prediction_lr": "none_lr"})


def main(folders: Annotated[list[Path], typer.Argument(help="Folders of results.")]) -> None:
    """Add the trials of none of each folder to the table."""
    table = add_rows(TABLE, pd.concat(map(none_trials, folders)), SETTING)
    print(table.groupby(SETTING)[["dev_score", "score"]].agg(["mean", "count"]).to_string(float_format="%.4g"))


if __name__ == "__main__":
    typer.run(main)
