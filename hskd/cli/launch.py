"""What ``accelerate launch`` starts more than once: who divides the work, and who has nothing to do."""

from __future__ import annotations

import os

import typer

from hskd import processes
from hskd.cli.progress import console

SHARED = ("teacher", "store", "distill", "grid")
"""Commands that divide their work, or say that they do not."""


def leave_to_main() -> None:
    """Go on in the main process, as though it were alone; the others end here."""
    if not processes.leave_to_main():
        raise typer.Exit


def note_missing_processes() -> None:
    """Say so where ``accelerate launch`` was asked for several processes and started one.

    That is what it does on CPUs without MPI. It leaves an address to meet at, and no one to meet.
    """
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and processes.launched()[1] == 1:
        console().print(
            "accelerate launch has started one process; to have several on CPUs, give it --multi_gpu (which it needs "
            "there, too) and no --cpu, and give hskd --device cpu."
        )
