"""Every task by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hskd.errors import HskdError
from hskd.tasks.augment import with_augmented
from hskd.tasks.custom import load_custom
from hskd.tasks.glue import GLUE_TASKS, load_glue
from hskd.tasks.mr import MR, load_mr
from hskd.tasks.task import Task, TaskData

TASKS: dict[str, Callable[[str | None], TaskData]] = {
    "mr": load_mr,
    **{name: partial(load_glue, glue) for name, glue in GLUE_TASKS.items()},
}
"""What loads each task of fixed columns, given ``data`` (None: from its default place)."""
FIXED_TASKS: dict[str, Task] = {MR.name: MR, **{name: glue.task for name, glue in GLUE_TASKS.items()}}
"""What is known of them without loading any data."""
CUSTOM = "custom"
TASK_NAMES = (*TASKS, CUSTOM)


def load_task(
    name: str,
    data: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    augment: str | None = None,
) -> TaskData:
    """Load a task's examples.

    Args:
        name: one of ``TASK_NAMES``.
        data: a file or folder; None takes the task's default place (a package, the hub).
        text_columns: one or two names, for ``custom`` only.
        label_column: for ``custom`` only.
        augment: a file of further sentences (see :func:`~hskd.tasks.augment.with_augmented`).

    Raises:
        HskdError: an unknown task, arguments it has no use for, or data that is missing or malformed.
    """
    loaded = _load(name, data, text_columns, label_column)
    return loaded if augment is None else with_augmented(loaded, Path(augment).expanduser())


def _load(name: str, data: str | None, text_columns: Sequence[str] | None, label_column: str | None) -> TaskData:
    if name == CUSTOM:
        return load_custom(data, text_columns, label_column)
    if name not in TASKS:
        raise HskdError(f"Unknown task {name!r}; the tasks are {', '.join(TASK_NAMES)}.")
    if text_columns or label_column:
        raise HskdError(f"Task {name} has columns of its own; only task {CUSTOM} takes text and label columns.")
    return TASKS[name](data)
