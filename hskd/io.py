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

_AGAIN = "the file is damaged: copy it again, or delete what it belongs to and make that again"
_GIT_LFS = b"version https://git-lfs"
POINTER = "is a pointer of git-lfs and not the file itself; run git lfs pull there, or copy the file again"
"""What to say of a file for which :func:`is_lfs_pointer` holds."""


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


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` to ``path`` as JSON, atomically; without ``indent`` in one line that has no spaces to spare."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(value, indent=indent, separators=separators, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

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


def parse_json(content: bytes, where: str) -> Any:
    """What JSON says; ``where`` names it in messages.

    Raises:
        CorruptionError: it is not JSON, is nested too deep, or holds a number too long to be read.
    """
    if content.startswith(_GIT_LFS):
        raise CorruptionError(f"{where}: {POINTER}.")
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise CorruptionError(f"{where}: not valid JSON (nested too deep); {_AGAIN}.") from None
    except ValueError as error:  # the errors of json and of UTF-8, and that of a number of thousands of digits
        raise CorruptionError(f"{where}: not valid JSON ({error}); {_AGAIN}.") from None


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in its place until git-lfs has fetched it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GIT_LFS)) == _GIT_LFS
    except OSError:
        return False


def require_inside(folder: Path, path: Path) -> None:
    """Refuse a file of ``folder`` that is a link to somewhere else.

    Raises:
        HskdError: ``path`` lies elsewhere once links are followed, or is a link to nothing or in a circle.
    """
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise HskdError(
            f"{path}: is a link that leads out of its folder; put the file itself there (cp -L copies what links name)."
        )


_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos", "iostream error")
"""What ``torch.save`` says of a disk that is full, depending on where in the file that happens."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Say in one way what libraries raise when ``path`` cannot be written.

    A full disk is an ``OSError`` to Python, a ``SafetensorError`` to safetensors, one of several ``RuntimeError`` to
    ``torch.save``, and a bare ``Exception`` to tokenizers.

    Raises:
        HskdError: it cannot be written.
    """
    try:
        yield
    except HskdError:
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        of_torch = isinstance(error, RuntimeError) and any(words in reason for words in _TORCH_CANNOT_WRITE)
        of_tokenizers = type(error) is Exception and "(os error " in reason  # Rust's words for the system's error
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or of_torch or of_tokenizers:
            raise HskdError(
                f"{path}: cannot be written ({reason}); {format_bytes(_free_bytes(path))} are free there. Free some "
                "space or mend the folder, and run the same command again to go on."
            ) from error
        raise


def _free_bytes(path: Path) -> int:
    """Bytes that are free where ``path`` lies, or will lie."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def with_home(place: str) -> str:
    """``place`` with ``~`` and ``~user`` at its beginning as the folder that they mean; anything else as it is.

    Raises:
        HskdError: there is no such user.
    """
    try:
        return str(Path(place).expanduser()) if place.startswith("~") else place
    except RuntimeError:
        raise HskdError(f"{place}: there is no such user's folder; write the path out.") from None


def require_space(folder: Path, needed: int, what: str) -> str:
    """Say how many bytes ``what`` needs and how many are free; refuse if they do not fit.

    Raises:
        HskdError: fewer than ``needed`` bytes are free where ``folder`` lies.
    """
    free = _free_bytes(folder)
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
