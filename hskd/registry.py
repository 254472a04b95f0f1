"""Registries: what there is of a kind by name, built in or from a plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from hskd import plugins
from hskd.errors import HskdError, brief

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name. A name that is not known is looked for among the installed plug-ins.

    Args:
        noun: what an entry is, for messages.
        group: the entry-point group of its plug-ins.
        where: opens a message, such as the dimension of selectors.
    """

    def __init__(self, noun: str, group: str, where: str = "") -> None:
        self._noun = noun
        self._group = group
        self._where = f"{where}: " if where else ""
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, entry: T, source: Any) -> None:
        """Add ``entry``, which is what ``source``, a class or a function, defines.

        Raises:
            HskdError: another class or function has that name.
        """
        place = _place(source)
        known = self._places.setdefault(name, place)
        if known != place:
            raise HskdError(f"{self._where}{self._noun} {name!r} is {known} already; give {place} another name.")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Forget an entry, such as one that a test registered."""
        del self._entries[name], self._places[name]

    def find(self, name: str) -> T | None:
        """The entry of that name, here or in an installed plug-in; None where there is none.

        Raises:
            HskdError: there is a plug-in of that name that cannot be imported.
        """
        if name not in self._entries:
            plugins.resolve(self._group, name)
        return self._entries.get(name)

    def unknown(self, name: str) -> HskdError:
        """What to say of a name that is not known."""
        return HskdError(f"{self._where}unknown {self._noun} {brief(name)}; known: {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        entry = self.find(name)
        if entry is None:
            raise self.unknown(name)
        return entry


def _place(source: Any) -> str:
    """Module and name of a class or of a function, behind the arguments that are bound to it."""
    function = getattr(source, "func", source)
    return f"{function.__module__}.{function.__qualname__}"


def import_all(package: str, path: list[str], module: str = "") -> None:
    """Import what comes with hskd, so that it registers itself.

    Args:
        package: dotted name of the package that it lies in.
        path: the ``__path__`` of that package.
        module: import only this module of every package within; by default, every module of the package itself.
    """
    for module_info in iter_modules(path):
        if not module:
            import_module(f"{package}.{module_info.name}")
        elif module_info.ispkg:
            import_module(f"{package}.{module_info.name}.{module}")
