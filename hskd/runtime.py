"""What a run stands on: device, precision, threads, and the provenance recorded beside every result."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from hskd.errors import HskdError

DType = Literal["auto", "fp32", "bf16"]
_LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "numpy", "hskd")


def resolve_device(device: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, then Apple's MPS, then the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@lru_cache
def _cpu_has_native_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(dtype: DType, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of the forward pass: ``auto`` is bf16 autocast where it is native, else fp32.

    Native means a CUDA device that supports bf16, or a CPU with ``avx512_bf16`` or ``amx_bf16``.

    Raises:
        HskdError: ``dtype`` is none of auto, fp32, bf16.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if device.type == "cpu" and _cpu_has_native_bf16() else "fp32"
    if dtype not in ("fp32", "bf16"):
        raise HskdError(f"dtype {dtype!r} is unknown: use auto, fp32 or bf16.")
    return dtype


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Autocast context for a resolved ``dtype`` (``fp32`` disables it)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def set_threads(threads: int | None) -> int:
    """Set the CPU threads of torch, if asked to, and return how many it uses: the number changes the bits."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def release_memory() -> None:
    """Give freed memory back to the system, as glibc does not by itself: a teacher's would stay for hours."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    result = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@lru_cache
def provenance() -> dict[str, Any]:
    """Versions, machine and git commit: what a reader needs to judge or repeat a number."""
    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in _LIBRARIES},
        "machine": _processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": _git_commit(),
    }
