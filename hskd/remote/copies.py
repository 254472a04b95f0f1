"""Copy artifacts from and to URLs. Copies are verified, resumable and atomic."""

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
"""Kind of the artifacts that are cached copies of remote files."""
WORK = Path("work")
_SILENT = Silent()


def local_copy(place: str | Path, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """Return a local path: the result of :func:`fetch` if ``place`` is a URL, otherwise ``place`` itself."""
    return fetch(place, work, progress) if isinstance(place, str) and is_url(place) else Path(with_home(str(place)))


def fetch(url: str, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """Copy the store, teacher, student or trial at ``url`` into the cache, and return the local folder.

    The copy lies in ``<work>/remote``, under a key of the URL and the remote contents. If the contents change, another
    copy is made. Files that are already there are verified once per process, and fetched again only if they are
    damaged. A killed fetch therefore resumes, and a damaged copy is repaired.

    Args:
        url: any URL that ``fsspec`` opens. ``hskd cache`` lists and clears the copies.
        work: the work folder.
        progress: receives the number of fetched files.

    Raises:
        HskdError: nothing is at the URL, it cannot be reached, or the disk is too full.
        CorruptionError: a fetched file does not match its checksum. It is not kept.
    """
    place = Place(url)
    return _cached(place, remote_contents(place), work, progress)


def fetch_data(url: str, work: Path = WORK, progress: Progress = _SILENT) -> Path:
    """Copy the file or folder of examples at ``url`` into the cache, as :func:`fetch` does, and return its local path.

    If the last part of the URL contains a dot, it names a file. Hidden files of a folder are left out.

    Raises:
        HskdError: nothing is at the URL, it cannot be reached, or the disk is too full.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    is_file = "." in name and not parent.endswith(":/")
    place = Place(parent if is_file else url)
    contents = data_contents(place, name if is_file else None)
    folder = _cached(place, contents, work, progress)
    return folder / name if is_file else folder


def _cached(place: Place, contents: Contents, work: Path, progress: Progress) -> Path:
    """Return the cache folder with a complete copy of ``contents``, after fetching what is missing."""
    folder = ArtifactFolders(work).folder(CACHE, {"url": place.url, "content": contents.fingerprint})
    try:
        if folder.is_dir() and (_lacks(contents, folder) or not _has_manifest(contents, folder)):
            with FileLock(lock_path(folder)):
                _fill(place, contents, folder, progress)
    except OSError as error:
        raise HskdError(f"{folder}: cannot be read or written ({error.strerror or error}).") from error
    return build(folder, lambda partial: _fill(place, contents, partial, progress))


def pull(url: str, folder: Path, progress: Progress = _SILENT) -> Path:
    """Copy the store, teacher, student or trial at ``url`` into ``folder``, and return it. A killed copy resumes.

    Raises:
        HskdError: see :func:`fetch`.
        CorruptionError: see :func:`fetch`.
        MismatchError: ``folder`` holds something else, or a damaged copy.
    """
    place = Place(url)
    contents = remote_contents(place)
    copied = False

    def builder(partial: Path) -> None:
        nonlocal copied
        note = partial / UPLOAD
        holds = "the beginning of something else than the artifact at that URL"
        # Hidden files are temporary files of a killed copy, possibly of the note itself.
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
        # The note must go last: a resumed run would not recognise an unfinished copy without it.
        (folder / UPLOAD).unlink(missing_ok=True)
    except OSError as error:
        raise HskdError(f"{folder}: cannot be read or written ({error.strerror or error}).") from error
    return folder


def _require_copy(contents: Contents, folder: Path, place: Place) -> None:
    """Check that ``folder`` is a complete copy of ``contents``.

    Raises:
        MismatchError: it holds something else, or a damaged copy.
    """
    known = contents.index is not None
    if _lacks(contents, folder) or (known and local_contents(folder).fingerprint != contents.fingerprint):
        raise MismatchError(
            f"{folder}: holds something else than {place.url}, or a damaged copy of it; choose another folder, or "
            "delete that one and run the same command again."
        )


def publish(folder: Path, url: str, progress: Progress = _SILENT) -> None:
    """Copy the store, teacher, student or finished trial in ``folder`` to ``url``.

    The index, which lists all files, is written last, so that readers never see an incomplete artifact. A killed
    upload resumes: files that are already there with the right size are not uploaded again.

    Raises:
        HskdError: ``folder`` is not such an artifact, other files lie at ``url``, or ``url`` cannot be written.
        MismatchError: ``url`` holds another artifact, or the beginning of another upload.
        CorruptionError: a file in ``folder`` is damaged.
    """
    contents = local_contents(folder)
    assert contents.index is not None
    place = Place(url)
    plan = json.dumps({"upload": contents.fingerprint}).encode()
    claim_there = place.read(UPLOAD)
    # After a killed upload of this same artifact, the index may be incomplete, so it must not be read.
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
    """Return the contents of the artifact at ``url``, without fetching its files.

    Raises:
        HskdError: nothing is at the URL, or it cannot be reached.
        CorruptionError: the manifest or the list of checksums is damaged.
    """
    return remote_contents(Place(url))


def verify(url: str, progress: Progress = _SILENT) -> Contents:
    """Read every file at ``url`` and verify its checksum, without keeping a copy.

    Returns:
        The contents of the artifact.

    Raises:
        HskdError: nothing is at the URL, it cannot be reached, or it has no checksums.
        CorruptionError: names the first file that does not match its checksum.
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
    """Write the marker ``plan`` of an upload to ``place``, unless the marker ``recorded`` there is the same.

    Raises:
        HskdError: other files lie at ``place``.
        MismatchError: another upload was begun there.
    """
    if recorded == plan:
        return
    # On file systems without atomic writes, a killed upload may leave only the beginning of the marker.
    begun = recorded is not None and plan.startswith(recorded) and set(place.listing()) == {UPLOAD}
    if recorded is not None and not begun:
        raise MismatchError(
            f"{place.url}: holds the beginning of another upload; choose another URL, or delete it there."
        )
    if recorded is None and not place.is_empty():
        raise HskdError(f"{place.url}: other files lie there; choose another URL, or delete them.")
    place.write(UPLOAD, plan)


def _has_manifest(contents: Contents, folder: Path) -> bool:
    """Return whether the manifest of the store in ``folder`` has the right bytes; True for other artifacts."""
    if contents.manifest is None or contents.index is None:
        return True
    path = folder / contents.index[0]
    return path.is_file() and not path.is_symlink() and path.read_bytes() == contents.index[1]


def _lacks(contents: Contents, folder: Path) -> bool:
    index = contents.manifest is not None and contents.index is not None and not (folder / contents.index[0]).is_file()
    return index or bool(contents.missing(folder))


def _fill(place: Place, contents: Contents, folder: Path, progress: Progress) -> None:
    """Fetch the files that ``folder`` lacks, and a store's manifest last."""
    names = {file.name for file in contents.files}
    for leftover in folder.rglob(".*"):  # temporary files of a killed fetch
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
    """Yield the blocks of a remote file, then verify its size and checksum as far as they are known.

    Raises:
        CorruptionError: the size or the checksum does not match.
    """
    digest, size = hashlib.sha256(), 0
    # One byte beyond the expected size shows that the file is too long, without reading an endless file.
    for block in place.blocks(file.name, None if file.bytes is None else file.bytes + 1):
        digest.update(block)
        size += len(block)
        yield block
    where, checksum = place / file.name, digest.hexdigest()
    advice = "the remote file is damaged; delete it there, and push again from the original folder"
    if file.bytes is not None and size != file.bytes:
        many = size if size < file.bytes else f"more than {file.bytes}"
        raise CorruptionError(f"{where}: {many} bytes where {file.bytes} were written: {advice}.")
    if file.sha256 is not None and checksum != file.sha256:
        raise CorruptionError(
            f"{where}: its SHA-256 is {checksum[:16]}... where {file.sha256[:16]}... was written: {advice}."
        )
