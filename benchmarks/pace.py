"""The worker's side of turns: only the worker whose turn it is computes, the others wait at a pipe."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work. A CPU has no queue.

    The CUDA branch was run on an H200. The MPS branch follows torch's documentation and was never run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def anonymous_bytes() -> int | None:
    """Return the memory of this process without mapped files (``RssAnon``), in bytes; None without ``/proc``."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def memory(device: torch.device) -> dict[str, int | None]:
    """Return the peak memory of this process in bytes: resident (``VmHWM``), and on the accelerator."""
    peak = _status("VmHWM")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peaks: dict[str, int | None] = {"peak_rss_bytes": peak}
    if device.type == "cuda":
        peaks["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    elif device.type == "mps":
        peaks["device_bytes"] = torch.mps.driver_allocated_memory()  # the current value, as MPS records no peak
    return peaks


@dataclass
class Pace:
    """Divides a worker's steps into turns, and reports the time of each turn to the driver.

    Args:
        pipe: to the driver, which sends ``go`` or ``stop``.
        steps: steps of a turn.
        device: the device of the computation.
    """

    pipe: Connection
    steps: int
    device: torch.device
    known: dict[str, Any] = field(default_factory=dict)
    """Properties that the worker adds to its case's record."""
    batches: int | None = None
    """Batches of a turn, where a step is not one batch."""
    counts_operations: bool = True
    """Whether the first turn counts floating-point operations. A graph that is replayed has none to count."""
    _left: int = 0
    _start: float = 0.0
    _counter: FlopCounterMode | None = None

    def begin(self) -> bool:
        """Wait for the first turn, after everything is loaded. Return False if there is no turn.

        That turn counts the floating-point operations of matrix products, so its time is not valid.
        """
        if self.batches is None:
            self.batches = self.steps
        go = self._wait({"ready": True})
        if self.counts_operations:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        return go

    def step(self) -> bool:
        """Count a step as done, and wait for the next turn at the end of a turn. Return False if there is no more."""
        self._left -= 1
        if self._left:
            return True
        synchronise(self.device)
        seconds = time.perf_counter() - self._start
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.known["flops_per_batch"] = self._counter.get_total_flops() / (self.batches or self.steps)
            self._counter = None
        return self._wait({"seconds": seconds, "anonymous_bytes": anonymous_bytes()})

    def end(self) -> None:
        """Send the properties of the case to the driver."""
        self.pipe.send({"known": self.known | {"batches_per_turn": self.batches} | memory(self.device)})

    def _wait(self, message: dict[str, Any]) -> bool:
        waiting, working = time.perf_counter(), time.process_time()
        self.pipe.send(message)
        go = self.pipe.recv() == "go"
        # Threads that spin while they wait would disturb the worker whose turn it is, so CPU time is recorded too.
        self.known["waited_seconds"] = self.known.get("waited_seconds", 0.0) + time.perf_counter() - waiting
        self.known["waited_cpu_seconds"] = self.known.get("waited_cpu_seconds", 0.0) + time.process_time() - working
        self._left = self.steps
        self._start = time.perf_counter()
        return go
