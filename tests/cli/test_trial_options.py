"""The options of commands that run trials: the same in all of them, and what they make."""

from __future__ import annotations

from typing import Any

import pytest

from hskd.cli.commands import BUILT_IN, LazyCommand
from hskd.cli.options import ExecutorOptions, TrialOptions, with_settings
from hskd.errors import HskdError
from hskd.grid.executors import InProcess, RayCluster, Workers

OF_MACHINE = ("--threads", "--dtype", "--work", "--data", "--teacher", "--set")
OF_EXECUTOR = ("--workers", "--ray", "--ray-address", "--num-cpus", "--num-gpus")


def options(name: str, of: str | None = None) -> dict[str, Any]:
    """Return the options of a command, or of a command of a group, by flag."""
    command = LazyCommand(name, BUILT_IN[name].target, BUILT_IN[name].help).load()
    command = command if of is None else command.commands[of]  # type: ignore[attr-defined]
    return {flag: option for option in command.params for flag in option.opts}


def test_commands_that_run_trials_have_the_same_options() -> None:
    find = options("find")
    for name in ("run", "plan", "status", "retry"):
        grid = options("grid", name)
        for flag in (*OF_MACHINE, *(OF_EXECUTOR if name == "run" else ())):
            of_both = [(option.help, option.default, option.secondary_opts) for option in (find[flag], grid[flag])]
            assert of_both[0] == of_both[1], f"{name} {flag}"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, InProcess),
        ({"workers": 3}, Workers),
        ({"ray": True}, RayCluster),
        ({"ray_address": "host:6379", "num_cpus": 2, "num_gpus": 0.5}, RayCluster),
    ],
)
def test_executors(given: dict[str, Any], kind: type) -> None:
    executor = ExecutorOptions(**given).executor()
    assert type(executor) is kind
    assert executor.slots == {InProcess: 1, Workers: 3, RayCluster: 0}[kind]
    if isinstance(executor, RayCluster):
        assert executor.address == given.get("ray_address")
        assert executor.resources["num_cpus"] == given.get("num_cpus", 1)
        assert executor.resources["num_gpus"] == given.get("num_gpus", 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 2, "ray": True}, "give --workers or --ray, not both."),
        ({"workers": 2, "ray_address": "host:6379"}, "give --workers or --ray, not both."),
        ({"workers": 0}, "--workers 0: Input should be greater than or equal to 1."),
        ({"num_cpus": -1.0}, "--num-cpus -1.0: Input should be greater than or equal to 0."),
    ],
)
def test_refused(given: dict[str, Any], said: str) -> None:
    @with_settings(place=ExecutorOptions)
    def command(*, place: ExecutorOptions) -> None:
        raise AssertionError("the options were not checked")

    defaults = {name: field.default for name, field in ExecutorOptions.model_fields.items()}
    with pytest.raises(HskdError) as caught:
        command(**{**defaults, **given})
    assert str(caught.value) == said


def test_the_machine() -> None:
    machine = TrialOptions(threads=2, dtype="fp32").machine()
    assert (machine.threads, machine.dtype) == (2, "fp32")
