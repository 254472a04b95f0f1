"""Processes started by ``accelerate launch``: which commands divide their work, and which run in one process."""

from __future__ import annotations

import os

import typer

from hskd import processes
from hskd.cli.progress import console

SHARED = ("teacher", "store", "distill", "grid")
"""Commands that divide their work among processes, or refuse to."""


def leave_to_main() -> None:
    """Continue in the main process as if it were alone, and end all others."""
    if not processes.leave_to_main():
        raise typer.Exit


def note_missing_processes() -> None:
    """Print a hint if ``accelerate launch`` was asked for several processes but started one.

    It does so on CPUs without MPI: it sets a rendezvous address, but no other process joins.
    """
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and processes.launched()[1] == 1:
        console().print(
            "accelerate launch has started one process. To have several on CPUs, give it --multi_gpu (which it needs "
            "there, too) and no --cpu, and give hskd --device cpu."
        )
