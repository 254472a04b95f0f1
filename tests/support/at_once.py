"""Two processes that make one artifact at the same time. Run as a script, this is one of them."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from support.calls import CPU_RUN, Calls
from support.distill_lab import Lab

import hskd
from hskd import artifacts
from hskd.progress import Progress
from hskd.spec import HSKSpec
from hskd.students.general.distillation import general_distill
from hskd.students.general.settings import GeneralSettings
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.teachers.finetune import finetune
from hskd.teachers.settings import TeacherSettings
from hskd.trials.config import GivenStudent, TaskPlan, TrialConfig
from hskd.trials.settings import DistillSettings

KINDS = ("distill", "teacher", "student", "general")
Make = Callable[[Path, Progress], object]


def make_together(number: int, make: Make, scratch: Path) -> None:
    """Make ``scratch/together`` as one of two processes, and record its messages.

    Process 1 begins after process 0 has begun. Process 0 continues when process 1 reports that it waits.
    """
    begun, waiting = scratch / "begun", scratch / "waiting"
    told: dict[str, list[str]] = {"titles": [], "said": [], "error": []}

    def begin(title: str) -> None:
        told["titles"].append(title)
        begun.touch()
        until(waiting.exists)

    def say(message: str) -> None:
        told["said"].append(message)
        if "another process" in message:
            waiting.touch()

    if number == 1:
        until(begun.exists)
    try:
        make(scratch / "together", Calls(begin=begin, say=say))
    except BaseException as error:
        told["error"].append(f"{type(error).__name__}: {error}")
    (scratch / f"told-{number}.json").write_text(json.dumps(told), encoding="utf-8")


def until(there: Callable[[], bool]) -> None:
    """Wait until the condition holds, or give up."""
    deadline = time.monotonic() + 200  # the other process may still import its libraries
    while not there() and time.monotonic() < deadline:
        time.sleep(0.01)


def makers(lab: Lab, data: Path, body: Path, root: Path) -> dict[str, Make]:
    def distill(folder: Path, progress: Progress) -> object:
        config = TrialConfig(
            task=TaskPlan(name="custom", data=str(data), text_columns=("sentence",), label_column="mood"),
            teacher=None,
            student=GivenStudent(folder=str(lab.root / "narrow")),
            settings=DistillSettings(hsk_epochs=2, prediction_epochs=2, batch_size=16),
            spec=HSKSpec.parse("2l_3t_0.5w"),
            dtype="fp32",
            device="cpu",
            threads=1,
            build_threads=1,
            store=str(lab.root / "superset"),
        )
        return hskd.run_trial(config, root / "work", folder, progress)

    settings = TeacherSettings(epochs=2, batch_size=16)
    text = root / "text.txt"
    text.write_text("a warm and funny film of the bright story\n" * 60, encoding="utf-8")
    sizes = {"layers": 1, "width": 16, "heads": 2, "ffn": 16, "chunk_tokens": 12, "epochs": 2}
    general = GeneralSettings(text=text, **sizes)  # type: ignore[arg-type]
    pruned = RositaSettings(layers=2, heads=2, ffn=24)
    return {
        "distill": distill,
        "teacher": lambda folder, told: finetune(str(body), lab.task, lab.splits, settings, folder, CPU_RUN, told),
        "student": lambda folder, told: create_rosita(lab.teacher, lab.train, pruned, folder, progress=told),
        "general": lambda folder, told: general_distill(str(body), general, folder, CPU_RUN, told),
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    root, data, body, out = map(Path, sys.argv[2:])
    torch.set_num_threads(1)
    gc.freeze()
    artifacts._PATIENCE = 0.05
    opened = Lab.open(root, data)
    for name, make in makers(opened, data, body, out).items():
        (out / name).mkdir(exist_ok=True)
        make_together(number, make, out / name)
