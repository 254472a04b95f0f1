"""Write a store shard by shard. Each shard is written atomically, and a killed run resumes after the last one.

The checksum of a shard is computed when it is written. Until the store is finished, it lies in a note file beside the
shard. A resumed run computes a shard again if it does not match its note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from hskd import processes
from hskd.artifacts import build, claim
from hskd.errors import HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.io import atomic_path, format_bytes, read_json, require_space, write_json
from hskd.store_format.layout import CODEC, MANIFEST, shard_name
from hskd.store_format.manifest import FileEntry, Manifest, ShardEntry

PLAN = "plan.json"

Shard = dict[str, torch.Tensor]


def write_store(
    folder: Path,
    plan: Manifest,
    ranges: Sequence[range],
    needed_bytes: int,
    make_shard: Callable[[range], Shard],
    report: Callable[[str], None] = lambda message: None,
    place: Callable[[Path], None] = lambda partial: None,
) -> Manifest:
    """Write the store that ``plan`` describes into ``folder``, shard by shard, and resume an interrupted run.

    If there are several processes, they share the shards.

    Args:
        folder: where the finished store will lie; until then, it is ``<folder>.partial``.
        plan: the manifest without its shards.
        ranges: the examples of each shard.
        needed_bytes: size of the finished store in bytes. It is compared with the free space before anything is
            written.
        make_shard: computes the arrays of a range of examples. It is not called for shards that exist already.
        report: receives one line with the bytes needed and free.
        place: adds files to the unfinished folder that ``make_shard`` does not compute: shards of another store, or
            the codec.

    Returns:
        The manifest of the finished store.

    Raises:
        HskdError: the disk is too full or cannot be written.
        MismatchError: the folder holds a finished or unfinished store with another plan.
    """
    finished = finished_store(folder, plan, report)
    if finished is not None:
        return finished
    if processes.by_main(folder.exists):
        raise HskdError(f"{folder}: exists and is not a store; choose another folder.")

    def begin(partial: Path) -> None:
        claim(
            partial / PLAN,
            [plan.plan, [len(span) for span in ranges]],
            "the beginning of another store (another teacher, data set or selection, or another shard size)",
        )
        for leftover in partial.glob(".*"):  # temporary files of a killed run
            leftover.unlink()
        _note_again(partial, plan)
        place(partial)
        done = sum(path.stat().st_size for path in partial.glob("shard-*.safetensors"))
        what = "this store" if not done else f"the rest of this store ({format_bytes(done)} exist already)"
        report(require_space(partial, needed_bytes - done, what))

    def end(partial: Path, shards: dict[int, ShardEntry]) -> None:
        entries = tuple(shards[i] for i in range(len(ranges)))
        codec = _placed(partial / CODEC)
        plan.model_copy(update={"shards": entries, "codec": codec}).write(partial)
        for i in range(len(ranges)):
            shard_note(partial / shard_name(i)).unlink()
        shard_note(partial / CODEC).unlink(missing_ok=True)
        (partial / PLAN).unlink()

    def builder(partial: Path) -> None:
        processes.by_main(lambda: begin(partial))
        own_shards = {
            i: _write_shard(partial / shard_name(i), ranges[i], make_shard)
            for i in range(processes.rank(), len(ranges), processes.count())
        }
        shards = {i: entry for part in processes.gathered(own_shards) for i, entry in part.items()}
        processes.by_main(lambda: end(partial, shards))

    build(folder, builder, together=True)
    return _finished(folder, plan)  # Another process may have written the store while this one waited for the lock.


def finished_store(
    folder: Path, plan: Manifest, report: Callable[[str], None] = lambda message: None
) -> Manifest | None:
    """Return the manifest of the finished store in ``folder``; None if there is none.

    Raises:
        MismatchError: the store has another plan.
        HskdError: see :meth:`Manifest.read`.
    """
    if not processes.by_main((folder / MANIFEST).is_file):
        return None
    finished = _finished(folder, plan)
    report(f"{folder} is there already ({format_bytes(finished.bytes)})")
    return finished


def _finished(folder: Path, plan: Manifest) -> Manifest:
    finished = Manifest.read(folder)
    if finished.plan != plan.plan:
        raise MismatchError(f"{folder}: holds another store already; choose another folder or delete that one.")
    return finished


def shard_note(path: Path) -> Path:
    """Return the path of the note that holds a file's manifest entry until the manifest is written."""
    return path.with_name(path.stem.replace("shard", "note") + ".json")


