"""``hskd student``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hskd.artifacts import read_json
from hskd.cli.options import RunOptions, TaskOptions, with_settings
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_data, load_splits, require_folder
from hskd.errors import HskdError
from hskd.students.create import STUDENT_FILE, StudentSettings, TinyBertSettings, create_rosita
from hskd.students.pretrained import create_tinybert
from hskd.teachers.loading import Teacher


@with_settings(task=TaskOptions, settings=StudentSettings, run=RunOptions)
def command(
    teacher: Annotated[Path, typer.Option(help="Folder of the fine-tuned teacher.")],
    out: Annotated[Path, typer.Option(help="Folder of the student.")],
    kind: Annotated[
        Literal["rosita", "tinybert"],
        typer.Option(help="rosita: the teacher, pruned. tinybert: a narrower encoder, from --checkpoint."),
    ] = "rosita",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="tinybert: local folder (such as one of `hskd general`) or hub name, such as "
            "huawei-noah/TinyBERT_General_4L_312D."
        ),
    ] = None,
    head_seed: Annotated[int, typer.Option(min=0, help="tinybert: the classification head is drawn from it.")] = 0,
    *,
    task: TaskOptions,
    settings: StudentSettings,
    run: RunOptions,
) -> None:
    """Initialise a student: prune a fine-tuned BERT by Taylor importance, or give a pretrained encoder a head.

    A student of kind tinybert has its checkpoint's sizes, and may learn from any teacher that shares its tokenizer.
    """
    machine = Machine.of(run)
    require_folder("--teacher", teacher, "hskd teacher")
    with display() as shown:
        if kind == "tinybert":
            create_tinybert(
                _tinybert(checkpoint, head_seed, settings), load_data(task).task, str(teacher), out, report=shown.say
            )
        else:
            if checkpoint is not None:
                raise HskdError("--checkpoint goes with --kind tinybert; a ROSITA student is pruned from its teacher.")
            data, splits = load_splits(task, str(teacher))
            loaded = Teacher.load(str(teacher), data.task)
            loaded.model.to(machine.device)
            count = min(settings.importance_examples or len(splits["train"]), len(splits["train"]))
            shown.begin("importance", -(-count // 32))
            create_rosita(loaded, splits["train"], settings, out, advance=lambda _: shown.step())
    print(f"{read_json(out / STUDENT_FILE)['parameters']:,} parameters")
    print(f"student: {out}")


def _tinybert(checkpoint: str | None, head_seed: int, sizes: StudentSettings) -> TinyBertSettings:
    if checkpoint is None:
        raise HskdError("--kind tinybert needs --checkpoint: a folder or a hub name (hskd general makes a folder).")
    given = [name for name, field in type(sizes).model_fields.items() if getattr(sizes, name) != field.default]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise HskdError(f"{flag} is for ROSITA students; one of kind tinybert has the sizes of its checkpoint.")
    return TinyBertSettings(checkpoint=checkpoint, seed=head_seed)
