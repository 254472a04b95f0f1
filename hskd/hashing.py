"""Fingerprints: of values, of files, of folders."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple


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


class Stamp(NamedTuple):
    """What tells whether a file is the one that was read: its place on the disk, its size and when it was changed.

    The time of the last change can be set, as copies do; that of the last change of its entry cannot.
    """

    device: int
    inode: int
    bytes: int
    content_changed_ns: int
    entry_changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of the file at ``path`` as it is now."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


_SETTLED_NS = 2 * 10**9
"""Age from which the times of a file tell something: one that changes twice at once keeps its times."""
_verified: dict[Stamp, str] = {}


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file's bytes have this SHA-256. They are read once a process, until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    stamp, now = Stamp.of(path), time.time_ns()
    if stamp in _verified:
        return _verified[stamp] == sha256
    found = file_sha256(path)
    if now - max(stamp.content_changed_ns, stamp.entry_changed_ns) > _SETTLED_NS and Stamp.of(path) == stamp:
        _verified[stamp] = found
    return found == sha256


def verified(path: Path) -> tuple[Stamp, str] | None:
    """What :func:`has_sha256` knows of a file, to be handed to another process; None where it would have to read it."""
    try:
        stamp = Stamp.of(path)
    except OSError:
        return None
    return (stamp, _verified[stamp]) if stamp in _verified else None


def take_over(known: list[tuple[Stamp, str]]) -> None:
    """Believe what another process of this machine has read: the other side of :func:`verified`."""
    _verified.update(known)


def content_fingerprint(path: Path) -> str:
    """16 hexadecimal digits that stand for a file's bytes, or for the names and bytes of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(path).as_posix(), file_sha256(file)] for file in files])
