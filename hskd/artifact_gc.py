"""List the artifacts in the work folder, and remove those that were not used recently. Results are never touched."""

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
        kind: teachers, general, students, stores, trials or remote.
        folder: its folder.
        bytes: size on disk in bytes.
        used: time of its last use, in seconds since the epoch.
        recipe: what it was made from.
        finished: whether it is complete.
    """

    kind: str
    folder: Path
    bytes: int
    used: float
    recipe: dict[str, Any]
    finished: bool


def artifacts(work: Path) -> list[Artifact]:
    """Return all artifacts in the work folder, the most recently used first.

    Raises:
        HskdError: there is no such folder.
    """
    if not work.is_dir():
        raise HskdError(f"{work}: no such folder; --work names the folder with the artifacts of earlier runs.")
    entries = []
    for note in work.glob(f"*/*{RECIPE_SUFFIX}"):
        folder = note.with_name(note.name.removesuffix(RECIPE_SUFFIX))
        for path, finished in ((folder, True), (folder.with_name(folder.name + ".partial"), False)):
            if path.is_dir():
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                entries.append(Artifact(note.parent.name, path, size, note.stat().st_mtime, read_json(note), finished))
    return sorted(entries, key=lambda artifact: -artifact.used)


def collect(work: Path, older_than_days: float, kinds: tuple[str, ...] = (), dry_run: bool = False) -> list[Artifact]:
    """Remove artifacts that were not used for some days, and return them. Artifacts in use are kept.

    Args:
        work: the work folder.
        older_than_days: minimum number of days since the last use; 0 removes everything.
        kinds: kinds of artifacts to remove; all if empty.
        dry_run: only return what would be removed.

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
            continue  # It is being built, or is a running trial.
        removed.append(artifact)
    return removed