def write_note(folder: Path, entry: ShardEntry) -> None:
    """Write the note of a shard. It must be written before the shard itself."""
    write_json(shard_note(folder / entry.file), entry.model_dump())


def whole_entry(path: Path) -> ShardEntry | None:
    """Return the manifest entry of the shard at ``path``; None if the shard or its note is missing or damaged."""
    try:
        entry = ShardEntry.model_validate(read_json(shard_note(path)))
        whole = path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256
    except (HskdError, ValidationError, OSError):
        return None
    return entry if whole and entry.file == path.name else None


def place_once(partial: Path, save: Callable[[Path], None]) -> None:
    """Write the codec of an unfinished store, unless it is there undamaged.

    Shards encoded with a damaged codec are removed, because the new codec may differ from it in its last bits.

    Args:
        partial: the unfinished folder.
        save: writes the codec to the given path.
    """
    path = partial / CODEC
    if _placed(path) is not None:
        return
    for shard in partial.glob("shard-*.safetensors"):
        shard.unlink()
    with atomic_path(path) as temporary:
        try:
            save(temporary)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(None, str(error)) from error
        entry = FileEntry(file=CODEC, bytes=temporary.stat().st_size, sha256=file_sha256(temporary))
        path.unlink(missing_ok=True)  # The new note would not match the old file.
        write_json(shard_note(path), entry.model_dump())


def _placed(path: Path) -> FileEntry | None:
    """Return the manifest entry of the file at ``path``; None if the file or its note is missing or damaged."""
    try:
        entry = FileEntry.model_validate(read_json(shard_note(path)))
        whole = path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256
    except (HskdError, ValidationError, OSError):
        return None
    return entry if whole else None


def _note_again(partial: Path, plan: Manifest) -> None:
    """Restore the notes from the manifest, for a run that was killed after it had begun to delete its notes."""
    try:
        manifest = _finished(partial, plan)
    except HskdError:
        manifest = plan
    for entry in manifest.shards:
        write_note(partial, entry)
    if manifest.codec is not None:
        write_json(shard_note(partial / CODEC), manifest.codec.model_dump())
    (partial / MANIFEST).unlink(missing_ok=True)


def _write_shard(path: Path, span: range, make_shard: Callable[[range], Shard]) -> ShardEntry:
    entry = whole_entry(path)
    if entry is not None and entry.examples == len(span):
        return entry
    shard = make_shard(span)
    with atomic_path(path) as temporary:
        try:
            save_file(shard, temporary)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(None, str(error)) from error
        entry = ShardEntry(
            file=path.name,
            examples=len(span),
            tokens=len(shard["token_ids"]),
            kept=len(shard["values"]),
            bytes=temporary.stat().st_size,
            sha256=file_sha256(temporary),
        )
        path.unlink(missing_ok=True)  # The new note would not match the old file.
        write_note(path.parent, entry)
    return entry


def misfit(shard: Shard) -> tuple[str, int] | None:
    """Return the name of the first array with a non-finite number, and its first such row; None if all are finite.

    Arrays are checked in the order of their names. A value that overflows its precision is infinite in ``values``, or
    makes the ``scale`` of quantised values infinite.
    """
    for name, array in sorted(shard.items()):
        if array.is_floating_point() and array.numel():
            # aminmax returns NaN if any number is NaN. It is faster than checking each number.
            if all(math.isfinite(float(end)) for end in array.aminmax()):
                continue
            return name, int((~torch.isfinite(array)).flatten(1).any(1).nonzero()[0])
    return None
