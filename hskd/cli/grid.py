"""``hskd grid``: plan, run, status, retry, pack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hskd import processes
from hskd.cli import grid_search
from hskd.cli.options import (
    ExecutorOptions,
    GridChanges,
    GridCheckpoint,
    GridData,
    GridTeacher,
    OnDevice,
    TrialOptions,
    Work,
    with_settings,
)
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display, tables
from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.grid.spec import GridSpec
    from hskd.trials.config import TrialConfig

app = typer.Typer(help="Planned sets of trials: plan, run, resume.", no_args_is_help=True)
app.command()(grid_search.search)
app.command()(grid_search.none_rates)


@app.callback()
def _refuse_to_divide() -> None:
    if processes.launched()[1] > 1:
        raise HskdError(
            "a grid's trials run in one process each: start `hskd grid` by itself, not with accelerate launch, and "
            "spread its trials with --workers or --ray."
        )


Name = Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="A preset, such as demo or mr-joint, or a file.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results (default: results/NAME).")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Number of seeds, instead of the grid's.")]


def read(
    name: str,
    out: Path | None,
    seeds: int | None,
    machine: TrialOptions,
    data: str | None = None,
    teacher: str | None = None,
    checkpoint: str | None = None,
    changes: list[str] | None = None,
) -> tuple[GridSpec, list[TrialConfig], Path]:
    """Return the named grid with the requested changes, its trials on this machine, and its output folder."""
    from hskd.grid.changes import changed, own_inputs, parse_changes
    from hskd.grid.spec import load_grid

    grid = load_grid(name)
    requested = own_inputs(grid, data, teacher, checkpoint)
    if seeds is not None:
        requested |= {"seeds": seeds, "more_seeds": None}
    grid = changed(grid, requested | parse_changes(changes or []))
    return grid, grid.trials(machine.machine()), out or Path("results") / grid.name


@app.command()
@plugin_option
@with_settings(machine=TrialOptions)
def plan(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: GridData = None,
    teacher: GridTeacher = None,
    checkpoint: GridCheckpoint = None,
    changes: GridChanges = None,
    difference: Annotated[float, typer.Option(min=0.01, help="Difference to detect, in points of score.")] = 0.5,
    *,
    machine: TrialOptions,
) -> None:
    """Show what a grid would do: trials, those done, disk, time, and how many seeds a difference needs."""
    from rich.table import Table

    grid, trials, folder = read(name, out, seeds, machine, data, teacher, checkpoint, changes)
    from hskd.grid.estimate import estimate
    from hskd.grid.run import GridStatus
    from hskd.io import format_bytes

    status = GridStatus.of(trials, folder)
    with display() as progress:
        estimated = estimate(grid, trials, status, folder, work, difference / 100, progress)
    table = Table(title=f"{grid.name}: {len(trials)} trials, {len(grid.seed_list)} seeds")
    for column in ("arm", "spec", "bytes an example", "share of full's bytes", "share of full's values", "done"):
        table.add_column(column, justify="left" if column in ("arm", "spec") else "right")
    for row in estimated.rows:
        table.add_row(*row)
    tables().print(table)
    print(f"done: {len(status.done)} of {len(trials)}; failed before: {len(status.failed)}")
    print(f"disk for stores: {format_bytes(estimated.store_bytes)}; free: {format_bytes(estimated.free_bytes)}")
    print(f"time: {estimated.time}")
    print(f"seeds: {estimated.seeds}")


@app.command()
@plugin_option
@with_settings(machine=TrialOptions, place=ExecutorOptions)
def run(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: GridData = None,
    teacher: GridTeacher = None,
    checkpoint: GridCheckpoint = None,
    changes: GridChanges = None,
    *,
    machine: TrialOptions,
    place: ExecutorOptions,
) -> None:
    """Run the trials that are not done. You can kill it and run it again at any time."""
    grid, trials, folder = read(name, out, seeds, machine, data, teacher, checkpoint, changes)
    from hskd.grid.run import run_grid
    from hskd.results import TABLE_FILE

    with display() as progress:
        table, status = run_grid(grid, trials, folder, work, place.executor(), progress)
    print(f"{len(table)} trials in {folder / TABLE_FILE}")
    if status.failed:
        print(f"{len(status.failed)} failed; see `hskd grid status {name}`", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
@plugin_option
@with_settings(machine=TrialOptions)
def status(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: GridData = None,
    teacher: GridTeacher = None,
    checkpoint: GridCheckpoint = None,
    changes: GridChanges = None,
    *,
    machine: TrialOptions,
) -> None:
    """Show which trials are done, which failed and why, which have changed data or models, and the scores so far."""
    grid, trials, folder = read(name, out, seeds, machine, data, teacher, checkpoint, changes)
    from hskd.grid.record import error_path
    from hskd.grid.run import GridStatus, changed_contents
    from hskd.heads.metrics import in_unit
    from hskd.results import ResultsFolder, load
    from hskd.trials.workspace import Workspace

    status = GridStatus.of(trials, folder)
    print(f"{grid.name}: {len(status.done)} done, {len(status.pending)} to do, of which {len(status.failed)} failed")
    for config in status.pending:
        if config.id in status.failed:
            print(f"failed: {config.title}: {status.failed[config.id]}  ({error_path(folder, config)})")
    if status.done:
        with display() as progress:
            changed = changed_contents(status.done, Workspace(work, trials), folder, progress) or {}
        for config in status.done:
            if names := changed.get(config.id):
                print(f"changed: {config.title}: {', '.join(names)}; `hskd grid run {name}` runs it again")
        unit = next(iter(ResultsFolder(folder).results().values())).score_unit
        for (student, arm, spec), scores in load(folder).groupby(["student", "arm", "spec"], sort=False)["score"]:
            print(f"{student}  {arm:10} {spec:30} {in_unit(scores.mean(), unit)}  ({len(scores)} seeds)")


@app.command()
@plugin_option
@with_settings(machine=TrialOptions)
def retry(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: GridData = None,
    teacher: GridTeacher = None,
    checkpoint: GridCheckpoint = None,
    changes: GridChanges = None,
    store_on_device: OnDevice = "auto",
    *,
    machine: TrialOptions,
) -> None:
    """Run only the failed trials again, in this process, one after the other."""
    grid, trials, folder = read(name, out, seeds, machine, data, teacher, checkpoint, changes)
    from hskd.grid.executors import InProcess
    from hskd.grid.run import GridStatus, run_grid

    failed = GridStatus.of(trials, folder).failed
    if not failed:
        print("no trial has failed")
        return
    with display() as progress:
        _, status = run_grid(grid, trials, folder, work, InProcess(store_on_device), progress, only=failed)
    print(f"{len(failed) - len(status.failed)} of {len(failed)} are done now")
    if status.failed:
        raise typer.Exit(1)


@app.command()
def pack(
    folders: Annotated[list[Path], typer.Argument(help="Folders of results, such as results/mr-joint.")],
    scored_only: Annotated[
        bool,
        typer.Option(
            "--scored-only",
            help="Delete predictions on splits whose score is not reported (dev where test has labels). "
            "No report reads them.",
        ),
    ] = False,
) -> None:
    """Pack the files of single trials into trials.parquet and predictions.npz, as the end of a run does.

    Every result is read back and compared before its file is deleted. Nothing is lost unless you ask for --scored-only.
    """
    from hskd.io import format_bytes
    from hskd.results import pack as fold

    for folder in folders:
        packed = fold(folder, scored_only)
        sizes = f"{format_bytes(packed.before)} before, {format_bytes(packed.after)} now"
        print(f"{folder}: {packed.trials} trials, {packed.folded} folded; {sizes}")
