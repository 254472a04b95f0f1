"""``hskd grid search`` and ``hskd grid none-rates``: find learning rates that suit a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.cli.options import GridChanges, GridCheckpoint, GridData, GridTeacher, Work
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display
from hskd.errors import HskdError

RATES = Path("results/rates")
"""The folder of the tables of searches."""


@plugin_option
def search(
    grid: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="The grid whose rates are searched.")],
    none_lr: Annotated[str, typer.Option(help="Rates of none.")] = "2e-4,4e-4,8e-4,1.6e-3",
    hsk_lr: Annotated[str, typer.Option(help="Rates of the HSK stage.")] = "4e-4,8e-4,1.6e-3",
    prediction_lr: Annotated[str, typer.Option(help="Rates of the prediction stage after it.")] = "1e-4,2e-4",
    specs: Annotated[
        str, typer.Option(help="Labels of specs to try (default: the middle one by bytes of each family).")
    ] = "",
    bands: Annotated[
        str, typer.Option(help="Bytes per example that divide each family, such as 1000; each part gets its own rates.")
    ] = "",
    held_out: Annotated[
        int, typer.Option(min=0, help="Number of training sentences to hold out and score; 0 scores dev instead.")
    ] = 1000,
    data: GridData = None,
    teacher: GridTeacher = None,
    checkpoint: GridCheckpoint = None,
    changes: GridChanges = None,
    hsk_epochs: Annotated[int | None, typer.Option(help="Epochs of the HSK stage (default: the grid's).")] = None,
    prediction_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the prediction stage (default: the grid's).")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds that the grid does not report.")] = "100,101",
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2,
    work: Work = Path("work"),
) -> None:
    """Search the learning rates of none, full and every family of a grid's specs.

    Specs with the same selectors form a family. Scores are those on held-out training sentences. Each trial is added to
    results/rates/NAME.csv as soon as it is done, and an interrupted search resumes. The best rates of each family are
    written to results/rates/NAME.yaml: run the grid with --set rates=results/rates/NAME.yaml.
    """
    from hskd.grid.changes import changed, own_inputs, parse_changes
    from hskd.grid.spec import load_grid

    tried = [_numbers(none_lr, "--none-lr"), _numbers(hsk_lr, "--hsk-lr"), _numbers(prediction_lr, "--prediction-lr")]
    requested = {
        "seeds": _seeds(seeds),
        "more_seeds": None,
        "rates": [],
        "task.held_out": held_out or None,
        "training.hsk_epochs": hsk_epochs,
        "training.prediction_epochs": prediction_epochs,
    }
    kept = ("more_seeds",)
    named = load_grid(grid)
    spec = changed(
        named,
        own_inputs(named, data, teacher, checkpoint)
        | parse_changes(changes or [])
        | {key: value for key, value in requested.items() if value is not None or key in kept},
    )
    from hskd.grid.search import Rates
    from hskd.grid.search import search as run_search

    none, hsk, prediction = tried
    rates = Rates(none, hsk, prediction, specs.split(), _numbers(bands, "--bands"))
    with display() as progress:
        file = run_search(spec, rates, RATES / f"{spec.name}.csv", work, workers, progress)
    print(file.read_text(encoding="utf-8"), end="")
    print(f"run the grid with these rates: hskd grid run {grid} --set rates={file}")


def none_rates(folders: Annotated[list[Path], typer.Argument(help="Folders of results.")]) -> None:
    """Compare the scores of the arm none at several rates, from finished grids.

    Each folder holds a grid that was run with --set none_lr=RATE. Its trials of none are added to
    results/rates/none.csv.
    """
    from hskd.grid.search import add_none_trials

    print(add_none_trials(folders, RATES / "none.csv").to_string(float_format="%.4g"))


def _numbers(text: str, flag: str) -> list[float]:
    """Parse text such as ``4e-4,8e-4`` into numbers above 0; an empty text gives none."""
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1.0]
    if not all(0 < number < float("inf") for number in numbers):
        raise HskdError(f"{flag} {text}: expected numbers above 0, separated by commas, such as 4e-4,8e-4.")
    return list(dict.fromkeys(numbers))


def _seeds(text: str) -> list[int]:
    numbers = _numbers(text, "--seeds")
    if not numbers or any(number % 1 for number in numbers):
        raise HskdError(f"--seeds {text}: expected whole numbers separated by commas, such as 100,101.")
    return [int(number) for number in numbers]
