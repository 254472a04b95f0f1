"""Copies from a URL and to a URL: verified, resumable, and whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from hskd.artifacts import CHECKSUMS, ArtifactFolders, build, claim, lock_path
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.io import atomic_path, require_space, with_home
from hskd.progress import Progress, Silent
from hskd.remote.contents import (
    UPLOAD,
    Contents,
    File,
    data_contents,
    finished_contents,
    local_contents,
    remote_contents,
)
from hskd.remote.place import Place, is_url

CACHE = "remote"
"""Kind of the artifacts that are copies of what lies elsewhere."""
WORK = Path("work")
_SILENT = Silent()


def local_copy(place: str | Path, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """A folder on this machine: ``place`` itself, or what :func:`fetch` makes of a URL."""
    return fetch(place, work, progress) if isinstance(place, str) and is_url(place) else Path(with_home(str(place)))


def fetch(url: str, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """Copy the store, teacher, student or trial at ``url`` into the cache and say where it is.

    The copy lies in ``<work>/remote``, under a key of the URL and of what is there: when that changes, another copy
    is made. A file that is there already is compared with its checksum, once a process, and not fetched again if it is
    whole; so a killed fetch goes on, and a damaged copy is mended.

    Args:
        url: any URL that ``fsspec`` opens; ``hskd cache`` lists and clears the copies.
        work: the work folder.
        progress: is told how many files are fetched.

    Raises:
        HskdError: nothing is there, it cannot be reached, or the disk is too full.
        CorruptionError: a file is not what was published; it is not kept.
    """
    place = Place(url)
    return _cached(place, remote_contents(place), work, progress)


def fetch_data(url: str, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """Copy the file or folder of examples at ``url`` into the cache, as :func:`fetch` does, and say where it is.

    A URL whose last part has a dot names a file. Hidden files of a folder are left out.

    Raises:
        HskdError: nothing is there, it cannot be reached, or the disk is too full.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    is_file = "." in name and not parent.endswith(":/")
    place = Place(parent if is_file else url)
    contents = data_contents(place, name if is_file else None)
    folder = _cached(place, contents, work, progress)
    return folder / name if is_file else folder


def _cached(place: Place, contents: Contents, work: Path, progress: Progress) -> Path:
    """A whole copy of ``contents`` in the cache."""
    folder = ArtifactFolders(work).folder(CACHE, {"url": place.url, "content": contents.fingerprint})
    try:
        if folder.is_dir() and (_lacks(contents, folder) or not _has_manifest(contents, folder)):
            with FileLock(lock_path(folder)):
                _fill(place, contents, folder, progress)
    except OSError as error:
        raise HskdError(f"{folder}: cannot be read or written ({error.strerror or error}).") from error
    return build(folder, lambda partial: _fill(place, contents, partial, progress))


def pull(url: str, folder: Path, progress: Progress = _SILENT) -> Path:
    """Copy the store, teacher, student or trial at ``url`` into ``folder``; a killed copy goes on.

    Raises:
        HskdError: see :func:`fetch`.
        CorruptionError: see :func:`fetch`.
        MismatchError: ``folder`` holds something else, or a copy that is damaged.
    """
    place = Place(url)
    contents = remote_contents(place)
    copied = False

    def builder(partial: Path) -> None:
        nonlocal copied
        note = partial / UPLOAD
        holds = "the beginning of something else than what is at that URL"
        # Hidden files are what a killed copy was writing, perhaps the note itself.
        if not note.is_file() and any(not path.name.startswith(".") for path in partial.iterdir()):
            raise MismatchError(f"{partial}: holds {holds}. Choose another folder, or delete that one.")
        claim(note, contents.fingerprint, holds)
        _fill(place, contents, partial, progress)
        copied = True

    build(folder, builder)
    try:
        if not copied:
            _require_copy(contents, folder, place)
            progress.say(f"{folder} is there already")
        # Last of all: a folder of files without it would look like something else to a run that goes on.
        (folder / UPLOAD).unlink(missing_ok=True)
    except OSError as error:
        raise HskdError(f"{folder}: cannot be read or written ({error.strerror or error}).") from error
    return folder


def _require_copy(contents: Contents, folder: Path, place: Place) -> None:
    """Refuse a folder that is not a whole copy of what is at ``place``."""
    known = contents.index is not None
    if _lacks(contents, folder) or (known and local_contents(folder).fingerprint != contents.fingerprint):
        raise MismatchError(
            f"{folder}: holds something else than {place.url}, or a damaged copy of it; choose another folder, or "
            "delete that one and run the same command again."
        )


