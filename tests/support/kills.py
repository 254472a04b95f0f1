"""Processes that die at a chosen operation on a folder, as after ``kill -9`` or a power cut.

    for folder in killed_everywhere(tmp_path, lambda folder: pull(url, folder / "store")):
        pull(url, folder / "store")  # must end whole

The call runs in a forked process. It ends without any cleanup just before its n-th operation on files below the folder:
opening to write, syncing, renaming, linking, removing, changing permissions, or making a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_KILLED, _FAILED = 9, 1


def _changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and path.startswith(root) and bool(flags & _WRITES)
    return event in _CHANGES and any(str(path).startswith(root) for path in arguments[:2])


def killed_at(operation: int, root: Path, call: Callable[[], object]) -> bool:
    """Run ``call`` in a process that is killed just before its ``operation``-th change below ``root``, from 0.

    Returns:
        Whether there was such a change. If not, the call ended normally.

    Raises:
        RuntimeError: the call failed before that change.
    """
    pid = os.fork()
    if not pid:
        left = operation

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(_KILLED)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if _changes(event, arguments, str(root)):
                count()

        fsync = os.fsync

        def counted_fsync(handle: int) -> None:
            count()
            fsync(handle)

        try:
            os.fsync = counted_fsync
            sys.addaudithook(watch)  # audit hooks cannot be removed, so only this forked process has it
            call()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(_FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, _KILLED):
        raise RuntimeError(f"the call failed before operation {operation} with code {code}")
    return code == _KILLED


def killed_everywhere(
    root: Path, call: Callable[[Path], object], prepare: Callable[[Path], object] = lambda folder: None, step: int = 1
) -> Iterator[Path]:
    """Yield folders in which ``call`` was killed: at its first change, at its second, and so on, to the last.

    Args:
        root: the folders are made in it.
        call: function to kill; its argument is the folder.
        prepare: fills each folder first.
        step: kill at every ``step``-th change only.
    """
    operation = 0
    while True:
        folder = root / f"killed-at-{operation}"
        folder.mkdir()
        prepare(folder)
        if not killed_at(operation, folder, lambda folder=folder: call(folder)):  # type: ignore[misc]
            return
        yield folder
        operation += step
