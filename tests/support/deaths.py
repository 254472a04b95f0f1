"""Processes that run trials: how to find them, how they may die, and how Ray starts on a busy machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from hskd import plugins
from hskd.selectors import LENGTH

Made = TypeVar("Made")

DEADLY = """
import os
from typing import Literal
from hskd.selectors import LENGTH, LengthSelector

@LENGTH.register
class Deadly(LengthSelector):
    selector: Literal["deadly"] = "deadly"

    def scores(self, view):
        os.kill(os.getpid(), 9)  # as the kernel does where memory ends
"""

_NUMBERS = count()


@contextmanager
def deadly_selector(folder: Path) -> Iterator[str]:
    """Write a module with the length selector ``deadly``, which kills its process, and yield the module's name.

    Several tests share a process, which imports a module only once and hands its plug-ins on to its workers. So each
    call gives the module another name, and afterwards the process no longer counts it among its plug-ins.
    """
    module = f"deadly_{next(_NUMBERS)}"
    (folder / f"{module}.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_loaded", {})
        try:
            yield module
        finally:
            if LENGTH.find("deadly") is not None:
                LENGTH.remove("deadly")


def named(word: str, recursive: bool = True) -> list[psutil.Process]:
    """Return the descendants of this process, or its children alone, whose command contains ``word``.

    A process that has just been forked still has the command of its parent, so a child of a worker may look like one.
    """
    found = []
    for process in psutil.Process().children(recursive):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def on_ray(call: Callable[[], Made]) -> Made:
    """Call a function that starts a local Ray cluster, and repeat the call if Ray does not start in time.

    Ray gives its processes 30 seconds to start, which a busy machine may exceed.
    """
    for _ in range(4):
        try:
            return call()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    pytest.fail("Ray did not start")
