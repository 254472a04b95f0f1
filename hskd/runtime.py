"""Device, precision, threads and memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hskd.errors import HskdError

# torch is imported inside functions, because settings import this module only for the name DType.
if TYPE_CHECKING:
    import torch

DType = Literal["auto", "fp32", "bf16"]
StoreOnDevice = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class RunOptions:
    """Options of training on this machine. Options that change the bits are recorded, and must not change on resuming.

    Attributes:
        dtype: resolved precision: fp32, or bf16 for autocast.
        device: the device to train on.
        checkpoints: whether to save a checkpoint after every epoch, so that a killed run can resume.
        report_to: a reporter of ``transformers.Trainer``, such as tensorboard.
        compile: whether to run a student's layers through ``torch.compile``.
        accumulate: number of parts into which a process splits its share of a batch (gradient accumulation). With
            several parts or processes, losses are equal up to rounding, and dropout masks differ.
        store_on_device: whether the store that a stage trains from is placed on the device (``always``) or read from
            disk (``never``). ``auto`` places it on a CUDA device if it takes at most half of the free memory there.
            Losses do not depend on it, so it is not recorded.
        capture: whether a GPU runs every training step as one captured graph. Batches are then padded to few widths,
            so dropout masks differ, and losses are equal up to rounding without dropout.

    Raises:
        HskdError: the reporter is unknown, or its package is not installed.
    """

    dtype: str
    device: torch.device = field(default_factory=lambda: resolve_device("cpu"))
    checkpoints: bool = True
    report_to: str = "none"
    compile: bool = False
    accumulate: int = 1
    store_on_device: StoreOnDevice = "auto"
    capture: bool = False

    def __post_init__(self) -> None:
        require_reporter(self.report_to)


def check_device(device: str) -> str:
    """Return ``device`` if it has the form of a device name. This needs no torch.

    Raises:
        HskdError: it is not a device name.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", device):
        raise HskdError(f"device {device!r}: expected auto, cpu, cuda, cuda:0 (the first GPU) or mps.")
    return device


def resolve_device(device: str = "auto") -> torch.device:
    """Return the device with that name. ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        HskdError: this machine has no such device.
    """
    import torch

    if check_device(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda":
        if not torch.backends.cuda.is_built():
            raise HskdError(f"device {device}: this PyTorch ({torch.__version__}) is built without CUDA; use cpu.")
        if (resolved.index or 0) >= (count := torch.cuda.device_count()):
            raise HskdError(f"device {device}: PyTorch sees {count} GPUs here; use cpu, or an existing GPU.")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise HskdError(f"device {device}: PyTorch sees no Apple GPU here; use cpu.")
    return resolved


def require_reporter(name: str) -> None:
    """Check that ``transformers.Trainer`` knows a reporter and its package is installed.

    Raises:
        HskdError: names the reporters that can be used.
    """
    if name == "none":
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    usable = sorted(get_available_reporting_integrations())
    if name not in INTEGRATION_TO_CALLBACK and name != "all":
        raise HskdError(
            f"--report-to {name}: unknown; expected none, all or one of {', '.join(INTEGRATION_TO_CALLBACK)}."
        )
    if name != "all" and name not in usable:
        raise HskdError(
            f"--report-to {name}: its package is not installed; install it, or use one of none, {', '.join(usable)}."
        )


def _cpu_has_native_bf16() -> bool:
    """Return whether the CPU computes in bf16, and no environment variable limits torch to older instructions."""
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    # In oneDNN, the instruction sets with bf16 are those whose names contain BF16, FP16, AMX or AVX10.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if limit not in ("ALL", "DEFAULT") and not any(kind in limit for kind in ("BF16", "FP16", "AMX", "AVX10")):
        return False
    return _native_bf16_flags()


@lru_cache
def _native_bf16_flags() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(dtype: DType, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision of the forward pass. ``auto`` is bf16 autocast if it is native, otherwise fp32.

    Native means a CUDA device that supports bf16, or a CPU with ``avx512_bf16`` or ``amx_bf16`` that neither
    ``ATEN_CPU_CAPABILITY`` nor ``ONEDNN_MAX_CPU_ISA`` limits to older instructions.

    Raises:
        HskdError: ``dtype`` is not auto, fp32 or bf16, or the device cannot compute in it.
    """
    import torch

    if dtype == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if device.type == "cpu" and _cpu_has_native_bf16() else "fp32"
    if dtype not in ("fp32", "bf16"):
        raise HskdError(f"dtype {dtype!r} is unknown: use auto, fp32 or bf16.")
    if dtype == "bf16" and device.type != "cpu":
        try:
            with autocast(dtype, device):
                torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
        except (RuntimeError, TypeError) as error:
            raise HskdError(
                f"--dtype bf16: {device} cannot compute in it ({str(error).splitlines()[0]}); use fp32."
            ) from None
    return dtype


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return an autocast context for a resolved ``dtype``. ``fp32`` disables autocast."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def set_threads(threads: int | None) -> int:
    """Set torch's number of CPU threads unless ``threads`` is None, and return it. The number changes the bits."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def free_memory(device: torch.device) -> int | None:
    """Return the bytes of a CUDA device that are free for this process; None for other devices."""
    import torch

    if device.type != "cuda":
        return None
    # PyTorch keeps freed memory for itself, and the driver does not count it as free.
    kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept_by_torch


def release_memory() -> None:
    """Return freed memory to the system. glibc would keep it, and with it a teacher's memory for hours."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # The C library is not glibc.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
