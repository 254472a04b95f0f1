"""Content-addressed artifacts: built once, whole or not at all, shared by every run that asks again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

from hskd import processes
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256, fingerprint, known_sha256
from hskd.io import read_json, write_json
from hskd.progress import Progress, Silent

RECIPE_SUFFIX = ".recipe.json"
RECIPE_FILE = "recipe.json"
"""What a folder was made from, in the folder itself."""
CHECKSUMS = "checksums.json"
"""Size and SHA-256 of the other files of a folder."""
MODULES = "modules.json"
"""Names the folders of a model's further modules, such as ``1_Pooling``, as sentence-transformers has them."""
_SEAL = "checksum"
"""Key of a record's own checksum."""
_PATIENCE = 1.0
"""Seconds to wait for another process without a word."""


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON with a checksum of its own, atomically."""
    write_json(path, sealed(content))


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a file that :func:`write_record` wrote; one without a checksum is taken as it is.

    Args:
        path: the file.
        remedy: what to do if it is damaged, as a sentence.

    Raises:
        HskdError: there is no such file.
        CorruptionError: it is not JSON, no object, or not what was written.
    """
    try:
        content = read_json(path)
    except CorruptionError as error:
        raise CorruptionError(f"{error} {remedy}") from None
    return unsealed(content, path, remedy)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its checksum; one that it has is left out of it."""
    plain = _plain(content)
    return plain | {_SEAL: fingerprint(plain)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether ``content`` is what :func:`sealed` made, or has no checksum."""
    try:
        return _SEAL not in content or content[_SEAL] == fingerprint(_plain(content))
    except (ValueError, RecursionError):  # half a character, or nested a thousand deep: not what was sealed
        return False


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != _SEAL}


def unsealed(content: Any, where: Path | str, remedy: str) -> dict[str, Any]:
    """What :func:`sealed` was given.

    Raises:
        CorruptionError: it is no object, or not what was sealed; ``where`` and ``remedy`` are in the message.
    """
    if not isinstance(content, dict):
        raise CorruptionError(f"{where}: expected an object, not {type(content).__name__}. {remedy}")
    if not is_whole(content):
        raise CorruptionError(
            f"{where}: its content is not what its checksum says: it is damaged, or was edited. {remedy}"
        )
    return _plain(content)


def claim(note: Path, recipe: Any, holds: str) -> None:
    """Write down in the file ``note`` what a folder is for, or make sure that it is for the same as before.

    Raises:
        MismatchError: the note says something else; ``holds`` says what the folder holds then, and the message names
            the parts of the recipe that differ.
        CorruptionError: the note is damaged.
    """
    key = _key(recipe)
    if not note.is_file():
        write_record(note, key)
        return
    recorded = read_record(note, f"Delete {note.parent}, and run the same command again.")
    if recorded.get("recipe") != key["recipe"]:
        differing = _differing(recorded.get("parts"), key.get("parts"))
        raise MismatchError(f"{note.parent}: holds {holds}{differing}. Choose another folder, or delete that one.")


def _key(recipe: Any) -> dict[str, Any]:
    """What stands for a recipe: its fingerprint, and those of its parts, so that a message can name them."""
    key: dict[str, Any] = {"recipe": fingerprint(recipe)}
    if isinstance(recipe, dict):
        key["parts"] = {name: fingerprint(value) for name, value in recipe.items()}
    return key


def _differing(recorded: Any, expected: Any) -> str:
    """Names of the parts that differ, in brackets; nothing where they are not known."""
    if not isinstance(recorded, dict) or not isinstance(expected, dict):
        return ""
    names = [name for name in {**expected, **recorded} if recorded.get(name) != expected.get(name)]
    return f" (it differs in: {', '.join(names)})" if names else ""


def seal(folder: Path, names: Sequence[str] | None = None) -> None:
    """Write the size and the SHA-256 of files of ``folder`` into its ``checksums.json``.

    Args:
        folder: the folder.
        names: of the files [default: all that lie directly in it or in a module of a model there, but hidden ones].
    """
    there = sorted(
        path.relative_to(folder).as_posix()
        for part in (folder, *module_folders(folder))
        for path in part.iterdir()
        if path.is_file() and not path.name.startswith(".")
    )
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (there if names is None else names)
        if name != CHECKSUMS
    }
    write_record(folder / CHECKSUMS, {"files": listed})


def module_folders(folder: Path) -> list[Path]:
    """The folders of a model's further modules (see :data:`MODULES`) that are there; none where it has none."""
    note = folder / MODULES
    modules = read_json(note) if note.is_file() else []
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    # One name: what lies elsewhere is not the model's.
    names = sorted({path for path in paths if isinstance(path, str) and PurePath(path).name == path and path != ".."})
    return [folder / name for name in names if (folder / name).is_dir()]


