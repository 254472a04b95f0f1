"""Damage, drawn from a seed: what a disk, a copy or an editor does to the files of any folder.

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
"""What a JSON value is replaced by."""


def times(short: int) -> int:
    """``short``, multiplied by ``HSKD_TORTURE`` (1 where it is not set)."""
    return max(1, round(short * float(os.environ.get("HSKD_TORTURE", "1"))))


# ---- bytes


def _flip(content: bytearray, rng: random.Random) -> None:
    """One to sixteen bits; often near the beginning, where the header of a file lies."""
    end = min(len(content), 4096) if rng.random() < 0.4 else len(content)
    for _ in range(rng.choice([1, 1, 1, 2, 16])):
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)


def _flip_signs(content: bytearray, rng: random.Random) -> None:
    """The sign bits of a run of numbers."""
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
    """What git leaves in place of a file whose contents git-lfs has not fetched."""
    oid = hashlib.sha256(content).hexdigest()
    content[:] = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def _page_of_html(content: bytearray, rng: random.Random) -> None:
    """What a proxy answers in place of a file."""
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
    """Every (container, key) within a JSON value."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value that differs in one place: replaced, removed, repeated, added or nested too deep."""
    value = copy.deepcopy(value)
    found = list(places(value))
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
    """``value`` as JSON, however deep; bytes, since lone surrogates are escaped."""
    depth, inner = 0, value
    try:
        return json.dumps(value, indent=2).encode()
    except RecursionError:  # nested a thousand deep: written without json
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
    """A copy of the file under a name like its own, as file managers and counters make it."""
    digits = "".join(character for character in path.stem if character.isdigit())
    name = f"{path.stem} (1){path.suffix}"
    if digits and rng.random() < 0.5:
        name = path.name.replace(digits, str(int(digits) + 1).zfill(len(digits)))
    if path.with_name(name).exists():
        return False
    shutil.copyfile(path, path.with_name(name))
    return True


def _swap(path: Path, rng: random.Random) -> bool:
    """Change places with another file of the same ending."""
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
"""Mutations of a file as a whole; each says whether it could be done."""

KINDS = (*BYTES, *FILES)


@dataclass(frozen=True)
class Mutation:
    """What was done to which file."""

    kind: str
    file: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}"


def files_of(folder: Path) -> list[Path]:
    """The files of a folder and of those within it, but for locks, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def _fingerprint(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")]


def mutate(folder: Path, rng: random.Random, kinds: Sequence[str] = KINDS) -> Mutation:
    """Damage one file of ``folder``, or two, and say how; the folder is another than before."""
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
    """What became of so many mutations.

    Attributes:
        refused: kinds of those that raised an hskd error.
        harmless: kinds of those after which everything reads as before.
        wrong: the others, in words: other values in silence, a raw exception, or too long.
    """

    refused: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there were."""
        return self.refused.total() + self.harmless.total() + len(self.wrong)


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal to the bit: arrays, tensors, and containers and data classes of them."""
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
    """Damage copies of ``folder`` ``count`` times, one mutation each, and see what ``read`` makes of them.

    Args:
        folder: stays as it is.
        scratch: where a copy, ``<scratch>/<name of folder>``, is damaged.
        read: reads everything in the folder that it is given.
        count: mutations.
        seed: decides which; mutation ``i`` is the same whatever ``count`` is.
        kinds: which kinds of mutation.
        equal: whether two results of ``read`` are the same.
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
