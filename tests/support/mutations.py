"""Random damage to the files of a folder, drawn from a seed, as disks, copies or editors cause it.

    outcome = attack(folder, tmp_path, read, count=times(100), seed=0)
    assert not outcome.wrong, outcome

``read`` reads everything in a folder. After each mutation it must raise an :class:`HskdError` or return what it
returned before. The environment variable ``HSKD_TORTURE`` multiplies the number of mutations.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hskd.errors import HskdError

T = TypeVar("T")

ABSURD: tuple[Any, ...] = (
    -1, 0, 1, 2, 255, 256, 65_536, 2**31, 2**63, 10**12, -(10**12), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "7", "../x", "\ud800", "x" * 10_000, None, True, False, [], {}, [[]], {"a": {}}, [1] * 1000,
)  # fmt: skip
"""Values that replace a JSON value."""


def times(short: int) -> int:
    """Return ``short`` multiplied by ``HSKD_TORTURE`` (1 where it is not set)."""
    return max(1, round(short * float(os.environ.get("HSKD_TORTURE", "1"))))


# ---- bytes


def _flip(content: bytearray, rng: random.Random) -> None:
    """Flip one to sixteen bits, often near the beginning, where a file's header is."""
    end = min(len(content), 4096) if rng.random() < 0.4 else len(content)
    for _ in range(rng.choice([1, 1, 1, 2, 16])):
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)


def _flip_signs(content: bytearray, rng: random.Random) -> None:
    """Flip the sign bits of a run of numbers."""
    start, step = rng.randrange(len(content)), rng.choice([2, 4])
    for place in range(start - start % step + step - 1, min(len(content), start + 64 * step), step):
        content[place] ^= 0x80


def _truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.choice([len(content) - 1, rng.randrange(len(content))]) :]


def _extend(content: bytearray, rng: random.Random) -> None:
    content += rng.choice([b"\0", b"\n}", rng.randbytes(rng.randint(1, 5000))])


def _zero(content: bytearray, rng: random.Random) -> None:
    size = rng.choice([1, 64, 512, 4096])
    start = rng.randrange(len(content)) // size * size
    end = min(start + size, len(content))
    content[start:end] = bytes(end - start)


def _empty(content: bytearray, rng: random.Random) -> None:
    del content[:]


def _lfs_pointer(content: bytearray, rng: random.Random) -> None:
    """Write a git-lfs pointer, which git leaves where the contents were not fetched."""
    oid = hashlib.sha256(content).hexdigest()
    content[:] = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def _page_of_html(content: bytearray, rng: random.Random) -> None:
    """Write a page of HTML, which a proxy may return in place of a file."""
    content[:] = b"<!DOCTYPE html>\n<html><head><title>302 Found</title></head><body></body></html>\n"


BYTES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flip": _flip,
    "flip signs": _flip_signs,
    "truncate": _truncate,
    "extend": _extend,
    "zero": _zero,
    "empty": _empty,
    "lfs pointer": _lfs_pointer,
    "html": _page_of_html,
}
"""Mutations of one file's bytes, in place."""


# ---- JSON


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) within a JSON value."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutated_json(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one change: a value replaced, removed, repeated, added or nested too deep."""
    try:
        value = copy.deepcopy(value)
        found = list(places(value))
    except RecursionError:  # already nested too deep
        return value
    if not found:
        return rng.choice(ABSURD)
    numbers = [
        (box, key) for box, key in found if isinstance(box[key], (int, float)) and not isinstance(box[key], bool)
    ]
    box, key = rng.choice(numbers if numbers and rng.random() < 0.6 else found)
    how = rng.choice(["replace"] * 6 + ["remove", "repeat", "add", "nest", "shift"])
    if how == "replace":
        box[key] = copy.deepcopy(rng.choice(ABSURD))
    elif how == "remove":
        del box[key]
    elif how == "repeat":
        if isinstance(box, list):
            box.append(box[key])
        else:
            box[f"{key} "] = box[key]
    elif how == "add":
        if isinstance(box, dict):
            box["surprise"] = rng.choice(ABSURD)
        else:
            box.insert(0, rng.choice(ABSURD))
    elif how == "nest":
        for _ in range(rng.choice([1, 50, 1000])):
            box[key] = [box[key]]
    elif isinstance(box[key], (int, float)):
        box[key] += rng.choice([-1, 1])
    else:
        box[key] = None
    return value


def json_text(value: Any) -> bytes:
    """Return ``value`` as JSON of any depth, in bytes, because lone surrogates are escaped."""
    depth, inner = 0, value
    try:
        return json.dumps(value, indent=2).encode()
    except RecursionError:  # nested a thousand deep, so written without json
        while isinstance(inner, list) and len(inner) == 1:
            depth, inner = depth + 1, inner[0]
        return b"[" * 100_000 if not depth else b"[" * depth + b"1" + b"]" * depth


