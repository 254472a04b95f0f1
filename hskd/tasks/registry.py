"""Every task by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from typing_extensions import override

from hskd import plugins, registry
from hskd.errors import HskdError
from hskd.tasks.task import Task, TaskData

CUSTOM = "custom"
"""The task of the user's own files: its columns and labels are known once it is loaded."""
Load = Callable[..., TaskData]


@dataclass(frozen=True)
class TaskEntry:
    """A task that has a name.

    Attributes:
        task: what is known of it without loading any data.
        load: loads its examples, given ``data``: a file or folder, or None for their default place.
        takes_columns: whether ``load`` takes ``text_columns`` and ``label_column``, too.
    """

    task: Task
    load: Load
    takes_columns: bool = False


class TaskRegistry(registry.Registry[TaskEntry]):
    """The tasks of fixed columns, and the name of the one that has none. ``@TASKS.register(task)`` adds one."""

    def register(self, task: Task, takes_columns: bool = False) -> Callable[[Load], Load]:
        """Add ``task``; the function below loads its examples (see :class:`TaskEntry`).

        Raises:
            HskdError: another function has that name.
        """

        def decorate(load: Load) -> Load:
            self.add(task.name, TaskEntry(task, load, takes_columns), load)
            return load

        if task.name == CUSTOM:
            raise HskdError(f"task {CUSTOM!r} is that of the user's own files; give yours another name.")
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
        """Refuse a name that is no task's, here or in an installed plug-in.

        Raises:
            HskdError: lists the names.
        """
        if name != CUSTOM and self.find(name) is None:
            raise self.unknown(name)


def _import_built_in() -> None:
    # When a task is asked for, not before: the modules of the tasks import this one.
    import hskd.tasks.builtin  # noqa: F401


TASKS = TaskRegistry("task", plugins.TASKS)
