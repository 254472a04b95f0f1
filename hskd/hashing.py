"""Fingerprints of values, files and folders."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stamp(NamedTuple):
    """Identifies the state of a file, to detect changes: its device, inode, size and times of change.

    A program can set the time of the last content change, as copying does. It cannot set the time of the last change
    of the inode.
    """

    device: int
    inode: int
    bytes: int
    content_changed_ns: int
    entry_changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the current stamp of the file at ``path``."""
        status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_SETTLED_NS = 2 * 10**9
"""Minimum age of a file before its times are trusted, because two changes in quick succession may share a time."""
_known: dict[Stamp, str] = {}


def known_sha256(path: Path) -> str:
    """Return :func:`file_sha256` of a file, cached in this process until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    stamp, now = Stamp.of(path), time.time_ns()
    if stamp in _known:
        return _known[stamp]
    digest = file_sha256(path)
    if now - max(stamp.content_changed_ns, stamp.entry_changed_ns) > _SETTLED_NS and Stamp.of(path) == stamp:
        _known[stamp] = digest
    return digest


def remembered(path: Path) -> tuple[Stamp, str] | None:
    """Return the stamp and cached checksum of a file, to pass to another process; None if it is not cached."""
    try:
        stamp = Stamp.of(path)
    except OSError:
        return None
    return (stamp, _known[stamp]) if stamp in _known else None


def take_over(digests: list[tuple[Stamp, str]]) -> None:
    """Add checksums from another process on this machine, which :func:`remembered` returned there, to the cache."""
    _known.update(digests)


def content_fingerprint(path: Path) -> str:
    """Return a fingerprint of a file's bytes, or of the names and bytes of all files in a folder (16 hex digits)."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(path).as_posix(), known_sha256(file)] for file in files])
