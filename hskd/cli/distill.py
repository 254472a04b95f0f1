"""``hskd distill``."""

from __future__ import annotations

from typing import Annotated

import typer

from hskd.cli.options import RunOptions, TaskOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_splits
from hskd.cli.store import SPEC_HELP
from hskd.cli.store_alone import NO_SCORES, load_store_alone
from hskd.distill.prepare import Student, from_store, from_teacher, without_teacher
from hskd.distill.settings import DistillSettings
from hskd.distill.trial import Run, run_trial
from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.store.reader import Store
from hskd.teachers.loading import Teacher


@with_settings(task=TaskOptions, settings=DistillSettings, run=RunOptions)
def command(
    student: Annotated[str, typer.Option(help="Folder of the student, or a URL.")],
    out: Annotated[str, typer.Option(help="Folder of the trial, or a URL: result.json and the trained student.")],
    store: Annotated[str | None, typer.Option(help="Offline: folder or URL of a store, superset or derived.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Online: folder or URL of the teacher, run on every batch.")
    ] = None,
    no_data: Annotated[
        bool,
        typer.Option(
            "--no-data",
            help="Train from the store alone: its token ids, targets and logits. No text, no teacher, no scores.",
        ),
    ] = False,
    spec: Annotated[str | None, typer.Option(help=SPEC_HELP + " Default: the store's spec, or everything.")] = None,
    checkpoints: Annotated[bool, typer.Option(help="Save one after every epoch, to resume from.")] = True,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, mlflow, ...")] = "none",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the student's layers through torch.compile (takes a minute first).")
    ] = False,
    *,
    task: TaskOptions,
    settings: DistillSettings,
    run: RunOptions,
) -> None:
    """Distil a student: HSK stage, then prediction stage, from a store or from the teacher. Run again to resume."""
    if (store is None) == (teacher is None) and (settings.arm != "gold" or store is not None):
        raise HskdError("give either --store (offline) or --teacher (online).")
    machine = Machine.of(run)
    output = Output.of(out, task.work)
    student_folder = readable("--student", student, task.work, "hskd student")
    wanted = HSKSpec.parse(spec) if spec else None
    opened = None if store is None else Store.open(readable("--store", store, task.work))
    if no_data:
        kind, splits = load_store_alone(opened, settings.arm, task, student_folder)
    else:
        data, splits = load_splits(task, str(student_folder), augmented=True)
        kind = data.task
    loaded = Student.load(student_folder, kind)
    teacher_folder = None if teacher is None else readable("--teacher", teacher, task.work, "hskd teacher")
    with display() as shown:
        if opened is not None:
            prepared = from_store(
                opened, settings, wanted, loaded, kind, splits["train"], output.folder / "store", shown.say
            )
        elif teacher_folder is None:
            prepared = without_teacher(loaded, kind, splits["train"])
        else:
            model = Teacher.load(str(teacher_folder), kind)
            model.model.to(machine.device)
            prepared = from_teacher(model, settings, wanted, loaded, kind, splits["train"], machine.dtype)
        result = run_trial(
            settings,
            kind,
            splits,
            loaded.model,
            prepared.teacher_width,
            prepared.source,
            output.folder,
            Run(machine.dtype, machine.device, checkpoints, report_to, compile, shown.begin, shown.step),
            student_folder=student_folder,
            record=prepared.record | ({"scores": NO_SCORES} if no_data else {}),
        )
    output.publish()
    if result["spec"]:
        print(
            f"{result['spec']}: {100 * result['fraction']:.3g} % of full HSK, {result['bytes_per_example']:,.0f} bytes "
            "an example"
        )
    for split, metrics in result["metrics"].items():
        print(f"{split}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items()))
    if no_data:
        print(f"scores: {NO_SCORES}")
    print(f"trial: {out}")
