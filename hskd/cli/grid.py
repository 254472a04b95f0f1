"""``hskd grid``: plan, run, status, retry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from hskd import processes
from hskd.artifacts import format_bytes
from hskd.cli.progress import display
from hskd.errors import HskdError
from hskd.grid.changes import changed, parse_changes, replaced_checkpoint
from hskd.grid.config import Machine, TrialConfig
from hskd.grid.estimate import estimate
from hskd.grid.executors import Executor, InProcess, RayCluster, Workers
from hskd.grid.publish import error_path
from hskd.grid.run import Progress, run_grid
from hskd.grid.spec import GridSpec, load_grid
from hskd.results import load
from hskd.runtime import DType

app = typer.Typer(help="Planned sets of trials: plan, run, resume.", no_args_is_help=True)


@app.callback()
def _refuse_to_divide() -> None:
    if processes.launched()[1] > 1:
        raise HskdError(
            "a grid's trials run in one process each: start `hskd grid` by itself, not with accelerate launch, and "
            "spread its trials with --workers or --ray."
        )


Name = Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="A preset, such as demo or mr-joint, or a file.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results (default: results/NAME).")]
Work = Annotated[Path, typer.Option(help="Folder of artifacts, shared by all grids.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="That many seeds instead of the grid's.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of a trial; their number changes the bits.")]
Data = Annotated[str | None, typer.Option(help="Other data than the grid's: a folder or file (task.data).")]
Model = Annotated[str | None, typer.Option("--teacher", help="Another model to make the teacher from (teacher.model).")]
Checkpoint = Annotated[str | None, typer.Option(help="Another checkpoint for students of kind tinybert.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.hsk_epochs=3; repeatable."),
]
Precision = Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 where it is native.")]


def read(
    name: str,
    out: Path | None,
    seeds: int | None,
    threads: int,
    dtype: DType,
    data: str | None = None,
    teacher: str | None = None,
    checkpoint: str | None = None,
    changes: list[str] | None = None,
) -> tuple[GridSpec, list[TrialConfig], Path]:
    """The grid of that name, changed as asked for, its trials on this machine, and its output folder."""
    grid = load_grid(name)
    wanted: dict[str, Any] = {"seeds": seeds, "task.data": data, "teacher.model": teacher}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if seeds is not None:
        wanted["more_seeds"] = None
    if checkpoint is not None:
        wanted |= replaced_checkpoint(grid, checkpoint)
    grid = changed(grid, wanted | parse_changes(changes or []))
    return grid, grid.trials(Machine.here(threads, dtype)), out or Path("results") / grid.name


@app.command()
def plan(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: Data = None,
    teacher: Model = None,
    checkpoint: Checkpoint = None,
    changes: Set = None,
    threads: Threads = 1,
    dtype: Precision = "auto",
    difference: Annotated[float, typer.Option(min=0.01, help="Difference to be seen, in points of score.")] = 0.5,
) -> None:
    """Say what a grid would do: trials, what is done, disk, time, and how many seeds a difference needs."""
    grid, trials, folder = read(name, out, seeds, threads, dtype, data, teacher, checkpoint, changes)
    progress = Progress.of(trials, folder)
    with display() as shown:
        estimated = estimate(grid, trials, progress, folder, work, difference / 100, shown)
    table = Table(title=f"{grid.name}: {len(trials)} trials, {len(grid.seed_list)} seeds")
    for column in ("arm", "spec", "share of full HSK", "bytes an example", "done"):
        table.add_column(column, justify="left" if column in ("arm", "spec") else "right")
    for row in estimated.rows:
        table.add_row(*row)
    Console().print(table)
    print(f"done: {len(progress.done)} of {len(trials)}; failed before: {len(progress.failed)}")
    print(f"disk for stores: {format_bytes(estimated.store_bytes)}; free: {format_bytes(estimated.free_bytes)}")
    print(f"time: {estimated.time}")
    print(f"seeds: {estimated.seeds}")


@app.command()
def run(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: Data = None,
    teacher: Model = None,
    checkpoint: Checkpoint = None,
    changes: Set = None,
    threads: Threads = 1,
    dtype: Precision = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time, each in a process of its own if above 1.")] = 1,
    ray: Annotated[bool, typer.Option(help="Run trials as tasks on a Ray cluster.")] = False,
    ray_address: Annotated[str | None, typer.Option(help="The cluster's address (default: one started here).")] = None,
    num_cpus: Annotated[float, typer.Option(min=0, help="Ray: CPUs of a trial.")] = 1,
    num_gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs of a trial.")] = 0,
) -> None:
    """Run what is not done yet. Kill it and run it again as often as you like."""
    grid, trials, folder = read(name, out, seeds, threads, dtype, data, teacher, checkpoint, changes)
    if workers > 1 and (ray or ray_address):
        raise HskdError("give --workers or --ray, not both.")
    executor: Executor = Workers(workers) if workers > 1 else InProcess()
    if ray or ray_address:
        executor = RayCluster(ray_address, num_cpus, num_gpus)
    with display() as shown:
        table, progress = run_grid(grid, trials, folder, work, executor, shown)
    print(f"{len(table)} trials in {folder / 'trials.csv'}")
    if progress.failed:
        print(f"{len(progress.failed)} failed; see `hskd grid status {name}`", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def status(
    name: Name,
    out: Out = None,
    seeds: Seeds = None,
    data: Data = None,
    teacher: Model = None,
    checkpoint: Checkpoint = None,
    changes: Set = None,
    threads: Threads = 1,
    dtype: Precision = "auto",
) -> None:
    """Say which trials are done, which failed and why, and the scores so far."""
    grid, trials, folder = read(name, out, seeds, threads, dtype, data, teacher, checkpoint, changes)
    progress = Progress.of(trials, folder)
    print(
        f"{grid.name}: {len(progress.done)} done, {len(progress.pending)} to do, of which {len(progress.failed)} failed"
    )
    for config in progress.pending:
        if config.id in progress.failed:
            print(f"failed: {config.title}: {progress.failed[config.id]}  ({error_path(folder, config)})")
    if progress.done:
        for (student, arm, spec), scores in load(folder).groupby(["student", "arm", "spec"], sort=False)["score"]:
            print(f"{student}  {arm:10} {spec:30} {100 * scores.mean():.1f} %  ({len(scores)} seeds)")


@app.command()
def retry(
    name: Name,
    out: Out = None,
    work: Work = Path("work"),
    seeds: Seeds = None,
    data: Data = None,
    teacher: Model = None,
    checkpoint: Checkpoint = None,
    changes: Set = None,
    threads: Threads = 1,
    dtype: Precision = "auto",
) -> None:
    """Run only the trials that failed, here, one after the other."""
    grid, trials, folder = read(name, out, seeds, threads, dtype, data, teacher, checkpoint, changes)
    failed = Progress.of(trials, folder).failed
    if not failed:
        print("no trial has failed")
        return
    with display() as shown:
        _, progress = run_grid(grid, trials, folder, work, InProcess(), shown, only=failed)
    print(f"{len(failed) - len(progress.failed)} of {len(failed)} are done now")
    if progress.failed:
        raise typer.Exit(1)
