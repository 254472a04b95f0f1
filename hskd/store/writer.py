"""Writing shards: each appears whole or not at all, and a second run goes on after the last whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hskd import processes
from hskd.artifacts import build, claim
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.io import atomic_path, format_bytes, require_space
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
    """Write the store that ``plan`` describes into ``folder``, shard by shard, resuming what a killed run left.

    Several processes deal the shards out among them.

    Args:
        folder: where the finished store will lie; until then it is ``<folder>.partial``.
        plan: the manifest without its shards.
        ranges: the examples of each shard.
        needed_bytes: size of the finished store, checked against the free space before anything is written.
        make_shard: computes the arrays of a range of examples; not called for shards that are there already.
        report: receives one line saying what is needed and what is free.
        place: puts into the unfinished folder what need not or must not be computed by shards: shards that another
            store has, or the file that holds what there is once.

    Returns:
        The manifest of the finished store.

    Raises:
        HskdError: the disk is too full or cannot be written.
        MismatchError: the folder holds a store, or the beginning of one, with another plan.
    """
    if processes.by_main((folder / MANIFEST).is_file):
        finished = _finished(folder, plan)
        report(f"{folder} is there already ({format_bytes(finished.bytes)})")
        return finished
    if processes.by_main(folder.exists):
        raise HskdError(f"{folder}: exists and is not a store; choose another folder.")

    def begin(partial: Path) -> None:
        claim(
            partial / PLAN,
            [plan.plan, [len(span) for span in ranges]],
            "the beginning of another store (of another teacher, data set or selection, or in shards of another size)",
        )
        for leftover in partial.glob(".*"):  # what a killed run was writing
            leftover.unlink()
        place(partial)
        done = sum(path.stat().st_size for path in partial.glob("shard-*.safetensors"))
        what = "this store" if not done else f"the rest of this store ({format_bytes(done)} are there)"
        report(require_space(partial, needed_bytes - done, what))

    def end(partial: Path, shards: dict[int, ShardEntry]) -> None:
        entries = tuple(shards[i] for i in range(len(ranges)))
        once = partial / CODEC
        codec = None
        if once.is_file():
            codec = FileEntry(file=CODEC, bytes=once.stat().st_size, sha256=file_sha256(once))
        plan.model_copy(update={"shards": entries, "codec": codec}).write(partial)
        (partial / PLAN).unlink()

    def builder(partial: Path) -> None:
        processes.by_main(lambda: begin(partial))
        mine = {
            i: _write_shard(partial / shard_name(i), ranges[i], make_shard)
            for i in range(processes.rank(), len(ranges), processes.count())
        }
        shards = {i: entry for part in processes.gathered(mine) for i, entry in part.items()}
        processes.by_main(lambda: end(partial, shards))

    build(folder, builder, together=True)
    return _finished(folder, plan)  # which another process may have written while we waited


def _finished(folder: Path, plan: Manifest) -> Manifest:
    finished = Manifest.read(folder)
    if finished.plan != plan.plan:
        raise MismatchError(f"{folder}: holds another store already; choose another folder or delete that one.")
    return finished


def _write_shard(path: Path, span: range, make_shard: Callable[[range], Shard]) -> ShardEntry:
    if not path.is_file():
        with atomic_path(path) as temporary:
            try:
                save_file(make_shard(span), temporary)
            except SafetensorError as error:  # how safetensors reports a full disk
                raise OSError(None, str(error)) from error
    try:
        with safe_open(path, framework="pt") as shard:
            tokens = shard.get_slice("token_ids").get_shape()[0]
            kept = shard.get_slice("values").get_shape()[0]
    except SafetensorError as error:
        raise CorruptionError(
            f"{path}: not a whole shard ({error}). Delete it and run the same command again."
        ) from None
    return ShardEntry(
        file=path.name,
        examples=len(span),
        tokens=tokens,
        kept=kept,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def fits(shard: Shard) -> bool:
    """Whether no value of a shard overflowed in its precision."""
    values = shard["values"]
    return not values.is_floating_point() or bool(torch.isfinite(values.sum(dtype=torch.float32)))
