"""Executors run trials in this process, in worker processes, or on a Ray cluster. All write the same result files."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from logging import ERROR, getLogger
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from hskd.errors import HskdError
from hskd.grid.record import publish
from hskd.plugins import Plugins
from hskd.progress import Progress, Silent
from hskd.runtime import StoreOnDevice
from hskd.trials.config import TrialConfig
from hskd.trials.result import TrialResult
from hskd.trials.workspace import Workspace

Outcome = tuple[TrialConfig, TrialResult | None, str | None]
"""A trial, its result or None, and the error or None."""
ATTEMPTS = 2
"""How many times a trial is run if its worker process dies."""
WAIT = 10.0
"""Seconds to wait for a process to exit after its connection has closed."""


class Executor(Protocol):
    """Runs trials and yields their outcomes as they finish."""

    slots: int
    """Number of trials that run at the same time; 0 if unknown."""
    store_on_device: StoreOnDevice = "auto"
    """Whether a trial's store is placed on its device (see :class:`~hskd.runtime.RunOptions`)."""
    is_kept: bool = False
    """Whether ``run`` leaves what it starts for the next call (see :meth:`keep`)."""

    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials``; ``workspace`` has their shared artifacts. A failed trial does not stop the others."""

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep what ``run`` starts, such as processes, for further calls of ``run`` until the context ends."""
        self.is_kept = True
        try:
            yield
        finally:
            self.is_kept = False
            self.release()

    def release(self) -> None:
        """End what ``run`` has started."""
        return


class InProcess(Executor):
    """Runs one trial after the other in this process."""

    slots = 1

    def __init__(self, store_on_device: StoreOnDevice = "auto") -> None:
        self.store_on_device = store_on_device

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        for config in trials:
            yield _outcome(config, lambda config=config: publish(workspace, config, out, progress))  # type: ignore[misc]


_UNSAID = "ignore:resource_tracker:UserWarning"
"""Warning filter for Python's resource tracker, which cleans up after a killed process and would warn about it."""


