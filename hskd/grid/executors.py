"""Where trials run: in this process, in worker processes, or on a Ray cluster. The result files are the same."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from logging import ERROR, getLogger
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from hskd.errors import HskdError
from hskd.grid.record import publish
from hskd.plugins import Plugins
from hskd.progress import Progress, Silent
from hskd.trials.config import TrialConfig
from hskd.trials.result import TrialResult
from hskd.trials.workspace import Workspace

Outcome = tuple[TrialConfig, TrialResult | None, str | None]
"""A trial, its result, or what went wrong."""


class Executor(Protocol):
    """Runs trials and yields their outcomes as they come."""

    slots: int
    """Trials at a time; 0 where that is not known."""

    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials``, whose shared artifacts ``workspace`` has; a failure does not stop the others."""


class InProcess(Executor):
    """One trial after the other, here."""

    slots = 1

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        for config in trials:
            yield _outcome(config, lambda config=config: publish(workspace, config, out, progress))  # type: ignore[misc]


class Workers(Executor):
    """Several processes on this machine, each running one trial at a time.

    Args:
        count: processes.
    """

    def __init__(self, count: int) -> None:
        self.slots = count

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials`` in worker processes.

        Raises:
            HskdError: a worker process died.
        """
        context = multiprocessing.get_context("spawn")
        configs = [config.model_dump_json() for config in workspace.trials]
        arguments = (os.getpid(), configs, str(workspace.work), Plugins.here())
        with ProcessPoolExecutor(self.slots, context, _start_worker, arguments) as pool:
            futures = {pool.submit(_publish_in_worker, config.model_dump_json(), str(out)): config for config in trials}
            try:
                for future in as_completed(futures):
                    yield _outcome(futures[future], future.result)
            except BrokenProcessPool:
                raise HskdError(
                    "a worker process died (killed, or out of memory). Nothing is lost: run the same command again, "
                    "perhaps with fewer --workers."
                ) from None


class RayCluster(Executor):
    """Tasks on a Ray cluster; artifacts and results must lie on a path that all nodes reach.

    Args:
        address: of the cluster; None starts one here for the length of the grid.
        num_cpus: CPUs of a trial.
        num_gpus: GPUs of a trial, perhaps a fraction.
        retries: how often a trial is tried again when its node dies.
    """

    slots = 0

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0, retries: int = 3) -> None:
        self.address = address
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": retries}

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials`` as tasks of Ray.

        Raises:
            HskdError: Ray is not installed, or the cluster cannot be reached.
        """
        if self.address is None:
            # A cluster for this run alone is nobody else's business. Where Ray expects no second node (its default on
            # Windows and macOS; read on import), it binds to the loopback address.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise HskdError("--ray needs Ray: pip install 'hskd[cluster]'.") from None
        started = not ray.is_initialized()
        if started and self.address is not None:
            _require_reachable(self.address)
        if started:
            local = {"include_dashboard": False} if self.address is None else {}
            try:
                ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
            except (ConnectionError, ray.exceptions.RayError) as error:
                raise HskdError(f"--ray-address {self.address}: {error}") from None
        try:
            task = ray.remote(**self.resources)(_publish_on_node)
            shared = ray.put([config.model_dump_json() for config in workspace.trials])
            work, where = str(workspace.work.resolve()), str(out.resolve())
            waiting = {
                task.remote(config.model_dump_json(), shared, work, where, Plugins.here()): config for config in trials
            }
            while waiting:
                [ready], _ = ray.wait(list(waiting), num_returns=1)
                config = waiting.pop(ready)
                yield _outcome(config, lambda ready=ready: ray.get(ready))  # type: ignore[misc]
        finally:
            if started:
                ray.shutdown()


def _require_reachable(address: str) -> None:
    """Refuse an address at which no one listens; Ray itself would go on trying for minutes.

    Raises:
        HskdError: there is no one.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # such as auto: Ray knows where
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise HskdError(
            f"--ray-address {address}: no Ray cluster can be reached there ({error}); start one (ray start --head), "
            "or leave the address out for one on this machine."
        ) from None


def _outcome(config: TrialConfig, get: Callable[[], TrialResult]) -> Outcome:
    try:
        return config, get(), None
    except BrokenProcessPool:
        raise
    except Exception as raised:
        error = getattr(raised, "cause", None) or raised  # Ray wraps what a task raised
        return config, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


_workspace: Workspace | None = None


def _start_worker(parent: int, trials: list[str], work: str, plugins: Plugins) -> None:
    """Prepare a worker process: its plug-ins, its workspace, and an end when its parent is gone."""
    global _workspace
    plugins.load()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _workspace = _workspace_of(trials, work)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _workspace_of(trials: list[str], work: str) -> Workspace:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # What is worth a line was said where the grid was started.
    getLogger("hskd").setLevel(ERROR)
    return Workspace(Path(work), [TrialConfig.model_validate_json(trial) for trial in trials])


def _publish_in_worker(config: str, out: str) -> TrialResult:
    assert _workspace is not None
    return publish(_workspace, TrialConfig.model_validate_json(config), Path(out), Silent())


def _publish_on_node(config: str, trials: list[str], work: str, out: str, plugins: Plugins) -> TrialResult:
    plugins.load()
    return publish(_workspace_of(trials, work), TrialConfig.model_validate_json(config), Path(out), Silent())
