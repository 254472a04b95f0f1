"""Provenance of a run: versions, machine and git commit, recorded with every result.

An unknown fact is None and never an error.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("hskd", "torch", "transformers", "datasets", "accelerate", "numpy")


@lru_cache
def provenance() -> dict[str, Any]:
    """Return the versions, machine and git commit that a reader needs to judge or reproduce a result."""
    return {
        **versions(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "cuda": _cuda_device(),
        "git_commit": git_commit(Path(__file__)) or _installed_commit(),
    }


def versions() -> dict[str, str | None]:
    """Versions of hskd, Python and the main libraries, by name; none of the libraries is imported."""
    installed = {name: _version(name) for name in _LIBRARIES}
    return {"hskd": installed.pop("hskd"), "python": sys.version.split()[0], **installed}


def git_commit(file: Path) -> str | None:
    """Return the checked-out commit of the repository that tracks ``file``; None if no repository does.

    A repository may contain the virtual environment without tracking ``file``. Its commit says nothing about the file.
    """
    folder = str(file.resolve().parent)
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: str, *arguments: str) -> str | None:
    """Return the output of a git command; None if git is not installed, fails or prints nothing."""
    # Environment variables, such as those in a git hook, may name another repository than that of this folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=False, timeout=30, env=environment
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _installed_commit() -> str | None:
    """Return the commit that pip installed hskd from, if it was installed from a git URL (PEP 610); otherwise None."""
    try:
        text = distribution("hskd").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return str(commit) if commit else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except (PackageNotFoundError, OSError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cuda_device() -> str | None:
    import torch

    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except RuntimeError:  # an incompatible driver
        return None