class Workers(Executor):
    """Runs trials in several processes on this machine, each running one trial at a time.

    If a process dies, only its own trial is affected, and another process runs that trial again.

    Args:
        count: number of processes.
        store_on_device: see :class:`Executor`. Each process places its own copy.
    """

    def __init__(self, count: int, store_on_device: StoreOnDevice = "auto") -> None:
        self.slots = count
        self.store_on_device = store_on_device
        self._workers: list[_Worker] = []
        self._workspace: Workspace | None = None

    @override
    def release(self) -> None:
        while self._workers:
            self._workers.pop().dismiss()

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials`` in worker processes.

        A trial whose process dies ``ATTEMPTS`` times counts as failed.

        Raises:
            HskdError: processes die as soon as they start.
        """
        if workspace is not self._workspace:
            self.release()  # kept processes have another workspace
            self._workspace = workspace
        queue = deque(trials)
        deaths: Counter[str] = Counter()
        in_a_row = 0
        trial_texts = [config.model_dump_json() for config in workspace.trials]
        start = partial(_Worker, trial_texts, workspace.work, self.store_on_device)
        workers = self._workers
        try:
            while True:
                workers += [start() for _ in range(min(self.slots - len(workers), len(queue)))]
                for worker in workers:
                    if worker.trial is None and queue:
                        worker.begin(queue.popleft(), out)
                busy = {worker.connection: worker for worker in workers if worker.trial is not None}
                if not busy:
                    return
                for connection in wait([*busy]):
                    worker = busy[connection]  # type: ignore[index]
                    config, answer = worker.end()
                    if answer is not None:
                        in_a_row = 0
                        yield config, *answer
                        continue
                    workers.remove(worker)
                    in_a_row += 1
                    deaths[config.id] += 1
                    if in_a_row > ATTEMPTS * self.slots:
                        raise HskdError(
                            f"{in_a_row} worker processes died one after the other, the last by {worker.cause}. "
                            "Nothing is lost: run the same command again, perhaps with fewer --workers."
                        )
                    if deaths[config.id] < ATTEMPTS:
                        progress.say(f"{config.title}: its process died by {worker.cause}; it is run again")
                        queue.append(config)
                    else:
                        died = f"its process died {ATTEMPTS} times, the last by {worker.cause}"
                        yield config, None, f"{died}; perhaps it needs more memory, or fewer --workers"
        finally:
            if not self.is_kept or any(worker.trial is not None for worker in workers):
                self.release()


class _Worker:
    """A process that runs one trial after the other.

    Attributes:
        connection: delivers the answers of the process.
        trial: the trial that it runs; None while it is idle.
        cause: the cause of death of a dead process.
    """

    def __init__(self, trials: list[str], work: Path, store_on_device: StoreOnDevice) -> None:
        context = multiprocessing.get_context("spawn")
        if _UNSAID not in sys.warnoptions:  # Python passes these options to its tracker
            sys.warnoptions.append(_UNSAID)
        self.connection, worker_connection = context.Pipe()
        arguments = (worker_connection, os.getpid(), trials, str(work), Plugins.here(), store_on_device)
        self._process = context.Process(target=_work, args=arguments)
        self._process.start()
        worker_connection.close()  # now only the process holds it, so its death closes the connection
        # The caller may be interrupted while it handles an outcome, and at exit Python would wait for the processes.
        atexit.register(self.stop)
        self.trial: TrialConfig | None = None
        self.cause = ""

    def begin(self, trial: TrialConfig, out: Path) -> None:
        """Start a trial in the process, which writes its result into ``out``."""
        self.trial = trial
        with suppress(OSError):  # The process is already dead; end() reports it.
            self.connection.send((trial.model_dump_json(), str(out)))

    def end(self) -> tuple[TrialConfig, tuple[TrialResult | None, str | None] | None]:
        """Return the trial that ran, and the answer of the process; None instead of an answer if the process died."""
        assert self.trial is not None
        trial, self.trial = self.trial, None
        try:
            return trial, self.connection.recv()
        except (EOFError, OSError):
            self._process.join(WAIT)
            code = self._process.exitcode
            self.cause = (
                "a broken connection" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
            )
            self.stop()
            return trial, None

    def dismiss(self) -> None:
        """Let an idle process exit by itself, so that it can clean up; kill a busy one."""
        if self.trial is None:
            self.connection.close()
            self._process.join(WAIT)
        self.stop()

    def stop(self) -> None:
        """Kill the process. That is safe, because a trial may be killed at any moment."""
        atexit.unregister(self.stop)
        self._process.kill()
        self._process.join()
        self.connection.close()


class RayCluster(Executor):
    """Runs trials as tasks on a Ray cluster. Artifacts and results must lie on a path that all nodes can access.

    Args:
        address: address of the cluster; None starts a cluster on this machine, which ends with the trials.
        num_cpus: CPUs per trial.
        num_gpus: GPUs per trial; may be a fraction.
        retries: how many times a trial is retried if its node dies.
        store_on_device: see :class:`Executor`.
    """

    slots = 0

    def __init__(
        self,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        retries: int = 3,
        store_on_device: StoreOnDevice = "auto",
    ) -> None:
        self.address = address
        self.store_on_device = store_on_device
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": retries}
        self._is_connected = False

    def _connect(self) -> None:
        """Connect to the cluster or start one, unless this process is connected to one already."""
        if self.address is None:
            # Bind a per-run cluster to the loopback interface. Ray does so if it expects no second node, which is its
            # default on Windows and macOS. It reads this variable on import.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise HskdError("--ray needs Ray: pip install 'hskd[cluster]'.") from None
        if ray.is_initialized():
            return
        if self.address is not None:
            _require_reachable(self.address)
        local = {"include_dashboard": False} if self.address is None else {}
        try:
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise HskdError(f"--ray-address {self.address}: {error}") from None
        self._is_connected = True

    @override
    def release(self) -> None:
        """Undo :meth:`_connect`, which ends a cluster that it started."""
        if self._is_connected:
            import ray

            self._is_connected = False
            ray.shutdown()

    @override
    def run(
        self, workspace: Workspace, trials: Sequence[TrialConfig], out: Path, progress: Progress
    ) -> Iterator[Outcome]:
        """Run ``trials`` as Ray tasks.

        Raises:
            HskdError: Ray is not installed, or the cluster cannot be reached.
        """
        self._connect()
        import ray

        try:
            task = ray.remote(**self.resources)(_publish_on_node)
            shared = ray.put([config.model_dump_json() for config in workspace.trials])
            work, where = str(workspace.work.resolve()), str(out.resolve())
            rest = shared, work, where, Plugins.here(), self.store_on_device
            waiting = {task.remote(config.model_dump_json(), *rest): config for config in trials}
            while waiting:
                [ready], _ = ray.wait(list(waiting), num_returns=1)
                config = waiting.pop(ready)
                yield _outcome(config, lambda ready=ready: ray.get(ready))  # type: ignore[misc]
        finally:
            if not self.is_kept:
                self.release()


def _require_reachable(address: str) -> None:
    """Refuse an address that nothing listens on, because Ray itself would keep trying for minutes.

    Raises:
        HskdError: nothing listens there.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray resolves addresses such as "auto" itself
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
    except Exception as raised:
        error = getattr(raised, "cause", None) or raised  # Ray wraps the error of a task
        return config, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _work(
    answers: Connection,
    parent: int,
    trials: list[str],
    work: str,
    plugins: Plugins,
    store_on_device: StoreOnDevice,
) -> None:
    """Run the trials that arrive on ``answers``, and send back their outcomes, until the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent gets the signal too, and ends this process.
    plugins.load()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    workspace = _workspace_of(trials, work, store_on_device)
    with suppress(EOFError):
        while True:
            trial, out = answers.recv()
            config = TrialConfig.model_validate_json(trial)
            run = partial(publish, workspace, config, Path(out), Silent())
            _, *answer = _outcome(config, run)
            answers.send(tuple(answer))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _workspace_of(trials: list[str], work: str, store_on_device: StoreOnDevice) -> Workspace:
    from transformers.utils import logging

    import hskd  # noqa: F401  registers the students

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The process that started the grid has already shown the messages.
    getLogger("hskd").setLevel(ERROR)
    configs = [TrialConfig.model_validate_json(trial) for trial in trials]
    return Workspace(Path(work), configs, store_on_device=store_on_device)


def _publish_on_node(
    config: str, trials: list[str], work: str, out: str, plugins: Plugins, store_on_device: StoreOnDevice
) -> TrialResult:
    plugins.load()
    workspace = _workspace_of(trials, work, store_on_device)
    return publish(workspace, TrialConfig.model_validate_json(config), Path(out), Silent())
