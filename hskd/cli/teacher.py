"""``hskd teacher``."""

from __future__ import annotations

from typing import Annotated

import typer

from hskd.cli.options import RunOptions, TaskOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_splits
from hskd.remote import is_url
from hskd.teachers.finetune import TeacherSettings, finetune, teacher_metrics


@with_settings(task=TaskOptions, settings=TeacherSettings, run=RunOptions)
def command(
    out: Annotated[str, typer.Option(help="Folder of the fine-tuned teacher, or a URL.")],
    model: Annotated[
        str, typer.Option(help="Folder or URL, hub name, or offline:minilm (all-MiniLM-L6-v2 from a package).")
    ] = "offline:minilm",
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, mlflow, ...")] = "none",
    *,
    task: TaskOptions,
    settings: TeacherSettings,
    run: RunOptions,
) -> None:
    """Fine-tune a teacher: model, tokenizer and metrics.json end up in --out. Run again to resume."""
    machine = Machine.of(run)
    output = Output.of(out, task.work)
    if is_url(model):
        model = str(readable("--model", model, task.work))
    data, splits = load_splits(task, model)
    with display() as shown:
        finetune(
            model,
            data.task,
            splits,
            settings,
            output.folder,
            dtype=machine.dtype,
            device=machine.device,
            report_to=report_to,
            begin_stage=shown.begin,
            advance=shown.step,
        )
    output.publish()
    for split, metrics in teacher_metrics(output.folder)["metrics"].items():
        print(f"{split}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items()))
    print(f"teacher: {out}")
