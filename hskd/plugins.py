"""Load plug-ins: users' selectors, student kinds, heads and tasks, from installed packages or from modules.

A class registers itself when its module is imported. There are two ways to import it, and both work in every process:

* An installed package names its class in an entry-point group. Its module is imported when a registry is asked for an
  unknown name.
* You name the module with ``--plugins MODULE``, or under ``plugins:`` in a grid file. Worker processes and Ray tasks
  import it too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hskd.errors import HskdError

SELECTORS, STUDENTS, HEADS, TASKS = "hskd.selectors", "hskd.students", "hskd.heads", "hskd.tasks"
"""The entry-point groups. The name of an entry point is the name under which its class is registered."""

_loaded: dict[str, None] = {}
"""The modules that :func:`load_plugins` has imported in this process, in order."""


@dataclass(frozen=True)
class Plugins:
    """The plug-ins of a process, in a form that another process can load.

    Attributes:
        modules: names of the modules.
        path: the folders in which to search for them.
    """

    modules: tuple[str, ...]
    path: tuple[str, ...]

    @classmethod
    def here(cls) -> Plugins:
        """Return the plug-ins that this process has loaded with :func:`load_plugins`."""
        return cls(tuple(_loaded), tuple(folder for folder in sys.path if folder) if _loaded else ())

    def load(self) -> None:
        """Load these plug-ins in this process.

        Raises:
            HskdError: a module cannot be imported.
        """
        sys.path += [folder for folder in self.path if folder not in sys.path]
        load_plugins(self.modules)


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that register classes, except those loaded already.

    The current folder is searched last, so that ``--plugins my_selectors`` finds ``my_selectors.py`` there.

    Raises:
        HskdError: a module cannot be imported; the message names it and the cause.
    """
    for module in modules:
        if module in _loaded:
            continue
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)
            importlib.invalidate_caches()
        try:
            importlib.import_module(module)
        except Exception as error:  # A plug-in is foreign code, and may raise anything.
            raise HskdError(
                f"plug-in {module}: cannot be imported ({_cause(error)}). Expected the dotted name of a module that is "
                "installed or lies in the current folder, such as my_selectors for my_selectors.py; correct the name "
                "or the module."
            ) from error
        _loaded[module] = None


def resolve(group: str, name: str) -> None:
    """Import the installed plug-ins of ``group`` with the name ``name``, if there are any.

    Raises:
        HskdError: a plug-in cannot be imported; the message names package, module and cause.
    """
    from importlib.metadata import entry_points  # slow to import

    for entry_point in entry_points(group=group, name=name):
        try:
            entry_point.load()
        except Exception as error:
            package = entry_point.dist.name if entry_point.dist else "an unknown package"
            raise HskdError(
                f"plug-in {name} of {package} (entry point {entry_point.value} in {group}): cannot be imported "
                f"({_cause(error)}). Repair or uninstall the package."
            ) from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
