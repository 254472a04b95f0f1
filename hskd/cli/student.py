"""``hskd student``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.artifacts import read_json
from hskd.cli.options import RunOptions, TaskOptions, with_settings
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_splits, require_folder
from hskd.students.create import STUDENT_FILE, StudentSettings, create_rosita
from hskd.teachers.loading import Teacher


@with_settings(task=TaskOptions, settings=StudentSettings, run=RunOptions)
def command(
    teacher: Annotated[Path, typer.Option(help="Folder of the fine-tuned teacher.")],
    out: Annotated[Path, typer.Option(help="Folder of the student.")],
    *,
    task: TaskOptions,
    settings: StudentSettings,
    run: RunOptions,
) -> None:
    """Prune a fine-tuned BERT to a ROSITA student by Taylor importance on the task's training examples."""
    machine = Machine.of(run)
    require_folder("--teacher", teacher, "hskd teacher")
    data, splits = load_splits(task, str(teacher))
    loaded = Teacher.load(str(teacher), data.task)
    loaded.model.to(machine.device)
    with display() as shown:
        count = min(settings.importance_examples or len(splits["train"]), len(splits["train"]))
        shown.begin("importance", -(-count // 32))
        create_rosita(loaded, splits["train"], settings, out, advance=lambda _: shown.step())
    print(f"{read_json(out / STUDENT_FILE)['parameters']:,} parameters")
    print(f"student: {out}")
