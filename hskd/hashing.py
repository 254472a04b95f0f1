"""Fingerprints: of values, of files, of folders."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any


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


_SETTLED = 2.0
"""Seconds after which a file that changes once more has another time; many file systems have coarse clocks."""
_known: dict[tuple[str | int, ...], str] = {}


def known_sha256(path: Path) -> str:
    """:func:`file_sha256`, remembered in this process for as long as the file stays as it is.

    A file is taken for the same while its inode, size and times (of change, too) are. One that was written a moment ago
    is hashed every time.
    """
    before = path.stat()
    key = (str(path.absolute()), before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    if key in _known:
        return _known[key]
    digest = file_sha256(path)
    if path.stat() == before and time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED:
        _known[key] = digest
    return digest


def content_fingerprint(path: Path) -> str:
    """16 hexadecimal digits that stand for a file's bytes, or for the names and bytes of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(path).as_posix(), known_sha256(file)] for file in files])
