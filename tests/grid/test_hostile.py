"""Random specs, grid files and changes are accepted or rejected with our own errors, in bounded time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import hostile
from support.mutations import times

from hskd.errors import HskdError
from hskd.grid import spec
from hskd.grid.changes import changed, parse_changes
from hskd.grid.spec import GridSpec, load_grid
from hskd.selectors import Tokens
from hskd.spec import HSKSpec, Shape
from hskd.trials.config import Machine

COUNT = 200
HERE = Machine(dtype="fp32", device="cpu", threads=1, build_threads=1)
SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=64, vocab_size=100)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def attack(make: Callable[[int], Any], use: Callable[[Any], None]) -> None:
    """Use every input. Some must be accepted and some rejected, because otherwise the test would prove nothing."""
    refused, slowest = 0, (0.0, -1)
    for number, value in hostile.inputs(make, COUNT):
        started = time.perf_counter()
        try:
            with hostile.bounded():
                use(value)
        except HskdError as error:
            refused += 1
            assert 10 < len(str(error)) < 5_000, number
        except BaseException as error:
            error.add_note(f"input {number} of {make.__name__}")
            raise
        slowest = max(slowest, (time.perf_counter() - started, number))
    total = times(COUNT)
    print(f"{make.__name__}: {total} inputs, {refused} refused, slowest {slowest[0]:.2f} s (input {slowest[1]})")
    assert total / 10 <= refused <= total * 0.97


def use_spec(value: Any) -> None:
    found = HSKSpec.parse(value)
    assert HSKSpec.parse(found.canonical) == found
    assert len(found.fingerprint) == 16
    found.layers(SHAPE)


def use_grid(data: bytes) -> None:
    Path("grid.yaml").write_bytes(data)
    load_grid("grid.yaml").trials(HERE)


def use_change(text: str) -> None:
    changed(GridSpec.model_validate(hostile.GRID), parse_changes([text])).trials(HERE)


@pytest.mark.fuzz
def test_specs() -> None:
    attack(hostile.spec, use_spec)


@pytest.mark.fuzz
def test_grid_files() -> None:
    attack(hostile.grid, use_grid)


@pytest.mark.fuzz
def test_changes() -> None:
    attack(hostile.change, use_change)


NINES = "9" * 5000
NO_SPEC: dict[str, tuple[Any, str]] = {
    "nothing": (None, "spec None: expected a text such as 1l_10t_0.1w"),
    "a number": (3, "spec 3: expected a text"),
    "bytes": (b"1l_1t_0.1w", "spec b'1l_1t_0.1w': expected a text"),
    "a name too long": (f"{'x' * 5000}.json", "cannot be read as a JSON file"),
    "a folder": (".json", "no such file"),
    "half a character": ("\udcff.json", "no such file"),
    "many digits": (f"{NINES}l_1t_0.1w", "expected layers_tokens_width"),
    "many digits in JSON": (f'{{"depth": {{"selector": "top_n", "n": {NINES}}}}}', "not valid JSON"),
    "a large number from Python": ({"length": {"selector": "left", "k": 10**5000}}, "field k: expected at most"),
    "more tokens than an array counts": (f"1l_{2**63}t_0.1w", f"expected at most {2**63 - 1}, got {2**63}"),
    "a seed that no generator takes": (f"1l_1t_0.1w,length=random,length.seed={2**64}", "length=random: field seed"),
    "deep": ('{"depth":' * 5000, "not valid JSON"),
    "deep inside": ("1l_1t_0.1w,l_top=" + "[" * 3000, "depth=top_n: field l_top"),
    "digits of another script": ("\u0661l_1t_0.1w", "expected layers_tokens_width"),
    "true for a number": ({"length": {"selector": "left", "k": True}}, "k: expected a number, got true"),
    "digits and no end": (f"1l_1t_{'9' * 100_000}", "expected layers_tokens_width"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "words"), NO_SPEC.values(), ids=NO_SPEC)
def test_what_is_no_spec_is_refused_in_one_line(value: Any, words: str) -> None:
    with hostile.bounded(), pytest.raises(HskdError) as raised:
        HSKSpec.parse(value)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_spec_file_is_read_with_its_byte_order_mark_and_refused_where_it_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_bytes(b"\xef\xbb\xbf" + HSKSpec.parse("1l_3t_0.1w").canonical.encode())
    assert HSKSpec.parse(str(file)).label == "1l_3t_0.1w"
    file.write_bytes(b'{"depth": "\xff"}')
    with pytest.raises(HskdError, match=r"spec\.json: cannot be read as a JSON file"):
        HSKSpec.parse(str(file))


def test_more_tokens_than_any_text_has_means_all_of_them() -> None:
    tokens = Tokens(np.arange(2), np.array([0, 3, 5]), np.array([7, 8, 9, 7, 9]), sep_id=9)
    spec = HSKSpec.parse(f"1l_{10**12}t_0.1w")
    assert spec.length.counts(tokens).tolist() == [2, 1]  # [SEP] is not counted


def _bomb(first: str, item: str) -> str:
    """Return lines that each refer nine times to the line before: 9 to the 9th copies of ``first`` in all."""
    names = "abcdefghi"
    lines = [f"{names[0]}: &{names[0]} {first}"]
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} " + item.format(", ".join([f"*{before}"] * 9)))
    return "\n".join(lines)


BAD_GRIDS: dict[str, tuple[str, str]] = {
    "a bomb of lists": (_bomb("[x]", "[{}]"), r"more than 20,000 values(.|\n)*line 6"),
    "a bomb of merges": (_bomb("{x: 1}", "{{<<: [{}]}}"), r"more than 20,000 values(.|\n)*line 5"),
    "an alias within itself": ("name: g\nseeds: &a [*a]\n", r"line 2"),
    "deep": ("name: g\nsweeps: " + "[" * 1000, r"more than 30 nested levels(.|\n)*line 2"),
    "a key twice": ("name: g\nseeds: 1\nseeds: 2\n", r"'seeds' is written twice(.|\n)*line 3"),
    "a key that is a number": ("name: g\n1: 2\n", r"a key that is not text(.|\n)*line 2"),
    "a key that is a list": ("name: g\n? [a]\n: 2\n", r"a key that is not text(.|\n)*line 2"),
    "a tag of Python": ("name: g\nseeds: !!python/object/apply:os.getpid []\n", r"python/object(.|\n)*line 2"),
    "several documents": ("name: g\n---\nname: h\n", r"single document(.|\n)*line 2"),
    "many digits": (f"name: g\nseeds: {'9' * 90_000}\n", r"cannot be read(.|\n)*line 2"),
    "a thirteenth month": ("name: g\ntask: {data: 2024-13-01}\n", r"month must be in 1\.\.12(.|\n)*line 2"),
    "a date": ("name: g\ntask: {data: 2024-12-01}\n", r"line 2: task\.data: .*string.*2024, 12, 1"),
    "not a number": ("name: g\nnone_lr: .nan\n", r"not finite(.|\n)*line 2"),
    "an infinite text": ("name: g\ntraining: {hsk_lr: '1e999'}\n", r"line 2: training: .*finite number, got inf"),
    "half a character": ('name: g\ntask: {data: "\\uD800"}\n', r"cannot be read(.|\n)*line 2"),
    "a NUL": ('name: g\ntask: {data: "\\0"}\n', r"NUL(.|\n)*line 2"),
    "yes for a number": ("name: g\nseeds: yes\n", r"line 2: seeds: expected a number, got true"),
    "yes for an amount": ("name: g\nsweeps:\n- k: [yes]\n", r"line 3: sweeps\.0\.k: expected a number, got true"),
    "seeds beyond 64 bits": (f"name: g\nseeds: {2**63}\n", r"line 2: seeds: .*less than or equal to 10000"),
    "a billion seeds": ("name: g\nseeds: 1000000000\n", r"line 2: seeds: .*less than or equal to 10000"),
    "a billion more seeds": ("name: g\nmore_seeds: {seeds: 1000000000}\n", r"line 2: more_seeds\.seeds: .*10000"),
    "a seed beyond NumPy's": ("name: g\nseeds: [4294967296]\n", r"line 2: seeds\.0: .*4294967295"),
    "too many trials": ("name: g\nseeds: 9000\n", r"line 2: seeds: 18,000 trials; a grid has at most 10,000"),
    "a product too large": (
        f"name: g\nsweeps:\n- k: {list(range(1, 300))}\n  w: {[i / 300 for i in range(1, 300)]}\n",
        r"line 3: sweeps\.0: 89,401 specs in one sweep; a grid has at most 2,000",
    ),
    "too long": ("name: g\n" + "# more\n" * 20_000, "more than 100,000 characters"),
    "a name too long": (f"name: {'g' * 200}\n", r"line 1: name: .*at most 100"),
    "thousands of mistakes": (f"name: g\ninclude: {[1] * 1500}\n", r"and 1,490 more mistakes"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_a_hostile_grid_file_is_refused_with_file_and_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    with hostile.bounded(), pytest.raises(HskdError, match=words) as raised:
        load_grid(str(file))
    assert str(raised.value).startswith(str(file)) and len(str(raised.value)) < 3000


def test_the_largest_grids_are_made() -> None:
    with hostile.bounded():
        assert len(GridSpec(name="g", seeds=5000).trials(HERE)) == 10_000
        assert GridSpec.model_validate({"name": "g", "sweeps": [{"k": [10**12]}]}).specs()[0].length.k == 10**12


def test_folders_that_are_no_data_and_no_model_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "MOST_FILES", 20)
    crowded = tmp_path / "crowded"
    for name in range(5):
        (crowded / str(name)).mkdir(parents=True)
        for file in range(5):
            (crowded / str(name) / str(file)).touch()
    os.mkfifo(tmp_path / "pipe")
    for keys, words in (
        ({"task": {"name": "custom", "data": str(crowded)}}, r"data: .*holds more than 20 files"),
        ({"task": {"name": "custom", "data": str(tmp_path / "pipe")}}, r"data: .*expected a file or a folder"),
        ({"task": {"name": "custom", "data": "x" * 5000}}, r"data: x.*cannot be read \(File name too long\)"),
        ({"teacher": {"model": str(crowded)}}, r"model: .*no config\.json there"),
        ({"students": [{"kind": "tinybert", "checkpoint": str(tmp_path)}]}, r"checkpoint: .*no config\.json there"),
    ):
        with hostile.bounded(), pytest.raises(HskdError, match=words):
            GridSpec.model_validate({"name": "g", **keys}).trials(HERE)
