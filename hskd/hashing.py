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
        status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_SETTLED_NS = 2 * 10**9
"""Age from which the times of a file tell something: one that changes twice at once keeps its times."""
_known: dict[Stamp, str] = {}


def known_sha256(path: Path) -> str:
    """:func:`file_sha256`, remembered in this process until the file changes.

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
    """What :func:`known_sha256` remembers of a file, to be handed to another process; None where it would read it."""
    try:
        stamp = Stamp.of(path)
    except OSError:
        return None
    return (stamp, _known[stamp]) if stamp in _known else None


def take_over(digests: list[tuple[Stamp, str]]) -> None:
    """Believe what another process of this machine has read: the other side of :func:`remembered`."""
    _known.update(digests)


def content_fingerprint(path: Path) -> str:
    """16 hexadecimal digits that stand for a file's bytes, or for the names and bytes of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(path).as_posix(), known_sha256(file)] for file in files])