def publish(folder: Path, url: str, progress: Progress = _SILENT) -> None:
    """Copy the store, teacher, student or finished trial in ``folder`` to ``url``.

    What says that all is there is written last, so nobody reads half of it. Files that are there already in the right
    size are not uploaded again, so a killed upload goes on.

    Raises:
        HskdError: ``folder`` is nothing of the kind, other files lie at ``url``, or it cannot be written.
        MismatchError: another artifact, or the beginning of one, lies at ``url``.
        CorruptionError: a shard in ``folder`` is not what was written there.
    """
    contents = local_contents(folder)
    assert contents.index is not None
    place = Place(url)
    plan = json.dumps({"upload": contents.fingerprint}).encode()
    claim_there = place.read(UPLOAD)
    # An upload of this very artifact that was killed: the file that says that all is there may be half written.
    there = None if claim_there == plan else finished_contents(place)
    if there is None:
        _claim_place(place, plan, claim_there)
    elif there.fingerprint != contents.fingerprint:
        raise MismatchError(f"{place.url}: holds something else than {folder}; choose another URL, or delete it there.")
    missing = [file for file in contents.files if place.size(file.name) != file.bytes]
    if there is None or missing:
        progress.begin(f"push to {place.url}", len(missing))
    else:
        progress.say(f"{place.url} is there already")
    for file in missing:
        if file_sha256(folder / file.name) != file.sha256:
            raise CorruptionError(f"{folder / file.name}: is not what was written there; it was not uploaded.")
        place.put(folder / file.name, file.name)
        progress.advance()
    if there is None:
        place.write(*contents.index)
    place.remove(UPLOAD)


def contents_of(url: str) -> Contents:
    """What lies at ``url``, without fetching it.

    Raises:
        HskdError: nothing is there, or it cannot be reached.
        CorruptionError: what says so is damaged.
    """
    return remote_contents(Place(url))


def verify(url: str, progress: Progress = _SILENT) -> Contents:
    """Read back everything at ``url`` and compare it with its checksums; nothing is kept.

    Returns:
        What is there.

    Raises:
        HskdError: nothing is there, it cannot be reached, or it has no checksums.
        CorruptionError: names the first file that is not what was published.
    """
    place = Place(url)
    contents = remote_contents(place)
    if contents.index is None:
        raise HskdError(f"{place.url}: has no {CHECKSUMS} to compare with: it was not published by hskd push.")
    progress.begin(f"verify {place.url}", len(contents.files))
    for file in contents.files:
        for _ in _checked(place, file):
            pass
        progress.advance()
    return contents


def _claim_place(place: Place, plan: bytes, recorded: bytes | None) -> None:
    """Note at ``place`` what is being uploaded, unless the note ``recorded`` there says so."""
    if recorded == plan:
        return
    # Where a file is not written whole or not at all, a kill may leave the beginning of the note, and nothing else.
    begun = recorded is not None and plan.startswith(recorded) and set(place.listing()) == {UPLOAD}
    if recorded is not None and not begun:
        raise MismatchError(
            f"{place.url}: holds the beginning of another upload; choose another URL, or delete it there."
        )
    if recorded is None and not place.is_empty():
        raise HskdError(f"{place.url}: other files lie there; choose another URL, or delete them.")
    place.write(UPLOAD, plan)


def _has_manifest(contents: Contents, folder: Path) -> bool:
    """Whether the manifest of a store in ``folder`` has the bytes that it should have."""
    if contents.manifest is None or contents.index is None:
        return True
    path = folder / contents.index[0]
    return path.is_file() and not path.is_symlink() and path.read_bytes() == contents.index[1]


def _lacks(contents: Contents, folder: Path) -> bool:
    index = contents.manifest is not None and contents.index is not None and not (folder / contents.index[0]).is_file()
    return index or bool(contents.missing(folder))


def _fill(place: Place, contents: Contents, folder: Path, progress: Progress) -> None:
    """Fetch what ``folder`` lacks; a store's manifest last."""
    names = {file.name for file in contents.files}
    for leftover in folder.rglob(".*"):  # what a killed fetch was writing
        if leftover.is_file() and leftover.relative_to(folder).as_posix() not in names:
            leftover.unlink()
    missing = contents.missing(folder)
    needed = sum(file.bytes or 0 for file in missing)
    progress.say(require_space(folder, needed, f"the copy of {place.url}"))
    progress.begin(f"fetch {place.url}", len(missing))
    for file in missing:
        for parent in (folder / file.name).relative_to(folder).parents:
            if parent.parts and (folder / parent).is_symlink():
                raise HskdError(f"{folder / parent}: is a link, and {file.name} would be written elsewhere; delete it.")
        with atomic_path(folder / file.name) as temporary, temporary.open("wb") as copy:
            for block in _checked(place, file):
                copy.write(block)
        progress.advance()
    if contents.manifest is not None and contents.index is not None:
        name, content = contents.index
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)


def _checked(place: Place, file: File) -> Iterator[bytes]:
    """A remote file's blocks; the last one is followed by a comparison with what is known of the file.

    Raises:
        CorruptionError: its size or checksum is another.
    """
    digest, size = hashlib.sha256(), 0
    # One byte more than there should be tells that there are more; a file without an end is not read to its end.
    for block in place.blocks(file.name, None if file.bytes is None else file.bytes + 1):
        digest.update(block)
        size += len(block)
        yield block
    where, checksum = place / file.name, digest.hexdigest()
    advice = "the file is damaged there; delete it there, and push again from where it came"
    if file.bytes is not None and size != file.bytes:
        many = size if size < file.bytes else f"more than {file.bytes}"
        raise CorruptionError(f"{where}: {many} bytes where {file.bytes} were written: {advice}.")
    if file.sha256 is not None and checksum != file.sha256:
        raise CorruptionError(
            f"{where}: its SHA-256 is {checksum[:16]}... where {file.sha256[:16]}... was written: {advice}."
        )
