"""The parts of the large run that can be tested without running it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from hskd.benchmarks import scale
from hskd.benchmarks.scale import HalfWay, Steps, anonymous_bytes_of, cpu_seconds_of
from hskd.io import read_json, write_json


def test_what_a_process_uses() -> None:
    before, used = anonymous_bytes_of(os.getpid()), cpu_seconds_of(os.getpid())
    # Allocated anew, because memory that Python frees and reuses would not show.
    held = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, 2**26, mmap.PAGESIZE):
        held[page] = 1
    while cpu_seconds_of(os.getpid()) < used + 0.02:
        sum(range(1000))
    assert anonymous_bytes_of(os.getpid()) - before > 2**25
    assert len(held) and used > 0
    assert anonymous_bytes_of(2**22 + 1) == cpu_seconds_of(2**22 + 1) == 0  # above the largest process id


def test_half_way_is_in_the_midst_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(scale.time, "perf_counter", lambda: clock[0])
    kill = HalfWay(tmp_path / "store", 5)
    partial = tmp_path / "store.partial"
    partial.mkdir()
    for shard in range(2):
        assert not kill()
        clock[0] += 100
        (partial / f"shard-{shard:05d}.safetensors").touch()
    assert not kill()
    clock[0] += scale.INTO_THE_SHARD + 0.1
    assert kill()


def test_steps_are_run_once_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale.sys, "executable", "/bin/echo")
    (tmp_path / "b.partial").mkdir()
    steps = Steps(tmp_path, 1)
    step = steps.run("b", "store", "extract", "--out", tmp_path / "b", makes=tmp_path / "b")
    assert step["command"] == f"hskd store extract --out {tmp_path / 'b'}" and step["went_on"] and not step["killed"]
    assert (tmp_path / "b.log").read_text() == f"-m hskd store extract --out {tmp_path / 'b'}\n"
    write_json(tmp_path / "steps.json", read_json(tmp_path / "steps.json") | {"c": {"seconds": 3}})
    assert Steps(tmp_path, 1).run("b", "other", makes=tmp_path / "b") == step
    assert Steps(tmp_path, 1).run("c", "other", makes=tmp_path / "c") == {"seconds": 3}
    monkeypatch.setattr(scale.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match=r"d\.log: teacher failed with code 1"):
        steps.run("d", "teacher", makes=tmp_path / "d")
