"""The processes that run one command together, as started by ``accelerate launch``.

The main process has rank 0. A process that was started alone is the main process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from hskd.errors import HskdError

# A command that runs in a single process must not import torch or accelerate only to count the processes.
if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")

# The time-out can be long: if a process fails, its launcher ends the others. A waiting process may have to wait for a
# whole pass of the teacher.
_PATIENCE = timedelta(days=7)
_LEAD = 10.0
"""Seconds that a failing process waits, so that another one that failed before it can print its message."""
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCH_BY_MPI = ("OMPI_COMM_WORLD_", "PMI_", "MPI_LOCAL", "MV2_COMM_WORLD_")

# The variables of torchrun and MPI that accelerate reads, in its order. The first one that is set counts.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_WORLD_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")

_solo = False


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """Return the value of the first of these variables that holds a non-negative number, or ``default``."""
    values = (int(os.environ.get(name, -1)) for name in names)
    return next((value for value in values if value >= 0), default)


def _distributed() -> ModuleType:
    """Return ``torch.distributed``. Call it only after :func:`start` has joined the processes."""
    import torch.distributed

    return torch.distributed


def _met() -> ModuleType | None:
    """Return ``torch.distributed`` if this process has joined others; otherwise None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def launched() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as set by the launcher, even before :func:`start`."""
    return _from_environment(_RANK, 0), _from_environment(_WORLD_SIZE, 1)


def require_one_each(device: str) -> None:
    """Check, before looking for the device, that ``device`` can mean a separate device for each process.

    Raises:
        HskdError: several processes were launched, and ``device`` names a single device.
    """
    _, many = launched()
    if many > 1 and device not in ("auto", "cpu", "cuda"):
        raise HskdError(f"--device {device}: {many} processes take a device each; give --device cuda or --device cpu.")


def start(device: torch.device) -> torch.device:
    """Join the other processes, if this one was launched with others, and return this process's device.

    Args:
        device: the requested device. If several processes were launched, ``cuda`` becomes this process's own GPU.

    Raises:
        HskdError: there are not enough such devices, or not all launched processes have joined.
    """
    _, many = launched()
    if many == 1:
        return device
    require_one_each(str(device))
    import torch
    from accelerate import PartialState

    here = _from_environment(_LOCAL_WORLD_SIZE, 1)
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise HskdError(
            f"{here} processes on a machine of {torch.cuda.device_count()} GPUs: launch one for each GPU, or give "
            "--device cpu."
        )
    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    if state.num_processes != many:
        raise HskdError(
            f"{many} processes were launched, but only {state.num_processes} can work together on {device}."
        )
    return device if device.type == "cpu" else state.device


def stop() -> None:
    """Wait until all processes are done, and leave them."""
    if (dist := _met()) is not None:
        barrier()
        dist.destroy_process_group()


def leave_to_main() -> bool:
    """Return whether this process is to do work that a single process does.

    In the main process, the launcher's variables are removed, so that it continues as if it had been started alone.
    """
    rank, _ = launched()
    if rank == 0:
        for name in [name for name in os.environ if name in _LAUNCH or name.startswith(_LAUNCH_BY_MPI)]:
            del os.environ[name]
    return rank == 0


def count() -> int:
    """Return the number of processes that work together.

    Raises:
        HskdError: several processes were launched, and :func:`start` was not called.
    """
    if _solo:
        return 1
    if (dist := _met()) is not None:
        return int(dist.get_world_size())
    if launched()[1] > 1:
        raise HskdError("several processes were launched but not joined: call hskd.processes.start(device) first.")
    return 1


def rank() -> int:
    """Return the rank of this process. The main process has rank 0."""
    return int(_distributed().get_rank()) if count() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, which alone writes files and prints messages."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if count() > 1:
        _distributed().barrier()


def by_main(call: Callable[[], T]) -> T:
    """Run ``call`` in the main process, and return its result in all processes.

    After it, all processes see the files that it wrote and agree on its decision. During the call, :func:`count` is 1
    in the main process, so the called code can use this module as if it ran alone.

    Raises:
        HskdError: the call failed. The main process raises the original exception.
    """
    global _solo
    if count() == 1:
        return call()
    answer: list[Any] = [None, None]
    try:
        if is_main():
            _solo = True
            answer[0] = call()
    except Exception as error:
        answer[1] = str(error) or type(error).__name__
        raise
    finally:
        _solo = False
        _distributed().broadcast_object_list(answer)
    if answer[1] is not None:
        raise HskdError(answer[1])
    return answer[0]  # type: ignore[no-any-return]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    _distributed().all_gather_object(values, value)
    return values


def summed(values: np.ndarray) -> np.ndarray:
    """Return the sum of the arrays of all processes, which must have the same shape."""
    if count() == 1:
        return values
    import torch
    from accelerate import PartialState

    tensor = torch.from_numpy(values).to(PartialState().device)
    _distributed().all_reduce(tensor)
    return tensor.cpu().numpy()  # type: ignore[no-any-return]


def first_to_fail() -> bool:
    """Return whether this process is to print the error message, so that an error is not printed by every process.

    The other processes wait here for a while. The launcher ends all processes when one ends, so the first one needs
    time to print.
    """
    own_rank, many = launched()
    if many == 1:
        return True
    dist = _met()
    if dist is not None:
        # If the process that hosts the counter is gone, it has failed before this one.
        with contextlib.suppress(RuntimeError):
            if dist.distributed_c10d._get_default_store().add("hskd: failed", 1) == 1:
                return True
    elif own_rank == 0:
        return True
    time.sleep(_LEAD)
    # Before start(), all processes read the same arguments. If this one is still running, the main process has found no
    # error in them, and this one must report its own.
    return dist is None
