"""``hskd teacher``."""

from __future__ import annotations

from typing import Annotated

import typer

from hskd.cli.options import TaskOptions, TrainingOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_examples, require_task
from hskd.remote.place import is_url
from hskd.teachers.settings import TeacherSettings


@plugin_option
@with_settings(task=TaskOptions, settings=TeacherSettings, run=TrainingOptions)
def command(
    out: Annotated[str, typer.Option(help="Folder of the fine-tuned teacher, or a URL.")],
    model: Annotated[
        str, typer.Option(help="Folder or URL, hub name, or offline:minilm (all-MiniLM-L6-v2 from a package).")
    ] = "offline:minilm",
    report_to: Annotated[
        str, typer.Option(help="tensorboard, wandb, mlflow, ..., if installed. Log files: OUT/training.")
    ] = "none",
    *,
    task: TaskOptions,
    settings: TeacherSettings,
    run: TrainingOptions,
) -> None:
    """Fine-tune a teacher, and write model, tokenizer and metrics.json to --out. Run again to resume."""
    require_task(task.task)
    from hskd import processes
    from hskd.heads.metrics import metrics_line
    from hskd.runtime import RunOptions
    from hskd.teachers.finetune import finetune, teacher_metrics

    machine = Machine.of(run, report_to)
    output = Output.of(out, task.work)
    if is_url(model):
        model = str(readable("--model", model, task.work))
    examples = load_examples(task, model)
    with display() as progress:
        finetune(
            model,
            examples.task,
            examples.for_student,
            settings,
            output.folder,
            RunOptions(machine.dtype, machine.device, report_to=report_to, accumulate=run.accumulate),
            progress,
        )
    output.publish()
    if not processes.is_main():
        return
    for split, metrics in teacher_metrics(output.folder)["metrics"].items():
        print(f"{split}: {metrics_line(metrics, examples.task.head.unit)}")
    print(f"teacher: {out}")
