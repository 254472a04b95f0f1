"""Every benchmark runs, finished groups are not measured again, and pytest-benchmark gets the measured times."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hskd.analysis.stats.timing import Timings, bars
from hskd.benchmarks.cases import SUITES, Case, Group
from hskd.benchmarks.commands import bench, devices, run_suites, slug
from hskd.benchmarks.driver import Driver
from hskd.benchmarks.shapes import SIZES, chosen_sizes
from hskd.errors import HskdError
from hskd.io import read_json

BENCH = Path(__file__).resolve().parents[2] / "benchmarks" / "bench.py"
PRODUCTS = Group("training", "products", (Case("fp32", "matmul"), Case("bf16", "matmul", dtype="bf16")))


@pytest.fixture(autouse=True)
def _no_worker_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark's own pytest must not believe that it is an xdist worker, because it would then measure nothing."""
    for variable in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(variable, raising=False)


def driver(cases: Path | None = None, **settings: bool) -> Driver:
    return Driver(SIZES["tiny"], torch.device("cpu"), 1, cases, **settings)


def test_every_benchmark_runs() -> None:
    options = ["--sizes", "tiny", "--benchmark-disable", "-q", "-s", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", str(BENCH), *options]
    ran = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=BENCH.parents[1], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for suite in SUITES:
        assert f" {suite}: " in ran.stderr


def test_the_json_file_holds_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    [group] = SUITES["size"](SIZES["tiny"], ("fp32",))
    measured = driver(tmp_path / "cases").measure(group)
    run_suites(["size"], "cpu", "tiny", tmp_path, tmp_path / "cases", fresh=False)
    [line] = (tmp_path / "size.json").read_text().splitlines()  # no space is spent on indentation
    found = json.loads(line)["benchmarks"]
    assert [case["params"] for case in found] == [{"group": "disk", "case": name} for name in measured]
    for case, expected in zip(found, measured.values(), strict=True):
        assert case["stats"]["data"] == pytest.approx(expected.seconds)
        assert case["extra_info"].items() >= expected.known.items()
    assert bars(Timings.read(tmp_path))["setting"].tolist() == ["superset", "derived"]


def test_devices() -> None:
    assert devices("cpu") == ["cpu"]
    assert devices("all")[0] == "cpu"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-cores", slug(torch.device("cpu")))
    for name in {"cuda", "mps"} - set(devices("all")):
        with pytest.raises(HskdError, match=f"--device {name}: .* use --device cpu"):
            devices(name)


def test_a_suite_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="--only speed: no such suite; there are training, lengths, "):
        bench(only=["speed"], out=tmp_path, work=tmp_path)


def test_a_group_that_is_done_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = driver(tmp_path).measure(PRODUCTS)
    assert [len(case.seconds) for case in measured.values()] == [1, 1]
    monkeypatch.setattr(Driver, "_workers", lambda *arguments: pytest.fail("measured again"))
    assert driver(tmp_path).measure(PRODUCTS) == measured
    for changed in (driver(tmp_path, fresh=True), Driver(SIZES["tiny"], torch.device("cpu"), 2, tmp_path)):
        with pytest.raises(pytest.fail.Exception):
            changed.measure(PRODUCTS)


def test_operations_of_a_product_are_counted() -> None:
    case = driver().measure(PRODUCTS)["fp32"]
    assert case.known["flops_per_batch"] == 2 * SIZES["tiny"].matmul ** 3
    assert case.known["flops_per_second"] == pytest.approx(2 * SIZES["tiny"].matmul ** 3 / case.seconds[0])


def test_what_goes_wrong_in_a_worker_is_said_and_nothing_is_kept(tmp_path: Path) -> None:
    broken = Group("training", "broken", (PRODUCTS.cases[0], Case("no", "offline", student="nobody")))
    with pytest.raises(HskdError, match=r"(?s)training broken: no failed:.*KeyError: 'nobody'"):
        driver(tmp_path).measure(broken)
    assert list(tmp_path.iterdir()) == []


def test_an_accelerator_has_longer_turns() -> None:
    sizes, gpu = SIZES["full"], torch.device("cuda")
    assert [sizes.turn(lengths, torch.device("cpu")) for lengths in ("pad64", "cola")] == [1, 6]
    assert [sizes.turn(lengths, gpu) for lengths in ("pad64", "cola")] == [16, 16]


def test_lengths_and_batch_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chosen_sizes("full", ["cola"], 256)
    assert (chosen.lengths, chosen.batch, chosen.rounds) == (("cola",), 256, SIZES["full"].rounds)
    assert chosen_sizes("tiny") == SIZES["tiny"]
    with pytest.raises(HskdError, match="--lengths pad12: no such setting; there are pad64, pad128, cola, sst2, rte"):
        bench(lengths=["pad12"], out=tmp_path, work=tmp_path)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_suites(["size"], "cpu", "tiny", tmp_path, tmp_path / "cases", fresh=False, batch=3)
    [found] = [read_json(file) for file in (tmp_path / "cases").glob("*.json")]
    assert found["recipe"]["sizes"]["batch"] == 3


def test_tables_are_made_of_what_a_killed_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [group] = SUITES["size"](SIZES["tiny"], ("fp32",))
    driver(tmp_path).measure(group)
    bench(tables=tmp_path)
    assert "| store size / floor | superset |" in capsys.readouterr().out
    assert (tmp_path / "bars.csv").is_file()
