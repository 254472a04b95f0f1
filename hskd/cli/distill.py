"""``hskd distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd import processes
from hskd.cli.options import TaskOptions, TrainingOptions, with_settings
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_splits, require_folder
from hskd.cli.store import SPEC_HELP
from hskd.distill.prepare import Student, from_store, from_teacher, without_teacher
from hskd.distill.settings import DistillSettings
from hskd.distill.trial import Run, run_trial
from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.store.reader import Store
from hskd.teachers.loading import Teacher


@with_settings(task=TaskOptions, settings=DistillSettings, run=TrainingOptions)
def command(
    student: Annotated[Path, typer.Option(help="Folder of the student.")],
    out: Annotated[Path, typer.Option(help="Folder of the trial: result.json and the trained student.")],
    store: Annotated[Path | None, typer.Option(help="Offline: folder of a store, superset or derived.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Online: folder of the teacher, run on every batch.")] = None,
    spec: Annotated[str | None, typer.Option(help=SPEC_HELP + " Default: the store's spec, or everything.")] = None,
    checkpoints: Annotated[bool, typer.Option(help="Save one after every epoch, to resume from.")] = True,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, mlflow, ...")] = "none",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the student's layers through torch.compile (takes a minute first).")
    ] = False,
    *,
    task: TaskOptions,
    settings: DistillSettings,
    run: TrainingOptions,
) -> None:
    """Distil a student: HSK stage, then prediction stage, from a store or from the teacher. Run again to resume."""
    if (store is None) == (teacher is None) and (settings.arm != "gold" or store is not None):
        raise HskdError("give either --store (offline) or --teacher (online).")
    machine = Machine.of(run)
    require_folder("--student", student, "hskd student")
    wanted = HSKSpec.parse(spec) if spec else None
    data, splits = load_splits(task, str(student))
    loaded = Student.load(student, data.task)
    with display() as shown:
        if store is not None:
            prepared = from_store(
                Store.open(store), settings, wanted, loaded, data.task, splits["train"], out / "store", shown.say
            )
        elif teacher is None:
            prepared = without_teacher(loaded, data.task, splits["train"])
        else:
            require_folder("--teacher", teacher, "hskd teacher")
            model = Teacher.load(str(teacher), data.task)
            model.model.to(machine.device)
            prepared = from_teacher(model, settings, wanted, loaded, data.task, splits["train"], machine.dtype)
        result = run_trial(
            settings,
            data.task,
            splits,
            loaded.model,
            prepared.teacher_width,
            prepared.source,
            out,
            Run(
                machine.dtype,
                machine.device,
                checkpoints,
                report_to,
                compile,
                run.accumulate,
                shown.begin,
                shown.step,
            ),
            student_folder=student,
            record=prepared.record,
        )
    if not processes.is_main():
        return
    if result["spec"]:
        print(
            f"{result['spec']}: {100 * result['fraction']:.3g} % of full HSK, {result['bytes_per_example']:,.0f} bytes "
            "an example"
        )
    for split, metrics in result["metrics"].items():
        print(f"{split}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items()))
    print(f"trial: {out}")
