"""Extend a store: reuse the shards of an existing store, and add shards for the examples that it lacks."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hskd.errors import CorruptionError, MismatchError
from hskd.hashing import file_sha256
from hskd.io import atomic_path
from hskd.store.reader import Store
from hskd.store.writer import whole_entry, write_note
from hskd.store_format.layout import ArraySpec, plan_shards
from hskd.store_format.manifest import Manifest
from hskd.tasks import TokenizedSplit


def in_order_of(old: Store, split: TokenizedSplit) -> TokenizedSplit:
    """Return ``split`` reordered to extend ``old``: first the examples of ``old`` in its order, then the others.

    Raises:
        MismatchError: ``old`` is not a superset, or holds examples that are not in ``split``.
    """
    if old.manifest.kind != "superset":
        raise MismatchError(f"{old.folder}: is a derived store; extend its superset, then derive the spec again.")
    order = np.argsort(split.ids)
    place = np.minimum(np.searchsorted(split.ids[order], old.example_ids), len(split) - 1)
    old_rows = order[place]
    missing = int((split.ids[old_rows] != old.example_ids).sum())
    if missing:
        raise MismatchError(
            f"{old.folder}: {missing} of its {len(old)} examples are not among the {len(split)} to extract, so it "
            "cannot be extended; extract data that includes all its examples, or leave out --extend."
        )
    rest = np.setdiff1d(np.arange(len(split)), old_rows)
    rows = np.concatenate([old_rows, rest])
    return split if np.array_equal(rows, np.arange(len(split))) else split.take(rows)


def require_extends(old: Store, plan: Manifest, split: TokenizedSplit) -> None:
    """Check that the new store has the same teacher, contents and settings as the store that it extends.

    Args:
        old: the existing store.
        plan: the manifest of the new store, without its shards.
        split: the examples of the new store, those of ``old`` first.

    Raises:
        MismatchError: names what differs, both values, and what to do.
    """
    manifest, planned_origin = old.manifest, plan.origin
    manifest.require(
        old.folder,
        teacher=planned_origin.teacher,
        tokenizer=planned_origin.tokenizer,
        task=planned_origin.task,
        head=planned_origin.head,
        label_names=planned_origin.label_names,
        max_length=planned_origin.max_length,
    )
    aligned_with = [
        None if origin.alignment is None else origin.alignment.teacher_tokenizer
        for origin in (manifest.origin, planned_origin)
    ]
    if aligned_with[0] != aligned_with[1]:
        raise MismatchError(
            f"{old.folder}: cannot be extended: the tokenizer of its teacher is {aligned_with[0] or 'its own'}, and "
            f"{aligned_with[1] or 'its own'} is needed; extract without --extend."
        )
    for what, has, asked in (
        ("teacher was run in", manifest.origin.dtype, planned_origin.dtype),
        ("layers are", list(manifest.layers), list(plan.layers)),
        ("attention layers are", list(manifest.attention_layers), list(plan.attention_layers)),
        ("gradient layers are", list(manifest.gradient_layers), list(plan.gradient_layers)),
        ("layers of attention received are", list(manifest.received_layers), list(plan.received_layers)),
        ("losses of gold labels are", bool(manifest.gold_labels), bool(plan.gold_labels)),
        ("precision is", manifest.precision, plan.precision),
    ):
        if has != asked:
            raise MismatchError(
                f"{old.folder}: cannot be extended: its {what} {has}, and {asked} is asked for; ask for what it has, "
                "or extract without --extend."
            )
    held_examples = split.take(np.arange(len(old)))
    old.require_tokens(held_examples.tokens)
    old.require_words(held_examples)


def plan_parts(
    arrays: Mapping[str, ArraySpec], split: TokenizedSplit, shard_bytes: int, old: Store | None = None
) -> list[range]:
    """Return the range of examples of each shard.

    The shards of ``old`` come first, then those of the task's own examples, then those of augmented examples. No shard
    mixes real and augmented examples. The shards of a store of the real examples are therefore the first
    shards of this one.
    """
    spans: list[range] = []
    if old is not None:
        ends = np.cumsum([shard.examples for shard in old.manifest.shards])
        spans = [range(int(a), int(b)) for a, b in itertools.pairwise([0, *ends])]
    begin = spans[-1].stop if spans else 0
    counts = np.diff(split.with_targets.offsets)
    cuts = [begin, *([split.real] if split.real is not None and split.real > begin else []), len(split)]
    for start, stop in itertools.pairwise(cuts):
        if start < stop:
            spans += [
                range(start + span.start, start + span.stop)
                for span in plan_shards(arrays, split.lengths[start:stop], counts[start:stop], shard_bytes)
            ]
    return spans


def place_shards(old: Store, folder: Path) -> None:
    """Put the shards of ``old`` into ``folder``: as hard links if possible, otherwise as copies.

    Raises:
        CorruptionError: a shard does not match its checksum.
        HskdError: the disk is full.
    """
    for entry in old.manifest.shards:
        source, target = old.folder / entry.file, folder / entry.file
        if whole_entry(target) == entry:
            continue
        if file_sha256(source) != entry.sha256:
            raise CorruptionError(
                f"{source}: its SHA-256 is not the one in the manifest: the file is damaged; extract without --extend."
            )
        target.unlink(missing_ok=True)
        write_note(folder, entry)
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without hard links
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
