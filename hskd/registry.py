"""Registries: entries of one kind by name, built in or from a plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from hskd import plugins
from hskd.errors import HskdError, brief

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name. An unknown name is searched for among the installed plug-ins.

    Args:
        noun: the kind of an entry, for messages.
        group: the entry-point group of plug-ins of this kind.
        where: the beginning of messages, such as the dimension of selectors.
    """

    def __init__(self, noun: str, group: str, where: str = "") -> None:
        self._noun = noun
        self._group = group
        self._where = f"{where}: " if where else ""
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, entry: T, source: Any) -> None:
        """Add ``entry``, which is defined by ``source``, a class or a function.

        Raises:
            HskdError: another class or function is registered under that name.
        """
        place = _place(source)
        known = self._places.setdefault(name, place)
        if known != place:
            raise HskdError(f"{self._where}{self._noun} {name!r} is {known} already; give {place} another name.")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Remove an entry, such as one that a test has registered."""
        del self._entries[name], self._places[name]

    def find(self, name: str) -> T | None:
        """Return the entry with that name, built in or from an installed plug-in; None if there is none.

        Raises:
            HskdError: a plug-in with that name cannot be imported.
        """
        if name not in self._entries:
            plugins.resolve(self._group, name)
        return self._entries.get(name)

    def unknown(self, name: str) -> HskdError:
        """Return the error for an unknown name. It lists the known names."""
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
    """Return the qualified name of a class or function; for ``functools.partial``, that of the wrapped function."""
    function = getattr(source, "func", source)
    return f"{function.__module__}.{function.__qualname__}"


def import_all(package: str, path: list[str], module: str = "") -> None:
    """Import the modules of a package, so that the built-in entries register themselves.

    Args:
        package: dotted name of the package.
        path: the ``__path__`` of that package.
        module: name of the module to import from every subpackage [default: import every module of the package].
    """
    for module_info in iter_modules(path):
        if not module:
            import_module(f"{package}.{module_info.name}")
        elif module_info.ispkg:
            import_module(f"{package}.{module_info.name}.{module}")
