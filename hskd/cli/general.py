"""``hskd general``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.cli.options import MachineOptions, with_settings
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display
from hskd.cli.setting import Machine
from hskd.students.general.settings import GeneralSettings


@plugin_option
@with_settings(settings=GeneralSettings, run=MachineOptions)
def command(
    out: Annotated[Path, typer.Option(help="Folder of the general student.")],
    model: Annotated[
        str, typer.Option(help="The teacher before fine-tuning: local folder, hub name, or offline:minilm.")
    ] = "offline:minilm",
    report_to: Annotated[
        str, typer.Option(help="tensorboard, wandb, mlflow, ..., if installed. Log files: OUT/training.")
    ] = "none",
    *,
    settings: GeneralSettings,
    run: MachineOptions,
) -> None:
    """Make a narrow TinyBERT-style student, if no hub has one: it learns a teacher's body on unlabelled text.

    The student starts from the teacher's own weights, cut to size, and learns its hidden states. The result in --out
    serves any task, like a checkpoint from a hub. Run again to resume.
    """
    from hskd.runtime import RunOptions
    from hskd.students.general.distillation import general_distill, general_record

    machine = Machine.of(run, report_to)
    with display() as progress:
        general_distill(model, settings, out, RunOptions(machine.dtype, machine.device, report_to=report_to), progress)
    record = general_record(out)
    print(
        f"{record['parameters']:,} parameters, {record['tokens_seen']:,} tokens seen in training, "
        f"loss {record['start_loss']:.3f} as fitted, {record['end_loss']:.3f} in the end"
    )
    print(f"general student: {out} ({record['seconds'] / 60:.1f} minutes)")
