"""Files: atomic writes, JSON, and the space that is left."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hskd.errors import CorruptionError, HskdError


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
        HskdError: the file is missing, or cannot be read.
        CorruptionError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HskdError(f"{path}: no such file.") from None
    except OSError as error:
        raise HskdError(f"{path}: cannot be read ({error.strerror or error}).") from None
    # ValueError: no JSON, no UTF-8, or a number of thousands of digits. RecursionError: nested a thousand deep.
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{path}: not valid JSON ({error}).") from None


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Say in one way what libraries raise when ``path`` cannot be written.

    A full disk is an ``OSError`` to Python, a ``SafetensorError`` to safetensors, a ``RuntimeError`` to ``torch.save``.

    Raises:
        HskdError: it cannot be written.
    """
    try:
        yield
    except HskdError:
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        of_torch = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in reason or "unexpected pos" in reason)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or of_torch:
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
