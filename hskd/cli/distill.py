"""``hskd distill``."""

from __future__ import annotations

from typing import Annotated

import typer

from hskd.cli.options import SPEC_HELP, OnDevice, TaskOptions, TrainingOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display
from hskd.cli.setting import Machine, require_local, require_task, task_plan
from hskd.cli.store_alone import store_alone_plan
from hskd.errors import HskdError
from hskd.trials.settings import DistillSettings


@plugin_option
@with_settings(task=TaskOptions, settings=DistillSettings, run=TrainingOptions)
def command(
    student: Annotated[str, typer.Option(help="Folder of the student, or a URL.")],
    out: Annotated[str, typer.Option(help="Folder or URL of the trial: receives result.json and the trained student.")],
    store: Annotated[str | None, typer.Option(help="Offline: folder or URL of a store, superset or derived.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Online: folder or URL of the teacher, which runs on every batch.")
    ] = None,
    no_data: Annotated[
        bool,
        typer.Option(
            "--no-data",
            help="Train from the store alone: its token ids, targets and logits. No text, no teacher, no scores.",
        ),
    ] = False,
    spec: Annotated[str | None, typer.Option(help=SPEC_HELP + " Default: the store's spec, or everything.")] = None,
    checkpoints: Annotated[bool, typer.Option(help="Save a checkpoint after every epoch, to resume from.")] = True,
    report_to: Annotated[
        str, typer.Option(help="tensorboard, wandb, mlflow, ..., if installed. Log files: OUT/hsk, OUT/prediction.")
    ] = "none",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the student's layers through torch.compile (takes a minute first).")
    ] = False,
    capture: Annotated[
        bool,
        typer.Option("--capture", help="Run every training step as one CUDA graph, with batches padded to few widths."),
    ] = False,
    store_on_device: OnDevice = "auto",
    *,
    task: TaskOptions,
    settings: DistillSettings,
    run: TrainingOptions,
) -> None:
    """Distil a student: HSK stage, then prediction stage, from a store or from the teacher. Run again to resume."""
    # Validate as much as possible before the slow import of PyTorch.
    _require_one_source(store, teacher, settings.arm)
    require_task(task.task)
    require_local("--student", student, "hskd student")
    if teacher is not None:
        require_local("--teacher", teacher, "hskd teacher")
    from hskd.spec import HSKSpec

    parsed = HSKSpec.parse(spec) if spec else None
    from hskd import processes
    from hskd.heads.metrics import metrics_line
    from hskd.runtime import RunOptions
    from hskd.store.reader import Store
    from hskd.trials.config import GivenStudent, TeacherPlan, TrialConfig
    from hskd.trials.execute import execute
    from hskd.trials.workspace import Workspace

    machine = Machine.of(run, report_to)
    if capture and machine.device.type != "cuda":
        raise HskdError(
            f"--capture: CUDA graphs need a CUDA device, and this run is on {machine.device}; leave it out."
        )
    output = Output.of(out, task.work)
    student_folder = readable("--student", student, task.work, "hskd student")
    store_folder = None if store is None else readable("--store", store, task.work)
    teacher_folder = None if teacher is None else readable("--teacher", teacher, task.work, "hskd teacher")
    opened = None if store_folder is None else Store.open(store_folder)
    config = TrialConfig(
        task=store_alone_plan(opened, settings.arm, task) if no_data else task_plan(task),
        teacher=None if teacher_folder is None else TeacherPlan(model=str(teacher_folder), fine_tuned=True),
        student=GivenStudent(folder=str(student_folder)),
        settings=settings,
        spec=parsed,
        dtype=machine.dtype,
        device=str(machine.device),
        threads=machine.threads,
        build_threads=machine.threads,
        online=teacher_folder is not None,
        store=None if store_folder is None else str(store_folder),
        store_alone=no_data,
    )
    options = RunOptions(
        machine.dtype, machine.device, checkpoints, report_to, compile, run.accumulate, store_on_device, capture
    )
    with display() as progress:
        result = execute(config, Workspace(task.work, [config], folder=output.folder, options=options), progress)
    output.publish()
    if not processes.is_main():
        return
    if result.spec:
        size = f"{result.bytes_per_example:,.0f} bytes an example"
        print(f"{result.spec}: {100 * result.fraction:.3g} % of full HSK, {size}")
    for split, metrics in result.metrics.items():
        print(f"{split}: {metrics_line(metrics, result.score_unit)}")
    if result.scores:
        print(f"scores: {result.scores}")
    print(f"trial: {out}")


def _require_one_source(store: str | None, teacher: str | None, arm: str) -> None:
    """Refuse two sources of knowledge, or none if the arm needs one.

    Raises:
        HskdError: not exactly one source is given.
    """
    none_given, both_given = store is None and teacher is None, store is not None and teacher is not None
    if both_given or (none_given and arm != "gold"):
        raise HskdError("give either --store (offline) or --teacher (online).")
