"""What lies in the work folder, and clearing out what has not been used for long. Results are never touched."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hskd.artifacts import RECIPE_SUFFIX, lock_path
from hskd.errors import HskdError
from hskd.io import read_json

DAY = 24 * 3600


@dataclass(frozen=True)
class Artifact:
    """One artifact, finished or not.

    Attributes:
        kind: teachers, general, students, stores or trials.
        folder: where it lies.
        bytes: size on disk.
        used: seconds since the epoch at which it was last made or asked for.
        recipe: what it was made from.
        finished: whether it is whole.
    """

    kind: str
    folder: Path
    bytes: int
    used: float
    recipe: dict[str, Any]
    finished: bool


def artifacts(work: Path) -> list[Artifact]:
    """Everything in the work folder, the most recently used first.

    Raises:
        HskdError: there is no such folder.
    """
    if not work.is_dir():
        raise HskdError(f"{work}: no such folder; --work names the folder that runs kept their artifacts in.")
    entries = []
    for note in work.glob(f"*/*{RECIPE_SUFFIX}"):
        folder = note.with_name(note.name.removesuffix(RECIPE_SUFFIX))
        for path, finished in ((folder, True), (folder.with_name(folder.name + ".partial"), False)):
            if path.is_dir():
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                entries.append(Artifact(note.parent.name, path, size, note.stat().st_mtime, read_json(note), finished))
    return sorted(entries, key=lambda artifact: -artifact.used)


def collect(work: Path, older_than_days: float, kinds: tuple[str, ...] = (), dry_run: bool = False) -> list[Artifact]:
    """Remove artifacts that were not used for so many days, and return them; one in use stays.

    Args:
        work: the work folder.
        older_than_days: 0 removes everything.
        kinds: only these; all if empty.
        dry_run: remove nothing.

    Raises:
        HskdError: there is no such folder.
    """
    before = time.time() - older_than_days * DAY
    removed = []
    for artifact in artifacts(work):
        if artifact.used > before or (kinds and artifact.kind not in kinds):
            continue
        whole = artifact.folder.with_name(artifact.folder.name.removesuffix(".partial"))
        try:
            with FileLock(lock_path(whole), timeout=0):
                if not dry_run:
                    shutil.rmtree(artifact.folder)
                    whole.with_name(whole.name + RECIPE_SUFFIX).unlink(missing_ok=True)
        except Timeout:
            continue  # being built, or a trial that runs
        removed.append(artifact)
    return removed
