"""Content-addressed artifacts: built once, whole or not at all, shared by every run that asks again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock

from hskd import processes
from hskd.errors import HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.io import read_json, write_json

RECIPE_SUFFIX = ".recipe.json"
RECIPE_FILE = "recipe.json"
"""What a folder was made from, in the folder itself."""


def claim(note: Path, recipe: Any, holds: str) -> None:
    """Write down in the file ``note`` what a folder is for, or make sure that it is for the same as before.

    Raises:
        MismatchError: the note says something else; ``holds`` says what the folder holds then.
    """
    key = {"recipe": fingerprint(recipe)}
    if not note.is_file():
        write_json(note, key)
    elif read_json(note) != key:
        raise MismatchError(f"{note.parent}: holds {holds}. Choose another folder, or delete that one.")


def build(folder: Path, builder: Callable[[Path], None], together: bool = False) -> Path:
    """Fill ``folder`` with ``builder`` unless it is there already; it appears whole or not at all.

    ``builder`` writes into ``<folder>.partial``. That folder outlives a killed run, so a builder that looks at
    what is already there can go on from it. Two processes never build the same folder: the second waits and
    then finds it done.

    Args:
        folder: what is built.
        builder: fills the folder that it is given.
        together: all of :mod:`hskd.processes` run ``builder``, sharing the work; else the main one does.

    Raises:
        HskdError: the folder cannot be written.
    """
    if processes.by_main(folder.exists):
        return folder
    partial = partial_of(folder)
    try:
        with ExitStack() as held:

            def begin() -> bool:
                folder.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(lock_path(folder)))
                if folder.exists():
                    return False
                partial.mkdir(exist_ok=True)
                return True

            if processes.by_main(begin):
                if together:
                    builder(partial)
                    processes.barrier()
                else:
                    processes.by_main(lambda: builder(partial))
                processes.by_main(lambda: partial.replace(folder))
    except OSError as error:
        raise HskdError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    return folder


def build_artifact(
    folder: Path,
    recipe: Any,
    builder: Callable[[Path], None],
    holds: str,
    *,
    resumes: bool = False,
    together: bool = False,
) -> Path:
    """Fill ``folder`` with what ``recipe`` describes, or make sure that it holds just that.

    Args:
        folder: what is built (see :func:`build`).
        recipe: everything that the content depends on, as JSON; its fingerprint is kept in the folder.
        builder: fills the folder that it is given.
        holds: what the folder holds if its recipe is another one, for the message.
        resumes: ``builder`` goes on from what a killed run left, so that must be of the same recipe.
        together: all of :mod:`hskd.processes` run ``builder``.

    Raises:
        HskdError: the folder cannot be written, or was not made from a recipe.
        MismatchError: the folder, or the beginning that a killed run left, was made from another recipe.
    """

    def claimed(partial: Path) -> None:
        if resumes:
            processes.by_main(lambda: claim(partial / RECIPE_FILE, recipe, holds))
        builder(partial)
        if not resumes:
            processes.by_main(lambda: write_json(partial / RECIPE_FILE, {"recipe": fingerprint(recipe)}))

    build(folder, claimed, together)
    if not processes.by_main((folder / RECIPE_FILE).is_file):
        raise HskdError(f"{folder}: exists, and was not made by this command; choose another folder.")
    claim(folder / RECIPE_FILE, recipe, holds)
    return folder


def partial_of(folder: Path) -> Path:
    """Where ``folder`` grows until it is finished."""
    return folder.with_name(folder.name + ".partial")


def lock_path(folder: Path) -> Path:
    """The lock that whoever makes ``folder`` holds."""
    return folder.with_name(f".{folder.name}.lock")


SCHEMAS = {"teachers": 1, "general": 1, "students": 1, "stores": 1, "trials": 1}
"""The schema number of each kind of artifact, which is part of its key.

Raise a number when the same recipe gives another artifact than before: another format, or other training. Artifacts
of the number before are then made anew. A release that changes neither keeps the numbers, and with them the cache.
"""


class ArtifactFolders:
    """The folder that holds every artifact, as ``<root>/<kind>/<key>``.

    The key is a fingerprint of the recipe and of the kind's number in :data:`SCHEMAS`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        """Where the artifact of ``kind`` made by ``recipe`` lies, or will lie.

        The recipe is kept beside it, so that a person can tell what a key stands for.
        """
        if kind in SCHEMAS:
            recipe = recipe | {"schema": SCHEMAS[kind]}
        folder = self.root / kind / fingerprint(recipe)
        note = folder.with_name(folder.name + RECIPE_SUFFIX)
        if note.exists():
            note.touch()  # when it was last used
        else:
            write_json(note, recipe)
        return folder
