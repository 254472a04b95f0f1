"""``hskd grid search`` and ``hskd grid none-rates``: which learning rates suit a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.errors import HskdError

RATES = Path("results/rates")
"""The folder of the tables of searches."""


def search(
    grid: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="The grid whose rates are searched.")],
    none_lr: Annotated[str, typer.Option(help="Rates of none.")] = "4e-4,8e-4,1.6e-3,3.2e-3",
    hsk_lr: Annotated[str, typer.Option(help="Rates of the HSK stage.")] = "4e-4,8e-4,1.6e-3,3.2e-3",
    prediction_lr: Annotated[str, typer.Option(help="Rates of the prediction stage after it.")] = "2e-4,4e-4,8e-4",
    specs: Annotated[str, typer.Option(help="Labels of small specs to search beside full HSK.")] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as task.data=FOLDER; repeatable."),
    ] = None,
    hsk_epochs: Annotated[int | None, typer.Option(help="Epochs of the HSK stage (default: the grid's).")] = None,
    prediction_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the prediction stage (default: the grid's).")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds that the grid does not report.")] = "100,101",
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder of artifacts.")] = Path("work"),
) -> None:
    """Search the learning rates of a grid on the dev split, and print the mean dev score of every setting.

    Each trial is added to results/rates/NAME.csv as soon as it is done. A search that was stopped resumes.
    """
    from hskd.cli.progress import display
    from hskd.grid.changes import changed, parse_changes
    from hskd.grid.spec import load_grid

    spec = changed(load_grid(grid), parse_changes(changes or []))
    epochs = {"hsk_epochs": hsk_epochs, "prediction_epochs": prediction_epochs}
    training = spec.training.model_copy(update={name: count for name, count in epochs.items() if count is not None})
    tried_seeds = tuple(int(seed) for seed in _numbers(seeds, "--seeds"))
    tried = [_numbers(none_lr, "--none-lr"), _numbers(hsk_lr, "--hsk-lr"), _numbers(prediction_lr, "--prediction-lr")]
    from hskd.grid.search import Rates
    from hskd.grid.search import search as run_search

    spec = spec.model_copy(update={"seeds": tried_seeds, "training": training})
    none, hsk, prediction = tried
    rates = Rates(none=none, hsk=hsk, prediction=prediction, specs=specs.split())
    with display() as progress:
        scores = run_search(spec, rates, RATES / f"{spec.name}.csv", work, workers, progress)
    print(scores.to_string(float_format="%.4g"))


def none_rates(folders: Annotated[list[Path], typer.Argument(help="Folders of results.")]) -> None:
    """Set side by side what the arm none scores at several rates, from finished grids.

    Each folder holds a grid that was run with --set none_lr=RATE. Its trials of none are added to
    results/rates/none.csv.
    """
    from hskd.grid.search import add_none_trials

    print(add_none_trials(folders, RATES / "none.csv").to_string(float_format="%.4g"))


def _numbers(text: str, flag: str) -> list[float]:
    """``4e-4,8e-4`` as numbers; an empty text as none."""
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise HskdError(f"{flag} {text}: expected numbers separated by commas, such as 4e-4,8e-4.") from None
