"""Fuzzed manifests are rejected with our own errors, quickly and in little memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from store.test_damage import SPECS, contents
from support.mutations import json_text, mutated_json, same, times

from hskd.errors import HskdError
from hskd.hashing import fingerprint
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.store_format.layout import MANIFEST

SECONDS = 1.0
MEMORY = 64 * 2**20
"""Bytes that reading and rejecting one manifest may take."""


def sealed(content: Any) -> Any:
    """Return a manifest with a matching checksum, if it can have one."""
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "checksum"}
        try:
            return content | {"checksum": fingerprint(content)}
        except (ValueError, RecursionError):
            return content
    return content


def raw(content: bytes, rng: random.Random) -> bytes:
    """Return bytes that are hardly valid JSON."""
    how = rng.randrange(9)
    if how == 0:
        return b"[" * rng.choice([1000, 100_000]) + content
    if how == 1:
        return b'{"a":' * 1000 + b"1" + b"}" * 1000
    place = rng.randrange(len(content))
    if how == 2:
        return content[:place] + rng.randbytes(rng.randint(1, 9)) + content[place:]
    if how == 3:
        return content[:place]
    if how == 4:
        return content + content
    if how == 5:  # a number of 100,000 digits in place of another number
        return content.replace(b": 2,", b": " + b"9" * 100_000 + b",", 1)
    if how == 6:
        return content.replace(b'"', b'"\\ud800', rng.randrange(20))
    if how == 7:
        return content.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return rng.randbytes(rng.randint(0, 3000))


@pytest.fixture(scope="module")
def stores(superset: Store, tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    root = tmp_path_factory.mktemp("fuzz")
    return [superset] + [derive(superset, HSKSpec.parse(SPECS[name]), 2, root / name) for name in ("fp16", "int8")]


@pytest.mark.fuzz
def test_fuzzed_manifests(stores: list[Store], tmp_path: Path) -> None:
    """Half of the manifests have a matching checksum, so that later checks are reached."""
    right = [contents(store) for store in stores]
    whole = [(store.folder / MANIFEST).read_bytes() for store in stores]
    folders = [Path(shutil.copytree(store.folder, tmp_path / str(i))) for i, store in enumerate(stores)]
    outcome: Counter[str] = Counter()
    wrong: list[str] = []
    for i in range(times(200)):
        rng = random.Random(f"manifest {i}")
        which = rng.randrange(len(stores))
        content = whole[which]
        if rng.random() < 0.25:
            content = raw(content, rng)
        else:
            value = json.loads(content)
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                value = mutated_json(value, rng)
            content = json_text(sealed(value) if rng.random() < 0.7 else value)
        (folders[which] / MANIFEST).write_bytes(content)
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = contents(Store.open(folders[which]))
        except HskdError as error:
            outcome["refused"] += 1
            if len(str(error)) > 1500 or not str(error).isprintable():
                wrong.append(f"{i}: says {str(error)[:100]!r}... in {len(str(error))} characters")
        except Exception as error:
            wrong.append(f"{i}: {type(error).__name__}: {error}"[:300])
        else:
            # A manifest with a new checksum may name another teacher, but the values are those of the shards.
            outcome["read"] += 1
            found = {name: found[name] for name in found if name not in ("manifest", "special", "layers")}
            if not same(found, {name: right[which][name] for name in found}):
                wrong.append(f"{i}: other values, in silence: {content[:200]!r}")
        if time.process_time() - start > SECONDS:
            wrong.append(f"{i}: took {time.process_time() - start:.1f} s")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > MEMORY:
            wrong.append(f"{i}: took {grown / 2**20:.0f} MiB")
    assert not wrong, "\n".join(wrong)
    assert outcome["refused"] > 10 * outcome["read"] > 0, outcome


HUGE = (10**12, 2**63, 10**300, -1, -(10**12), float("nan"))


@pytest.mark.parametrize(
    "path",
    [
        ("student_layers",),
        ("teacher_layers",),
        ("teacher_width",),
        ("vocab_size",),
        ("examples",),
        ("layers", 0),
        ("mapped", 0),
        ("origin", "max_length"),
        ("target", "elements"),
        ("shards", 0, "examples"),
        ("shards", 0, "tokens"),
        ("shards", 0, "kept"),
        ("shards", 0, "bytes"),
        ("special_ids", "sep"),
        ("spec", "depth", "n"),
        ("spec", "length", "k"),
        ("spec", "depth", "l_top"),
    ],
)
def test_an_absurd_number_is_refused_at_once(stores: list[Store], tmp_path: Path, path: tuple[str | int, ...]) -> None:
    """No memory is allocated for numbers in a manifest before they are checked."""
    derived = stores[1]
    folder = shutil.copytree(derived.folder, tmp_path / "store")
    for number in HUGE:
        value = json.loads((derived.folder / MANIFEST).read_bytes())
        box = value
        for key in path[:-1]:
            box = box[key]
        box[path[-1]] = number
        (folder / MANIFEST).write_text(json.dumps(sealed(value)))
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(HskdError, match=rf"{MANIFEST}|bytes where .* were written"):
            Store.open(folder)
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()
