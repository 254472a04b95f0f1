"""Load the examples of any task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hskd.errors import HskdError
from hskd.io import with_home
from hskd.tasks.augment import with_augmented
from hskd.tasks.custom import load_custom
from hskd.tasks.registry import CUSTOM, TASKS
from hskd.tasks.task import TaskData


def load_task(
    name: str,
    data: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    augment: str | None = None,
) -> TaskData:
    """Load a task's examples.

    Args:
        name: one of :data:`TASKS`.
        data: a file or folder; None takes the task's default place (a package, the hub).
        text_columns: one or two names, for ``custom`` only.
        label_column: for ``custom`` only.
        augment: a file of further sentences (see :func:`~hskd.tasks.augment.with_augmented`).

    Raises:
        HskdError: an unknown task, arguments it has no use for, or data that is missing or malformed.
    """
    loaded = _load(name, None if data is None else with_home(data), text_columns, label_column)
    return loaded if augment is None else with_augmented(loaded, Path(with_home(augment)))


def _load(name: str, data: str | None, text_columns: Sequence[str] | None, label_column: str | None) -> TaskData:
    if name == CUSTOM:
        return load_custom(data, text_columns, label_column)
    load = TASKS[name].load
    if text_columns or label_column:
        raise HskdError(f"Task {name} has columns of its own; only task {CUSTOM} takes text and label columns.")
    return load(data)
