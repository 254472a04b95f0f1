"""List the files of a store, teacher, student or trial, local or remote, with their sizes and checksums.

The list of a store is its manifest. Any other published folder has a ``checksums.json``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hskd.artifacts import CHECKSUMS, require_whole
from hskd.errors import CorruptionError, HskdError
from hskd.hashing import file_sha256, fingerprint, known_sha256
from hskd.io import parse_json, require_inside
from hskd.remote.place import Place
from hskd.selectors.base import describe
from hskd.store_format.layout import MANIFEST
from hskd.store_format.manifest import Manifest

UPLOAD = "upload.json"
"""Name of the marker of an unfinished upload. It exists until the last file is uploaded, and identifies the upload."""
_MODEL, _TRIAL = "config.json", "result.json"


class File(NamedTuple):
    """One file of an artifact: its name, size and checksum. An unknown size or checksum is None."""

    name: str
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Contents:
    """The files of an artifact.

    Attributes:
        files: all files, except a store's manifest.
        fingerprint: identifies the contents; equal artifacts have equal fingerprints.
        index: name and bytes of the file that lists the others, and is written last; None if there is no such file.
        manifest: the manifest of a store; otherwise None.
    """

    files: tuple[File, ...]
    fingerprint: str
    index: tuple[str, bytes] | None = None
    manifest: Manifest | None = None

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes, as far as known."""
        return sum(file.bytes or 0 for file in self.files)

    def missing(self, folder: Path) -> list[File]:
        """Return the files that are missing in ``folder``, or differ there in size or checksum.

        Raises:
            OSError: a file cannot be read.
        """
        return [file for file in self.files if not _has(folder / file.name, file)]


