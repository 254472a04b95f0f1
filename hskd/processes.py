"""The processes that work on one command together, as ``accelerate launch`` starts them; one alone is main."""

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

# A command that has not met other processes imports neither torch nor accelerate for asking how many there are.
if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")

# A process that fails ends the others through its launcher; one that waits may have to wait for a teacher's pass.
_PATIENCE = timedelta(days=7)
_LEAD = 10.0
"""Seconds that a process which fails leaves to one that has failed before it."""
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCH_BY_MPI = ("OMPI_COMM_WORLD_", "PMI_", "MPI_LOCAL", "MV2_COMM_WORLD_")

# The variables of torchrun and of MPI that accelerate reads, in its order; the first that is set counts.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_WORLD_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")

_solo = False


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of these variables that holds a number from 0."""
    values = (int(os.environ.get(name, -1)) for name in names)
    return next((value for value in values if value >= 0), default)


def _distributed() -> ModuleType:
    """``torch.distributed``, for what only processes that have met do."""
    import torch.distributed

    return torch.distributed


def _met() -> ModuleType | None:
    """``torch.distributed`` if this process has met others, else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def launched() -> tuple[int, int]:
    """Which of how many processes the launcher says that this is, whether they have met or not."""
    return _from_environment(_RANK, 0), _from_environment(_WORLD_SIZE, 1)


def require_one_each(device: str) -> None:
    """Refuse a device that several processes cannot have one each of; said before it is looked for.

    Raises:
        HskdError: this process was launched with others, and ``device`` is one alone.
    """
    _, many = launched()
    if many > 1 and device not in ("auto", "cpu", "cuda"):
        raise HskdError(f"--device {device}: {many} processes take a device each; give --device cuda or --device cpu.")


def start(device: torch.device) -> torch.device:
    """Meet the other processes, if this one was launched with others, and say on which device it works.

    Args:
        device: what was asked for; ``cuda`` becomes this process's own.

    Raises:
        HskdError: there is no such device for every process.
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
        raise HskdError(f"{many} processes were launched, and {state.num_processes} can work together on {device}.")
    return device if device.type == "cpu" else state.device


def stop() -> None:
    """Part from the other processes, once all are done."""
    if (dist := _met()) is not None:
        barrier()
        dist.destroy_process_group()


def leave_to_main() -> bool:
    """For work that one process does: whether this is the one; it goes on as though it had been started alone."""
    rank, _ = launched()
    if rank == 0:
        for name in [name for name in os.environ if name in _LAUNCH or name.startswith(_LAUNCH_BY_MPI)]:
            del os.environ[name]
    return rank == 0


def count() -> int:
    """How many processes work together.

    Raises:
        HskdError: several were launched and have not met.
    """
    if _solo:
        return 1
    if (dist := _met()) is not None:
        return int(dist.get_world_size())
    if launched()[1] > 1:
        raise HskdError("several processes were launched, and have not met: call hskd.processes.start(device) first.")
    return 1


def rank() -> int:
    """Which of them this is; 0 is the main one."""
    return int(_distributed().get_rank()) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait until all are here."""
    if count() > 1:
        _distributed().barrier()


def by_main(call: Callable[[], T]) -> T:
    """Have the main process call, and give everyone its answer: what was written is there, what is decided is agreed.

    Within the call it is alone, so that whatever it calls may ask for others and finds none.

    Raises:
        HskdError: the call failed; in the main process, whatever it raised.
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
    """The values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    _distributed().all_gather_object(values, value)
    return values


def summed(values: np.ndarray) -> np.ndarray:
    """The sum of all processes' arrays, which have the same shape."""
    if count() == 1:
        return values
    import torch
    from accelerate import PartialState

    tensor = torch.from_numpy(values).to(PartialState().device)
    _distributed().all_reduce(tensor)
    return tensor.cpu().numpy()  # type: ignore[no-any-return]


def first_to_fail() -> bool:
    """Whether this process is to say that something is wrong: an error has one message, not one of each.

    Another one waits here a little, so that the launcher, which ends all when one ends, lets the first one speak.
    """
    own_rank, many = launched()
    if many == 1:
        return True
    dist = _met()
    if dist is not None:
        # If whoever keeps the count is gone, it has failed before.
        with contextlib.suppress(RuntimeError):
            if dist.distributed_c10d._get_default_store().add("hskd: failed", 1) == 1:
                return True
    elif own_rank == 0:
        return True
    time.sleep(_LEAD)
    return (
        dist is None
    )  # before they meet, all read the same words; only if the main one found no fault are we still here