def _edit_json(path: Path, rng: random.Random) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    path.write_bytes(json_text(mutated_json(value, rng)))
    return True


# ---- files


def _delete(path: Path, rng: random.Random) -> bool:
    path.unlink()
    return True


def _duplicate(path: Path, rng: random.Random) -> bool:
    """Copy the file under a similar name, as file managers and counters do."""
    digits = "".join(character for character in path.stem if character.isdigit())
    name = f"{path.stem} (1){path.suffix}"
    if digits and rng.random() < 0.5:
        name = path.name.replace(digits, str(int(digits) + 1).zfill(len(digits)))
    if path.with_name(name).exists():
        return False
    shutil.copyfile(path, path.with_name(name))
    return True


def _swap(path: Path, rng: random.Random) -> bool:
    """Swap the file with another file of the same ending."""
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other.suffix == path.suffix]
    others.remove(path)
    if not others:
        return False
    other = rng.choice(others)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return True


def _directory(path: Path, rng: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    return True


FILES: dict[str, Callable[[Path, random.Random], bool]] = {
    "edit json": _edit_json,
    "delete": _delete,
    "duplicate": _duplicate,
    "swap": _swap,
    "directory": _directory,
}
"""Mutations of a whole file; each returns whether it was possible."""

KINDS = (*BYTES, *FILES)


@dataclass(frozen=True)
class Mutation:
    """The kind of a mutation and its file."""

    kind: str
    file: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}"


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder, subfolders included and locks excluded, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def _fingerprint(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")]


def mutate(folder: Path, rng: random.Random, kinds: Sequence[str] = KINDS) -> Mutation:
    """Damage one or two files of ``folder``, and return a description. The folder always changes."""
    before = _fingerprint(folder)
    while True:
        kind = rng.choice(kinds)
        files = [path for path in files_of(folder) if kind != "edit json" or path.suffix == ".json"]
        if not files:
            continue
        path = rng.choice(files)
        if kind in FILES:
            done = FILES[kind](path, rng)
        else:
            content = bytearray(path.read_bytes())
            done = bool(content)
            if done:
                BYTES[kind](content, rng)
                path.write_bytes(content)
        if done and _fingerprint(folder) != before:
            return Mutation(kind, str(path.relative_to(folder)))


# ---- attack


@dataclass
class Outcome:
    """The outcome of an attack.

    Attributes:
        refused: kinds of the mutations that raised an hskd error.
        harmless: kinds of the mutations after which everything reads as before.
        wrong: the other mutations, in words: silently other values, a raw exception, or too slow.
    """

    refused: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of mutations."""
        return self.refused.total() + self.harmless.total() + len(self.wrong)


def same(a: Any, b: Any) -> bool:
    """Return whether two results are equal to the bit: arrays, tensors, and containers and data classes of them."""
    if isinstance(a, (np.ndarray, torch.Tensor)):
        a, b = np.asarray(a), np.asarray(b)
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def attack(
    folder: Path,
    scratch: Path,
    read: Callable[[Path], T],
    count: int,
    seed: int = 0,
    *,
    kinds: Sequence[str] = KINDS,
    equal: Callable[[T, T], bool] = same,
    seconds: float = 10,
) -> Outcome:
    """Damage copies of ``folder`` ``count`` times, with one mutation each, and check that ``read`` handles them.

    Args:
        folder: remains unchanged.
        scratch: folder of the damaged copy, ``<scratch>/<name of folder>``.
        read: reads everything in a folder.
        count: number of mutations.
        seed: of the mutations; mutation ``i`` does not depend on ``count``.
        kinds: kinds of mutations to use.
        equal: returns whether two results of ``read`` are the same.
        seconds: a read that takes longer is wrong.
    """
    right, outcome = read(folder), Outcome()
    target = scratch / folder.name
    for i in range(count):
        shutil.copytree(folder, target)
        mutation = mutate(target, random.Random(f"{seed} {i}"), kinds)
        start = time.monotonic()
        try:
            found = read(target)
        except HskdError as error:
            outcome.refused[mutation.kind] += 1
            if len(str(error)) > 2000:
                outcome.wrong.append(f"{i}: {mutation}: a message of {len(str(error))} characters")
        except Exception as error:
            outcome.wrong.append(f"{i}: {mutation}: {type(error).__name__}: {error}"[:300])
        else:
            if equal(found, right):
                outcome.harmless[mutation.kind] += 1
            else:
                outcome.wrong.append(f"{i}: {mutation}: other values, in silence")
        if time.monotonic() - start > seconds:
            outcome.wrong.append(f"{i}: {mutation}: took {time.monotonic() - start:.1f} s")
        shutil.rmtree(target)
    return outcome
