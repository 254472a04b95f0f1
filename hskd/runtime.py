"""Device, precision, threads and memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hskd.errors import HskdError

# Imported where it is used: settings take only the name DType from here.
if TYPE_CHECKING:
    import torch

DType = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class RunOptions:
    """How training runs on this machine. Options that change the bits are recorded and must stay as they are.

    Attributes:
        dtype: resolved: fp32, or bf16 for autocast.
        device: where the model trains.
        checkpoints: save one after every epoch, so that a killed run can resume.
        report_to: a reporter of ``transformers.Trainer``, such as tensorboard.
        compile: run a student's layers through ``torch.compile``.
        accumulate: parts that a process cuts its share of a batch into, one after the other; with several parts or
            processes, losses are equal to rounding, and dropout masks differ.
    """

    dtype: str
    device: torch.device = field(default_factory=lambda: resolve_device("cpu"))
    checkpoints: bool = True
    report_to: str = "none"
    compile: bool = False
    accumulate: int = 1


def resolve_device(device: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, then Apple's MPS, then the CPU."""
    import torch

    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _cpu_has_native_bf16() -> bool:
    """Whether the CPU computes in bf16, and no environment variable holds torch's kernels to older instructions."""
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    # oneDNN's names: those for processors with bf16 end in BF16, or name FP16 or AMX.
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
    """The precision of the forward pass: ``auto`` is bf16 autocast where it is native, else fp32.

    Native means a CUDA device that supports bf16, or a CPU with ``avx512_bf16`` or ``amx_bf16``
    whose kernels neither ``ATEN_CPU_CAPABILITY`` nor ``ONEDNN_MAX_CPU_ISA`` holds to older instructions.

    Raises:
        HskdError: ``dtype`` is none of auto, fp32, bf16.
    """
    if dtype == "auto":
        import torch

        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if device.type == "cpu" and _cpu_has_native_bf16() else "fp32"
    if dtype not in ("fp32", "bf16"):
        raise HskdError(f"dtype {dtype!r} is unknown: use auto, fp32 or bf16.")
    return dtype


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Autocast context for a resolved ``dtype`` (``fp32`` disables it)."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def set_threads(threads: int | None) -> int:
    """Set the CPU threads of torch, if asked to, and return how many it uses: the number changes the bits."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def release_memory() -> None:
    """Give freed memory back to the system, as glibc does not by itself: a teacher's would stay for hours."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
