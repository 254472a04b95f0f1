"""``hskd student``."""

from __future__ import annotations

from typing import Annotated

import typer

from hskd.artifacts import read_json
from hskd.cli.options import RunOptions, TaskOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_splits
from hskd.students.create import STUDENT_FILE, StudentSettings, create_rosita
from hskd.teachers.loading import Teacher


@with_settings(task=TaskOptions, settings=StudentSettings, run=RunOptions)
def command(
    teacher: Annotated[str, typer.Option(help="Folder of the fine-tuned teacher, or a URL.")],
    out: Annotated[str, typer.Option(help="Folder of the student, or a URL.")],
    *,
    task: TaskOptions,
    settings: StudentSettings,
    run: RunOptions,
) -> None:
    """Prune a fine-tuned BERT to a ROSITA student by Taylor importance on the task's training examples."""
    machine = Machine.of(run)
    output = Output.of(out, task.work)
    teacher = str(readable("--teacher", teacher, task.work, "hskd teacher"))
    data, splits = load_splits(task, teacher)
    loaded = Teacher.load(teacher, data.task)
    loaded.model.to(machine.device)
    with display() as shown:
        count = min(settings.importance_examples or len(splits["train"]), len(splits["train"]))
        shown.begin("importance", -(-count // 32))
        create_rosita(loaded, splits["train"], settings, output.folder, advance=lambda _: shown.step())
    output.publish()
    print(f"{read_json(output.folder / STUDENT_FILE)['parameters']:,} parameters")
    print(f"student: {out}")
