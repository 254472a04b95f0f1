"""File access: atomic writes, JSON, links and free disk space."""

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

_AGAIN = "the file is damaged: copy it again, or delete the artifact that it belongs to and make it again"
_GIT_LFS = b"version https://git-lfs"
POINTER = "is a pointer of git-lfs and not the file itself; run git lfs pull there, or copy the file again"
"""Message for a file that :func:`is_lfs_pointer` detects."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to. On success, the file is synced to disk and renamed to ``path``.

    Temporary files of killed writers of ``path`` are removed.

    Raises:
        HskdError: the disk is full or the folder cannot be written. The temporary file is removed.
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
        # mkstemp makes files private, but the result should have ordinary permissions.
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
    """Create an empty temporary file beside ``path``, and return its open handle and its path.

    The file is locked while the handle is open. A temporary file without a lock belongs to a killed process.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # The file system has no locks, so abandoned files are never removed there.
            return handle, Path(name)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # Another process removed the file as abandoned before it was locked.


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of killed writers of ``path``."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    for entry in os.scandir(path.parent):
        if entry.name.startswith(".") and pattern.fullmatch(entry.name):
            with suppress(OSError):  # It is in use, or another process has removed it.
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


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` to ``path`` as JSON, atomically. If ``indent`` is None, write one line without spaces."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(value, indent=indent, separators=separators, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        HskdError: the file is missing or cannot be read.
        CorruptionError: the file is not JSON.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HskdError(f"{path}: no such file.") from None
    except OSError as error:
        raise HskdError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str, remedy: str = _AGAIN) -> Any:
    """Return the value in the JSON ``content``.

    Args:
        content: the bytes of the file.
        where: names the source in messages.
        remedy: says in messages what to do.

    Raises:
        CorruptionError: the content is not JSON, is nested too deep, or holds a number too long to parse.
    """
    if content.startswith(_GIT_LFS):
        raise CorruptionError(f"{where}: {POINTER}.")
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise CorruptionError(f"{where}: not valid JSON (nested too deep); {remedy}.") from None
    except ValueError as error:  # invalid JSON or UTF-8, or a number with thousands of digits
        raise CorruptionError(f"{where}: not valid JSON ({error}); {remedy}.") from None


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a git-lfs pointer, which git puts in place of a file that has not been fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GIT_LFS)) == _GIT_LFS
    except OSError:
        return False


def require_inside(folder: Path, path: Path) -> None:
    """Check that a file of ``folder`` is not a link that leads out of the folder.

    Raises:
        HskdError: ``path`` resolves to a place outside ``folder``, or is a broken or circular link.
    """
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise HskdError(
            f"{path}: is a link that leads out of its folder; put the file itself there (cp -L follows links)."
        )


_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos", "iostream error")
"""Words in the errors that ``torch.save`` raises on a full disk. They differ by the place in the file."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Convert the errors that libraries raise if ``path`` cannot be written into one kind of error.

    For a full disk, Python raises ``OSError``, safetensors ``SafetensorError``, ``torch.save`` one of several
    ``RuntimeError``, and tokenizers a bare ``Exception``.

    Raises:
        HskdError: ``path`` cannot be written.
    """
    try:
        yield
    except HskdError:
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        of_torch = isinstance(error, RuntimeError) and any(words in reason for words in _TORCH_CANNOT_WRITE)
        of_tokenizers = type(error) is Exception and "(os error " in reason  # how Rust reports an error of the system
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or of_torch or of_tokenizers:
            raise HskdError(
                f"{path}: cannot be written ({reason}); {format_bytes(_free_bytes(path))} are free there. Free some "
                "space or repair the folder, and run the same command again to resume."
            ) from error
        raise


def _free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of ``path``, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def with_home(place: str) -> str:
    """Return ``place`` with a leading ``~`` or ``~user`` replaced by the home folder.

    Raises:
        HskdError: there is no such user.
    """
    try:
        return str(Path(place).expanduser()) if place.startswith("~") else place
    except RuntimeError:
        raise HskdError(f"{place}: there is no home folder of that user; write the path in full.") from None


def require_space(folder: Path, needed: int, what: str) -> str:
    """Return a message with the bytes that ``what`` needs and the bytes that are free.

    Raises:
        HskdError: fewer than ``needed`` bytes are free on the disk of ``folder``.
    """
    free = _free_bytes(folder)
    message = f"{what} needs {format_bytes(needed)}; {format_bytes(free)} free on the disk of {folder}"
    if needed > free:
        raise HskdError(f"{message}. Free some space, choose another folder, or keep less HSK.")
    return message


def format_bytes(count: float) -> str:
    """Return a number of bytes as text, in the largest unit in which it is at least 1."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
