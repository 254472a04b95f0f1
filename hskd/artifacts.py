"""Content-addressed artifacts: built once, whole or not at all, shared by every run that asks again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from hskd import processes
from hskd.errors import CorruptionError, HskdError, MismatchError

RECIPE_SUFFIX = ".recipe.json"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(path: Path) -> str:
    """16 hexadecimal digits that stand for a file's bytes, or for the names and bytes of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(path).as_posix(), file_sha256(file)] for file in files])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to; it takes ``path``'s place only once whole and on disk.

    Raises:
        HskdError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; what we publish has the ordinary permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise HskdError(f"{path}: cannot be written ({error.strerror or error}). Nothing was left behind.") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        HskdError: the file is missing.
        CorruptionError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HskdError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{path}: not valid JSON ({error}).") from None


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
    partial = folder.with_name(folder.name + ".partial")
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


def lock_path(folder: Path) -> Path:
    """The lock that whoever makes ``folder`` holds."""
    return folder.with_name(f".{folder.name}.lock")


class Workspace:
    """The folder that holds every artifact, as ``<root>/<kind>/<key>``: the key is a fingerprint of the recipe."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        """Where the artifact of ``kind`` made by ``recipe`` lies, or will lie.

        The recipe is kept beside it, so that a person can tell what a key stands for.
        """
        folder = self.root / kind / fingerprint(recipe)
        note = folder.with_name(folder.name + RECIPE_SUFFIX)
        if note.exists():
            note.touch()  # when it was last used
        else:
            write_json(note, recipe)
        return folder


def require_space(folder: Path, needed: int, what: str) -> str:
    """Say how many bytes ``what`` needs and how many are free; refuse if they do not fit.

    Raises:
        HskdError: fewer than ``needed`` bytes are free where ``folder`` lies.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    message = f"{what} needs {format_bytes(needed)}; {format_bytes(free)} free on the disk of {folder}"
    if needed > free:
        raise HskdError(f"{message}. Free some space, choose another folder, or keep less HSK.")
    return message


def format_bytes(count: float) -> str:
    """A count of bytes in the largest unit that keeps it above 1."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
