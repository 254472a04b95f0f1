"""Register the ROSITA student with the Auto classes of ``transformers`` without importing ``transformers``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # The module takes a while to import, and its classes are for type checkers.
    Loader = MetaPathFinder = object

_MODEL = "hskd.students.rosita.model"
"""The module of the ROSITA model. It imports nothing of hskd, so it can be imported during any other import of hskd."""


def register_with_transformers() -> None:
    """Register the ROSITA student now if ``transformers`` is imported already, otherwise when it is imported."""
    if "transformers" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    # The module registers itself. If it is the importer of transformers, it will register after that import.
    if _MODEL not in sys.modules:
        import_module(_MODEL)


class _Watcher(MetaPathFinder):
    """Import hook that registers the student once ``transformers`` is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loader that imports ``transformers`` with its own loader, and then registers the student."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()
