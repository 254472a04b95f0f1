"""Files: atomic writes, JSON, and the space that is left."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hskd.errors import CorruptionError, HskdError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to; it takes ``path``'s place only once whole and on disk.

    What a killed process left beside ``path`` in this way is removed.

    Raises:
        HskdError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    handle: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, temporary = _locked_temporary(path)
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
        if handle is not None:
            os.close(handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """An empty file beside ``path``, locked for as long as its handle is open: who holds no lock was killed."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nothing abandoned is ever removed there
            return handle, Path(name)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process took it for abandoned before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of writers of ``path`` that were killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    for entry in os.scandir(path.parent):
        if entry.name.startswith(".") and pattern.fullmatch(entry.name):
            with suppress(OSError):  # in use, or removed by another process
                handle = os.open(entry.path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)  # noqa: PTH108
                finally:
                    os.close(handle)


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
