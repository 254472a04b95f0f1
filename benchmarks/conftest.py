"""pytest's side of the benchmarks: options, the groups as parameters, what goes into the JSON file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hskd.benchmarks.cases import SUITES, Case, Group
from hskd.benchmarks.driver import Driver, Measured, device_name
from hskd.benchmarks.replay import replay as replay_seconds
from hskd.benchmarks.shapes import SIZES, Sizes, chosen_sizes
from hskd.cli.progress import console
from hskd.provenance import provenance
from hskd.runtime import resolve_dtype


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``pytest benchmarks/bench.py``."""
    group = parser.getgroup("hskd")
    group.addoption("--sizes", choices=list(SIZES), default="full", help="how much is run")
    group.addoption("--lengths", action="append", help="length setting of the training suite, instead of all")
    group.addoption("--batch", type=int, help="examples in a batch, instead of the sizes'")
    group.addoption("--device", default="cpu", help="cpu, cuda, mps")
    group.addoption("--cases", type=Path, help="folder of the groups that are done, which are not measured again")
    group.addoption("--fresh", action="store_true", help="measure again what is done")


def pytest_configure(config: pytest.Config) -> None:
    """The marker is pytest-timeout's, which need not be there."""
    config.addinivalue_line("markers", "timeout: a group takes as long as it takes")


def _sizes(config: pytest.Config) -> Sizes:
    return chosen_sizes(*(config.getoption(f"--{name}") for name in ("sizes", "lengths", "batch")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case of the suite's groups."""
    config = metafunc.config
    device = torch.device(config.getoption("--device"))
    native = resolve_dtype("auto", device) == "bf16"
    suite = SUITES[metafunc.function.__name__.removeprefix("test_")]
    groups = suite(_sizes(config), ("fp32", "bf16") if native else ("fp32",))
    cases = [pytest.param(group, case, id=f"{group.name}-{case.name}") for group in groups for case in group.cases]
    metafunc.parametrize(("group", "case"), cases)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The device and the versions; not the name of the machine."""
    for unsteady in ("node", "release", "cpu"):  # the CPU's clock, among others, is never the same twice
        machine_info.pop(unsteady, None)
    device = torch.device(config.getoption("--device"))
    machine_info["hskd"] = provenance() | {"device": device_name(device), "threads": torch.get_num_threads()}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Parameters by name; what they stand for is in ``extra_info``."""
    for benchmark in output_json["benchmarks"]:
        benchmark["params"] = {name: benchmark["extra_info"][name] for name in ("group", "case")}


@pytest.fixture(scope="session")
def driver(pytestconfig: pytest.Config) -> Driver:
    """What measures."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return Driver(
        sizes=_sizes(pytestconfig),
        device=torch.device(pytestconfig.getoption("--device")),
        threads=torch.get_num_threads(),
        cases=pytestconfig.getoption("--cases"),
        fresh=pytestconfig.getoption("--fresh"),
    )


@pytest.fixture(scope="session")
def measured(driver: Driver, request: pytest.FixtureRequest) -> Callable[[Group], dict[str, Measured]]:
    """Measures a group when its first case is asked for, and says how far the session is."""
    groups = dict.fromkeys(item.callspec.params["group"] for item in request.session.items)  # type: ignore[attr-defined]
    order = {group: place for place, group in enumerate(groups, 1)}
    results: dict[Group, dict[str, Measured]] = {}

    def measure(group: Group) -> dict[str, Measured]:
        if group not in results:
            console().print(f"{order[group]}/{len(order)} {group.suite}: {group.name}")
            results[group] = driver.measure(group)
        return results[group]

    return measure


@pytest.fixture
def replay(
    group: Group, case: Case, measured: Callable[[Group], dict[str, Measured]], benchmark: Any
) -> Callable[[], None]:
    """Hands a case's times to pytest-benchmark, and what else is known of it."""
    cases = measured(group)
    benchmark.group = f"{group.suite} {group.name}"
    benchmark.extra_info |= {"suite": group.suite, "group": group.name, "case": case.name} | cases[case.name].known
    peak = cases["matmul"].known.get("flops_per_second") if "matmul" in cases else None
    if peak and "flops_per_second" in benchmark.extra_info:
        benchmark.extra_info["matmul_peak_flops_per_second"] = peak
        benchmark.extra_info["share_of_matmul_peak"] = benchmark.extra_info["flops_per_second"] / peak
    return lambda: replay_seconds(benchmark, cases[case.name].seconds)