RECORDS = (RECIPE_FILE, "metrics.json", "student.json", "general.json", "result.json")
"""Files with a checksum of their own (see :func:`write_record`), which may be written again."""


def require_whole(folder: Path) -> None:
    """Compare the files of ``folder`` with its ``checksums.json``, where it has one.

    Raises:
        CorruptionError: names the first file that is not the one that was written.
    """
    note = folder / CHECKSUMS
    if not note.is_file():
        return
    advice = f"Restore it, or delete {folder} and make it again; if you changed it yourself, delete {note}."
    listed = read_record(note, f"If the files beside it are whole, delete {note}.").get("files")
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise CorruptionError(f"{note}: expected files with their checksums. If they are whole, delete {note}.")
    for name, entry in listed.items():
        path = folder / name
        if name in RECORDS or path.parent not in (folder, folder / path.parent.name) or ".." in path.parts[-2:]:
            continue
        if not path.is_file():
            raise CorruptionError(f"{path}: is missing. {advice}")
        if path.stat().st_size != entry.get("bytes") or known_sha256(path) != entry.get("sha256"):
            raise CorruptionError(f"{path}: is not the file that was written there: it is damaged. {advice}")


@contextmanager
def locked(folder: Path, progress: Progress | None = None) -> Iterator[None]:
    """Keep other processes from making ``folder``; where one does, wait for it, and say so.

    Raises:
        HskdError: the lock cannot be written.
    """
    from filelock import FileLock, Timeout  # a usage error is answered without

    lock = FileLock(lock_path(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            (progress or Silent()).say(f"{folder}: another process is making it; waiting until that one is done")
            lock.acquire()
    except OSError as error:
        raise HskdError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        lock.release()


def build(
    folder: Path, builder: Callable[[Path], None], together: bool = False, progress: Progress | None = None
) -> Path:
    """Fill ``folder`` with ``builder`` unless it is there already; it appears whole or not at all.

    ``builder`` writes into ``<folder>.partial``. That folder outlives a killed run, so a builder that looks at
    what is already there can go on from it. Two processes never build the same folder: the second waits and
    then finds it done.

    Args:
        folder: what is built.
        builder: fills the folder that it is given.
        together: all of :mod:`hskd.processes` run ``builder``, sharing the work; else the main one does.
        progress: is told that another process is waited for.

    Raises:
        HskdError: the folder cannot be written.
    """
    if processes.by_main(folder.exists):
        return folder
    partial = partial_of(folder)
    try:
        with ExitStack() as locks:

            def begin() -> bool:
                locks.enter_context(locked(folder, progress))
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
    progress: Progress | None = None,
) -> Path:
    """Fill ``folder`` with what ``recipe`` describes, or make sure that it holds just that.

    Args:
        folder: what is built (see :func:`build`).
        recipe: everything that the content depends on, as JSON; its fingerprint is kept in the folder. Files, data and
            models stand in it by their content, and the code by its number in :data:`SCHEMAS`.
        builder: fills the folder that it is given.
        holds: what the folder holds if its recipe is another one, for the message.
        resumes: ``builder`` goes on from what a killed run left, so that must be of the same recipe.
        together: all of :mod:`hskd.processes` run ``builder``.
        progress: is told that another process is waited for.

    Raises:
        HskdError: the folder cannot be written, or was not made from a recipe.
        CorruptionError: what says what it was made from is damaged.
        MismatchError: the folder, or the beginning that a killed run left, was made from another recipe.
    """

    def claimed(partial: Path) -> None:
        if resumes:
            processes.by_main(lambda: claim(partial / RECIPE_FILE, recipe, holds))
        else:
            processes.by_main(lambda: clear(partial))
        builder(partial)
        if not resumes:
            processes.by_main(lambda: write_record(partial / RECIPE_FILE, _key(recipe)))
        processes.by_main(lambda: seal(partial))

    build(folder, claimed, together, progress)
    if not processes.by_main((folder / RECIPE_FILE).is_file):
        raise HskdError(f"{folder}: exists, and was not made by this command; choose another folder.")
    processes.by_main(lambda: claim(folder / RECIPE_FILE, recipe, holds))
    return folder


def clear(folder: Path) -> None:
    """Remove all that is in ``folder``, such as what a killed run left of another recipe."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def partial_of(folder: Path) -> Path:
    """Where ``folder`` grows until it is finished."""
    return folder.with_name(folder.name + ".partial")


def lock_path(folder: Path) -> Path:
    """The lock that whoever makes ``folder`` holds."""
    return folder.with_name(f".{folder.name}.lock")


SCHEMAS = {"teachers": 2, "general": 2, "students": 2, "stores": 2, "trials": 2}
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
