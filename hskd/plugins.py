"""Plug-ins: a user's own selectors, student kinds, heads and tasks, from an installed package or from a module.

A class registers itself when its module is imported. Two ways lead to that import, in every process:

* An installed package names its class in an entry-point group. The module is imported when a registry is asked for a
  name that it does not know.
* A module is named with ``--plugins MODULE``, or under ``plugins:`` in a grid file. Worker processes and Ray tasks
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
"""The entry-point groups. An entry point has the name under which its class is registered."""

_loaded: dict[str, None] = {}
"""The modules that :func:`load_plugins` imported in this process, in order."""


@dataclass(frozen=True)
class Plugins:
    """What another process needs to load the plug-ins of this one.

    Attributes:
        modules: names of the modules.
        path: the folders that they are searched in.
    """

    modules: tuple[str, ...]
    path: tuple[str, ...]

    @classmethod
    def here(cls) -> Plugins:
        """The plug-ins that this process has loaded."""
        return cls(tuple(_loaded), tuple(folder for folder in sys.path if folder) if _loaded else ())

    def load(self) -> None:
        """Load them in this process.

        Raises:
            HskdError: a module cannot be imported.
        """
        sys.path += [folder for folder in self.path if folder not in sys.path]
        load_plugins(self.modules)


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that register classes; one that is imported already is left alone.

    The current folder is searched after all others, so that ``--plugins my_selectors`` finds ``my_selectors.py`` there.

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
        except Exception as error:  # a plug-in is somebody else's code, and may fail in any way
            raise HskdError(
                f"plug-in {module}: cannot be imported ({_cause(error)}). Expected the dotted name of a module that is "
                "installed or lies in the current folder, such as my_selectors for my_selectors.py; correct the name "
                "or the module."
            ) from error
        _loaded[module] = None


def resolve(group: str, name: str) -> None:
    """Import the installed plug-ins of ``group`` that are called ``name``, if there are any.

    Raises:
        HskdError: one cannot be imported; the message names package, module and cause.
    """
    from importlib.metadata import entry_points  # takes a while to import

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