def _has(path: Path, file: File) -> bool:
    if path.is_symlink() or not path.is_file() or file.bytes not in (None, path.stat().st_size):
        return False
    return file.sha256 is None or known_sha256(path) == file.sha256


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0, le=2**60)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Checksums(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    files: dict[str, _Entry]


def local_contents(folder: Path) -> Contents:
    """Return the contents of the artifact in ``folder``.

    Hidden files are left out. So is the derived store of a trial, because it is an artifact of its own.

    Raises:
        HskdError: the folder is not a finished store, teacher, student or trial, or one of its files is a link that
            leads out of the folder.
        CorruptionError: a file is damaged.
    """
    if (folder / MANIFEST).is_file():
        manifest = Manifest.read(folder)
        for shard in manifest.shards:
            if (folder / shard.file).exists():
                require_inside(folder, folder / shard.file)
        return _of_store(manifest, (folder / MANIFEST).read_bytes())
    if not any((folder / name).is_file() for name in (_MODEL, _TRIAL)) or folder.suffix == ".partial":
        raise HskdError(
            f"{folder}: is not a finished store, teacher, student or trial (it has neither {MANIFEST}, {_MODEL} nor "
            f"{_TRIAL})."
        )
    for part in {folder, *(note.parent for note in folder.rglob(CHECKSUMS))}:
        require_whole(part)
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    stores = {manifest.parent.relative_to(folder) for manifest in folder.rglob(MANIFEST)}
    files = {
        name.as_posix(): path
        for name, path in sorted(paths.items())
        if name.as_posix() not in (CHECKSUMS, UPLOAD)
        and not any(part.startswith(".") for part in name.parts)
        and stores.isdisjoint(name.parents)
    }
    for path in files.values():
        require_inside(folder, path)
        if not path.is_file():
            raise HskdError(f"{path}: is a link to a folder; put the files themselves there.")
    return _listed(File(name, path.stat().st_size, file_sha256(path)) for name, path in files.items())


def remote_contents(place: Place) -> Contents:
    """Return the contents of the artifact at ``place``.

    Raises:
        HskdError: there is no artifact, or its upload was not finished.
        CorruptionError: the manifest or the list of checksums is damaged.
    """
    unfinished = HskdError(f"{place.url}: its upload was not finished; run hskd push again from the original folder.")
    try:
        contents = finished_contents(place)
    except CorruptionError:
        if place.read(UPLOAD) is not None:  # The upload was killed while it wrote the index.
            raise unfinished from None
        raise
    if contents is not None:
        return contents
    if place.read(UPLOAD) is not None:
        raise unfinished
    # Without an index, this may still be a model folder that was copied by other means than hskd push.
    listing = place.listing()
    if _MODEL not in listing:
        raise HskdError(
            f"{place.url}: there is no store, teacher, student or trial (neither {MANIFEST}, {CHECKSUMS} nor {_MODEL})."
        )
    files = tuple(File(_inside(place, name), size, None) for name, (size, _) in sorted(listing.items()))
    return Contents(files, fingerprint(sorted(listing.items())))


def data_contents(place: Place, name: str | None) -> Contents:
    """Return the contents of a folder of examples at ``place``, which has no list of checksums.

    Args:
        place: the folder.
        name: name of a single file in it; None for all files except hidden ones.

    Raises:
        HskdError: there are no such files.
    """
    if name is not None:
        stamp = place.stamp(name)
        if stamp is None:
            raise HskdError(f"{place / name}: no such file.")
        listing = {_inside(place, name): stamp}
    else:
        hidden = re.compile(r"(^|/)\.")
        listing = {_inside(place, path): stamp for path, stamp in place.listing().items() if not hidden.search(path)}
    if not listing:
        raise HskdError(f"{place.url}: no files lie there; expected a file or folder of examples.")
    files = tuple(File(path, size, None) for path, (size, _) in sorted(listing.items()))
    return Contents(files, fingerprint(sorted(listing.items())))


def finished_contents(place: Place) -> Contents | None:
    """Return the contents published at ``place``; None if there is no finished upload.

    Raises:
        CorruptionError: the manifest or the list of checksums is damaged.
    """
    content = place.read(MANIFEST)
    if content is not None:
        return _of_store(Manifest.of(parse_json(content, place / MANIFEST), place / MANIFEST), content)
    content = place.read(CHECKSUMS)
    if content is None:
        return None
    damaged = f"{place / CHECKSUMS}: it is damaged, or was not written by hskd push; delete it there, and push again"
    listed = parse_json(content, place / CHECKSUMS)
    try:
        if not isinstance(listed, dict) or listed.pop("checksum", None) != fingerprint(listed):
            raise CorruptionError(f"{damaged}.")
        entries = _Checksums.model_validate(listed).files
    except ValidationError as error:
        raise CorruptionError(f"{damaged} ({describe(error)[:300]}).") from None
    except (ValueError, RecursionError):  # invalid Unicode, or excessive nesting
        raise CorruptionError(f"{damaged}.") from None
    return _listed(File(_inside(place, name), entry.bytes, entry.sha256) for name, entry in entries.items())


def _of_store(manifest: Manifest, content: bytes) -> Contents:
    files = tuple(File(entry.file, entry.bytes, entry.sha256) for entry in manifest.files)
    return Contents(files, manifest.fingerprint, (MANIFEST, content), manifest)


def _listed(files: Iterable[File]) -> Contents:
    files = tuple(files)
    listed = {"files": {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in files}}
    content = json.dumps(listed | {"checksum": fingerprint(listed)}, indent=2, ensure_ascii=False) + "\n"
    return Contents(files, fingerprint(listed), (CHECKSUMS, content.encode()))


def _inside(place: Place, name: str) -> str:
    """Return ``name`` if it names a file below the folder, so that a remote list cannot write to other folders.

    Raises:
        CorruptionError: the name leads out of the folder, or is not a valid file name.
    """
    path = PurePosixPath(name)
    try:
        os.fsencode(name)
        sound = path.parts and "\0" not in name
    except UnicodeEncodeError:
        sound = False
    if not sound or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise CorruptionError(
            f"{place.url}: names the file {name[:300]!a}, which is not below it; nothing was fetched."
        )
    return name
