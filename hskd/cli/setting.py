"""Convert options into what the engine takes: plans, tokenised examples, device, precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hskd.cli.options import MachineOptions, TaskOptions
from hskd.errors import HskdError

if TYPE_CHECKING:
    import torch

    from hskd.trials.config import TaskPlan
    from hskd.trials.data import Examples


@dataclass(frozen=True)
class Machine:
    """Resolved device, precision and threads."""

    device: torch.device
    dtype: str
    threads: int

    @classmethod
    def of(cls, options: MachineOptions, report_to: str = "none") -> Machine:
        """Resolve automatic options, connect to the other processes, and set the threads.

        Raises:
            HskdError: device, precision or the reporter ``report_to`` cannot be used on this machine.
        """
        from hskd import processes
        from hskd.runtime import require_reporter, resolve_device, resolve_dtype, set_threads

        require_reporter(report_to)
        processes.require_one_each(options.device)
        device = processes.start(resolve_device(options.device))
        threads = set_threads(options.threads)
        return cls(device, resolve_dtype(options.dtype, device), threads)


def task_plan(options: TaskOptions) -> TaskPlan:
    """Return the task options in the form of a trial's config.

    Raises:
        HskdError: there is no such task.
    """
    from hskd.trials.config import TaskPlan

    require_task(options.task)
    fields = options.model_dump(include=set(TaskPlan.model_fields) - {"text_columns"})
    columns = tuple(options.text_columns.split(",")) if options.text_columns else None
    return TaskPlan(name=options.task, text_columns=columns, **fields)


def require_task(name: str) -> None:
    """Refuse an unknown task.

    Raises:
        HskdError: the task is unknown; the message lists the tasks.
    """
    from hskd.tasks.registry import TASKS

    TASKS.require(name)


def require_local(flag: str, place: str, command: str) -> None:
    """Refuse a local folder that does not exist. URLs and models of packages are left to the command.

    Raises:
        HskdError: there is no such folder; the message names the flag, the folder, and the command that makes one.
    """
    from hskd.remote.place import is_url
    from hskd.teachers.settings import is_offline

    if not is_url(place) and not is_offline(place):
        require_folder(flag, Path(place), command)


def load_examples(
    options: TaskOptions, tokenizer: str, augmented: bool = False, teacher: str | None = None
) -> Examples:
    """Return the task's examples, tokenised with the tokenizer of the model ``tokenizer``.

    Args:
        options: the examples to load.
        tokenizer: a model.
        augmented: whether augmented sentences, if any, follow the training examples. Students and stores use them, but
            fine-tuning and pruning need labels.
        teacher: the teacher, if it is another model than ``tokenizer``. The examples are then aligned with its tokens.

    Raises:
        HskdError: the task, its files, or the tokenizer cannot be read.
    """
    from hskd.trials.data import task_examples

    return task_examples(task_plan(options), tokenizer, options.work, augmented, teacher)


def require_folder(flag: str, folder: Path, command: str) -> None:
    """Refuse a folder that does not exist.

    Raises:
        HskdError: there is no such folder; the message names the flag, the folder, and the command that makes one.
    """
    if not folder.is_dir():
        raise HskdError(f"{flag} {folder}: no such folder; make one with `{command}`.")
