"""The registry of tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from typing_extensions import override

from hskd import plugins, registry
from hskd.errors import HskdError
from hskd.tasks.task import Task, TaskData

CUSTOM = "custom"
"""The task of a user's own files. Its columns and labels are known only once its data is loaded."""
Load = Callable[..., TaskData]


@dataclass(frozen=True)
class TaskEntry:
    """A registered task.

    Attributes:
        task: the task's properties that are known without loading data.
        load: loads its examples, given ``data``: a file or folder, or None for the default place.
        takes_columns: whether ``load`` also takes ``text_columns`` and ``label_column``.
    """

    task: Task
    load: Load
    takes_columns: bool = False


class TaskRegistry(registry.Registry[TaskEntry]):
    """The tasks with fixed columns, and the name ``custom``. ``@TASKS.register(task)`` adds a task."""

    def register(self, task: Task, takes_columns: bool = False) -> Callable[[Load], Load]:
        """Register ``task`` with the decorated function, which loads its examples (see :class:`TaskEntry`).

        Raises:
            HskdError: the name is taken.
        """

        def decorate(load: Load) -> Load:
            self.add(task.name, TaskEntry(task, load, takes_columns), load)
            return load

        if task.name == CUSTOM:
            raise HskdError(f"task {CUSTOM!r} is reserved for the user's own files; give your task another name.")
        return decorate

    @override
    def find(self, name: str) -> TaskEntry | None:
        _import_built_in()
        return super().find(name)

    @override
    def __iter__(self) -> Iterator[str]:
        _import_built_in()
        yield from super().__iter__()
        yield CUSTOM

    def require(self, name: str) -> None:
        """Refuse a name that is neither a built-in task nor one of an installed plug-in.

        Raises:
            HskdError: the name is unknown. The message lists the names.
        """
        if name != CUSTOM and self.find(name) is None:
            raise self.unknown(name)


def _import_built_in() -> None:
    # On first use, not at import: the task modules import this one.
    import hskd.tasks.builtin  # noqa: F401


TASKS = TaskRegistry("task", plugins.TASKS)
