"""Random hostile input (specs, grid files and changes to them), and a limit on the time and memory that it may take.

Input number ``i`` is the same in every run, so a number from a test's message can be tried alone.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.mutations import times

SECONDS, BYTES = 20, 2**30
"""Limits of one input, beyond which it counts as a hang or a bomb. They allow for a busy machine."""

TEXTS = (
    "", " ", "\0", "\n", "\t", "\ud800", "\udcff", "é", "\u0661", "²", "${HOME}", "$(id)", "~", "../..", "/",
    "/dev/null",
    "9" * 5000, "0" * 3000, "x" * 5000, "[" * 3000, '{"a":' * 3000, "1e999", "NaN", "-1", "0", "null", "true", "all",
    "=", ",", ",,", "_", ".", "l", "t", "w", "h", "{}", "[]", "1l_1t_0.1w", "length=left", "l_top=5", ".json", "'", '"',
    "&a", "*a", "<<", "!!python/object:os.system id", "!!int", "- ", ": ", "#", "|", ">", "%", "@", "`", "---", "...",
    "2024-13-45", "2024-01-01", "010", "1:30", ".inf", ".nan", "yes", "\ufeff", "\x85", "\u2028",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**9, 10**12, 10**5000, -(10**30), 0.0, -0.5, 1e308, 1e-320,
    float("inf"), float("nan"), b"bytes", [], {}, [[]], [None], {"a": 1}, {1: 2}, [1, [2, [3]]], list(range(3000)),
    ["left"] * 200, *TEXTS,
)  # fmt: skip
SPECS = (
    "1l_10t_0.1w", "all_all_all", "2l_8t_0.5h,length=left", "1l_3t_0.1w,l_top=5,length.att_map=top",
    "3l_all_.25w,width=uniform",
    '{"depth":{"selector":"top_n","n":1,"l_top":[[0,0],[1,2]]},"length":{"selector":"random","k":3,"seed":5}}',
    '{"width":{"selector":"random","w":0.5,"seed":1},"precision":{"selector":"int8"}}',
)  # fmt: skip
GRID: dict[str, Any] = {
    "name": "g",
    "task": {"name": "mr", "train_examples": 100},
    "teacher": {"model": "m", "settings": {"epochs": 1, "lr": 3e-5}},
    "students": [{"layers": 2, "heads": 2, "ffn": 24}, {"kind": "tinybert", "checkpoint": "c"}],
    "training": {"hsk_epochs": 2, "prediction_epochs": 1, "hsk_lr": 1e-3, "batch_size": 16},
    "seeds": 3,
    "more_seeds": {"seeds": 5, "specs": ["1l_3t_0.1w"]},
    "arms": ["gold", "shuffled"],
    "none_lr": 1e-4,
    "sweeps": [{"n": [1, 2], "k": [1, 3], "w": [0.25]}, {"k": [1], "length": ["random"], "length.seed": [0, 1]}],
    "include": ["1l_3t_0.1w"],
    "exclude": ["1l_1t_0.25w"],
}


def random_of(kind: str, number: int) -> random.Random:
    """Return the random generator of input ``number`` of a kind."""
    return random.Random(f"{kind} {number}")


def mangled(rng: random.Random, text: str) -> str:
    """Return ``text`` with one to four cuts, repeats, swaps and insertions, or with some other digits."""
    if rng.random() < 0.25:
        return "".join(rng.choice("0123456789") if char.isdecimal() and rng.random() < 0.5 else char for char in text)
    for _ in range(rng.randint(1, 4)):
        start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        piece = text[start:end]
        text = rng.choice(
            (
                text[:start] + text[end:],
                text[:end] + piece * rng.choice((1, 2, 50)) + text[end:],
                text[:start] + rng.choice(TEXTS) + text[start:],
                text[:start] + rng.choice(TEXTS) + text[end:],
                text[:start] + chr(rng.choice((rng.randrange(128), rng.randrange(0x11000)))) + text[start + 1 :],
            )
        )
    return text[:200_000]


def changed_somewhere(rng: random.Random, value: Any) -> Any:
    """Return a copy of nested ``value`` with one place replaced, added or removed."""
    value = copy.deepcopy(value)
    node, path = value, []
    while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.75):
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append((node, key))
        node = node[key]
    parent, key = path[-1]
    act = rng.random()
    if act < 0.1:
        del parent[key]
    elif act < 0.2 and isinstance(parent, dict):
        parent[rng.choice((*TEXTS, 1, None, 2.5))] = parent.pop(key)
    else:
        parent[key] = rng.choice(VALUES)
    return value


def spec(number: int) -> Any:
    """Return a random spec, mostly as text."""
    rng = random_of("spec", number)
    if rng.random() < 0.15:
        return rng.choice(VALUES)
    base = rng.choice(SPECS)
    if base.startswith("{") and rng.random() < 0.5:
        fields = changed_somewhere(rng, json.loads(base))
        return fields if rng.random() < 0.5 else _as_json(fields)
    return mangled(rng, base)


def grid(number: int) -> bytes:
    """Return the bytes of a random grid file."""
    rng = random_of("grid", number)
    content = GRID
    for _ in range(rng.randint(0, 2)):
        content = changed_somewhere(rng, content)
    try:
        text = yaml.safe_dump(
            content, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice((None, False))
        )
    except (yaml.YAMLError, ValueError):
        text = _as_json(content)
    if rng.random() < 0.6:
        text = mangled(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.randbytes(3) + data[place:]
    return data


def change(number: int) -> str:
    """Return a random ``KEY=VALUE`` of ``--set``."""
    rng = random_of("change", number)
    parts = []
    node: Any = GRID
    while isinstance(node, (dict, list)) and node and (not parts or rng.random() < 0.7):
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        parts.append(str(key))
        node = node[key]
    value = rng.choice((*VALUES, node))
    text = f"{'.'.join(parts)}={value if isinstance(value, str) else _as_json(value)}"
    return mangled(rng, text) if rng.random() < 0.5 else text


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):  # bytes, or more digits than Python writes
        return "9" * 5000


def inputs(make: Callable[[int], Any], count: int) -> Iterator[tuple[int, Any]]:
    """Yield ``count`` inputs with their numbers, or more of them (see :func:`support.mutations.times`)."""
    for number in range(times(count)):
        yield number, make(number)


class Hang(BaseException):
    """One input took longer than ``SECONDS``."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise :class:`Hang` after ``SECONDS``, and MemoryError beyond ``BYTES`` more memory than now."""

    def stop(*_: object) -> None:
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
