"""The pytest plugin of the benchmarks: options, groups as parameters, and the contents of the JSON file."""

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
    """Add the options of ``pytest benchmarks/bench.py``."""
    group = parser.getgroup("hskd")
    group.addoption("--sizes", choices=list(SIZES), default="full", help="how much is run")
    group.addoption("--lengths", action="append", help="length setting of the training suite, instead of all")
    group.addoption("--batch", type=int, help="examples in a batch, instead of the sizes'")
    group.addoption("--device", default="cpu", help="cpu, cuda, mps")
    group.addoption("--cases", type=Path, help="folder of finished groups, which are not measured again")
    group.addoption("--fresh", action="store_true", help="measure finished groups again")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of pytest-timeout, because that plugin need not be installed."""
    config.addinivalue_line("markers", "timeout: the time limit of pytest-timeout, switched off here")


def _sizes(config: pytest.Config) -> Sizes:
    return chosen_sizes(*(config.getoption(f"--{name}") for name in ("sizes", "lengths", "batch")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every case of the suite's groups."""
    config = metafunc.config
    device = torch.device(config.getoption("--device"))
    native = resolve_dtype("auto", device) == "bf16"
    suite = SUITES[metafunc.function.__name__.removeprefix("test_")]
    groups = suite(_sizes(config), ("fp32", "bf16") if native else ("fp32",))
    cases = [pytest.param(group, case, id=f"{group.name}-{case.name}") for group in groups for case in group.cases]
    metafunc.parametrize(("group", "case"), cases)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Record the device and the versions, but not the name of the machine."""
    for unsteady in ("node", "release", "cpu"):  # they differ between runs: "cpu" includes the current clock
        machine_info.pop(unsteady, None)
    device = torch.device(config.getoption("--device"))
    machine_info["hskd"] = provenance() | {"device": device_name(device), "threads": torch.get_num_threads()}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Reduce the parameters to their names; ``extra_info`` holds their contents."""
    for benchmark in output_json["benchmarks"]:
        benchmark["params"] = {name: benchmark["extra_info"][name] for name in ("group", "case")}


@pytest.fixture(scope="session")
def driver(pytestconfig: pytest.Config) -> Driver:
    """The driver that measures the groups."""
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
    """Return a function that measures a group when its first case is requested, and prints the progress."""
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
    """Return a function that passes a case's times to pytest-benchmark; its other data go into ``extra_info``."""
    cases = measured(group)
    benchmark.group = f"{group.suite} {group.name}"
    benchmark.extra_info |= {"suite": group.suite, "group": group.name, "case": case.name} | cases[case.name].known
    peak = cases["matmul"].known.get("flops_per_second") if "matmul" in cases else None
    if peak and "flops_per_second" in benchmark.extra_info:
        benchmark.extra_info["matmul_peak_flops_per_second"] = peak
        benchmark.extra_info["share_of_matmul_peak"] = benchmark.extra_info["flops_per_second"] / peak
    return lambda: replay_seconds(benchmark, cases[case.name].seconds)
