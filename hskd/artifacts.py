"""Content-addressed artifacts. Each is built once, appears atomically, and is reused by later runs."""

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
"""The file in a folder that identifies the recipe of the folder."""
CHECKSUMS = "checksums.json"
"""The file with the size and SHA-256 of the other files of a folder."""
MODULES = "modules.json"
"""The file that names the folders of a sentence-transformers model's further modules, such as ``1_Pooling``."""
_SEAL = "checksum"
"""Key of a record's own checksum."""
_PATIENCE = 1.0
"""Seconds to wait for another process before a message says so."""


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, atomically and with a checksum of the content."""
    write_json(path, sealed(content))


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Return the content of a file that :func:`write_record` wrote. A file without a checksum is not verified.

    Args:
        path: the file.
        remedy: a sentence for the error message that says what to do if the file is damaged.

    Raises:
        HskdError: there is no such file.
        CorruptionError: the file is not a JSON object, or does not match its checksum.
    """
    try:
        content = read_json(path)
    except CorruptionError as error:
        raise CorruptionError(f"{error} {remedy}") from None
    return unsealed(content, path, remedy)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with its checksum. An existing checksum is replaced."""
    plain = _plain(content)
    return plain | {_SEAL: fingerprint(plain)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Return whether ``content`` matches its checksum, or has none."""
    try:
        return _SEAL not in content or content[_SEAL] == fingerprint(_plain(content))
    except (ValueError, RecursionError):  # Invalid Unicode or excessive nesting cannot have been sealed.
        return False


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != _SEAL}


def unsealed(content: Any, where: Path | str, remedy: str) -> dict[str, Any]:
    """Return ``content``, a result of :func:`sealed`, without its checksum.

    Args:
        content: the parsed JSON.
        where: its place, for the message.
        remedy: a sentence for the message that says what to do.

    Raises:
        CorruptionError: ``content`` is not an object, or does not match its checksum.
    """
    if not isinstance(content, dict):
        raise CorruptionError(f"{where}: expected an object, not {type(content).__name__}. {remedy}")
    if not is_whole(content):
        raise CorruptionError(
            f"{where}: its content does not match its checksum: it is damaged, or was edited. {remedy}"
        )
    return _plain(content)


def claim(note: Path, recipe: Any, holds: str) -> None:
    """Record the recipe of a folder in the file ``note``, or check that the recorded recipe is the same.

    Args:
        note: the file, which lies in the folder.
        recipe: what the folder is made from, as JSON.
        holds: for the message, what the folder holds if the recipes differ.

    Raises:
        MismatchError: another recipe is recorded. The message names the parts that differ.
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
    """Return the fingerprint of a recipe, and those of its parts, so that a message can name what differs."""
    key: dict[str, Any] = {"recipe": fingerprint(recipe)}
    if isinstance(recipe, dict):
        key["parts"] = {name: fingerprint(value) for name, value in recipe.items()}
    return key


def _differing(recorded: Any, expected: Any) -> str:
    """Return the names of the parts that differ, for a message; an empty text if they are not known."""
    if not isinstance(recorded, dict) or not isinstance(expected, dict):
        return ""
    names = [name for name in {**expected, **recorded} if recorded.get(name) != expected.get(name)]
    return f" (it differs in: {', '.join(names)})" if names else ""


def seal(folder: Path, names: Sequence[str] | None = None) -> None:
    """Write the sizes and SHA-256 checksums of files in ``folder`` to its ``checksums.json``.

    Args:
        folder: the folder.
        names: names of the files [default: all files directly in the folder or in a model's module folders, except
            hidden files].
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
    """Return the existing folders of a model's further modules (see :data:`MODULES`), or an empty list."""
    note = folder / MODULES
    modules = read_json(note) if note.is_file() else []
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    # Only direct subfolders belong to the model, so a path with several parts is ignored.
    names = sorted({path for path in paths if isinstance(path, str) and PurePath(path).name == path and path != ".."})
    return [folder / name for name in names if (folder / name).is_dir()]


RECORDS = (RECIPE_FILE, "metrics.json", "student.json", "general.json", "result.json")
"""Files that contain their own checksum (see :func:`write_record`). They may be rewritten later."""


def require_whole(folder: Path) -> None:
    """Verify the files of ``folder`` against its ``checksums.json``, if it has one.

    Raises:
        CorruptionError: names the first missing or damaged file.
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
    """Hold the lock of ``folder`` within the context. If another process holds it, report that and wait.

    Raises:
        HskdError: the lock cannot be written.
    """
    from filelock import FileLock, Timeout  # imported late, so that usage errors are reported quickly

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
    """Build ``folder`` with ``builder`` unless it exists already, and return it. It appears only when it is complete.

    ``builder`` writes into ``<folder>.partial``. That folder survives a killed run, so a builder can resume from its
    files. Two processes never build the same folder: the second one waits, and then finds it finished.

    Args:
        folder: the folder to build.
        builder: fills the folder that it is given.
        together: whether all processes (:mod:`hskd.processes`) run ``builder`` and share the work. Otherwise only the
            main process runs it.
        progress: receives a message if another process must be waited for.

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
    """Build ``folder`` from ``recipe``, or check that an existing folder was made from it, and return the folder.

    Args:
        folder: the folder to build (see :func:`build`).
        recipe: everything that the content depends on, as JSON. Its fingerprint is kept in the folder. It identifies
            files, data and models by their content, and the code by its number in :data:`SCHEMAS`.
        builder: fills the folder that it is given.
        holds: for the message, what the folder holds if it was made from another recipe.
        resumes: whether ``builder`` resumes from the files of a killed run. They must then have the same recipe.
            Otherwise they are deleted.
        together: whether all processes (:mod:`hskd.processes`) run ``builder``.
        progress: receives a message if another process must be waited for.

    Raises:
        HskdError: the folder cannot be written, or has no record of its recipe.
        CorruptionError: the record of its recipe is damaged.
        MismatchError: the folder, or the unfinished folder of a killed run, was made from another recipe.
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
    """Remove everything in ``folder``, such as the files of a killed run with another recipe."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def partial_of(folder: Path) -> Path:
    """Return the path under which ``folder`` is built until it is finished."""
    return folder.with_name(folder.name + ".partial")


def lock_path(folder: Path) -> Path:
    """Return the path of the lock file that a process holds while it builds ``folder``."""
    return folder.with_name(f".{folder.name}.lock")


SCHEMAS = {"teachers": 2, "general": 2, "students": 2, "stores": 2, "trials": 2}
"""The schema number of each kind of artifact, which is part of its key.

Raise a number when the same recipe gives a different artifact than before, because the format or the training has
changed. Artifacts with the old number are then built again. A release that changes neither keeps the numbers, and with
them the cache.
"""


class ArtifactFolders:
    """The folder of all artifacts, which lie in ``<root>/<kind>/<key>``.

    The key is a fingerprint of the recipe and of the kind's number in :data:`SCHEMAS`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        """Return the folder of the artifact with this kind and recipe, whether it exists or not.

        The recipe is written beside the folder, so that people can see what a key stands for.
        """
        if kind in SCHEMAS:
            recipe = recipe | {"schema": SCHEMAS[kind]}
        folder = self.root / kind / fingerprint(recipe)
        note = folder.with_name(folder.name + RECIPE_SUFFIX)
        if note.exists():
            note.touch()  # Its time is the time of the last use.
        else:
            write_json(note, recipe)
        return folder
