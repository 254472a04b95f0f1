"""A tiny teacher, two students and a superset store on disk, and functions to train with them.

Run as a script, this is the process that the resume tests kill.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from support.calls import Calls
from torch import nn
from transformers import PreTrainedModel

from hskd.distill.source import KnowledgeSource, OnlineSource, StoreSource
from hskd.progress import Progress
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.teachers.loading import Teacher
from hskd.training import HeadModule, StageTrainer, training_arguments
from hskd.trials import stages
from hskd.trials.prepare import Distillation, Prepared, Student, from_store
from hskd.trials.result import TrialResult
from hskd.trials.settings import DistillSettings
from hskd.trials.stages import RunOptions, TrialInputs
from hskd.trials.trial import About, run_prepared

StudentKind = Literal["rosita", "narrow"]
KINDS: tuple[StudentKind, ...] = ("rosita", "narrow")
"""A student as wide as the teacher, without W, and a narrower student with W."""
CPU = torch.device("cpu")
RESUMED = {
    "hsk_epochs": 2,
    "prediction_epochs": 3,
    "batch_size": 12,
    "hsk_lr": 1e-3,
    "prediction_lr": 1e-2,
    "tau": 0.7,
    "max_grad_norm": 3.0,
}
"""The run that is killed: 6 steps an epoch, so 12 of the HSK stage and 18 of the prediction stage."""


@dataclass(frozen=True, eq=False)
class Lab:
    """Contents of ``root``, loaded: ``teacher``, ``rosita``, ``narrow``, ``superset``."""

    root: Path
    task: Task
    splits: dict[str, TokenizedSplit]
    teacher: Teacher

    @classmethod
    def open(cls, root: Path, data: Path) -> Lab:
        loaded = load_task("custom", str(data), ["sentence"], "mood")
        teacher = Teacher.load(str(root / "teacher"), loaded.task)
        return cls(root, loaded.task, tokenize(loaded, teacher.tokenizer, root / "tokens"), teacher)

    @property
    def train(self) -> TokenizedSplit:
        return self.splits["train"]

    @property
    def superset(self) -> Store:
        return Store.open(self.root / "superset")

    def student(self, kind: StudentKind = "rosita", dropout: float = 0.0) -> PreTrainedModel:
        """Return a fresh copy of a student in train mode, with this dropout everywhere."""
        model = Student.load(self.root / kind, self.task).model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        return model

    def classifier(self, kind: StudentKind = "rosita", dropout: float = 0.0) -> HeadModule:
        """Return a fresh copy of a student with the task's head."""
        return HeadModule(self.student(kind, dropout), self.task.head)

    def online(self, spec: HSKSpec | None, layers: int = 2) -> OnlineSource:
        source = OnlineSource(self.teacher, self.train.sep_id, spec, layers)
        source.fit(self.train)
        return source

    def offline(self, spec: HSKSpec, layers: int = 2) -> StoreSource:
        store = derive(self.superset, spec, layers, self.root / "derived" / spec.fingerprint)
        return StoreSource(store, self.train, layers)

    def prepare(
        self, settings: DistillSettings, folder: Path, kind: StudentKind = "rosita", spec: str = "2l_3t_0.5w"
    ) -> tuple[Student, Prepared]:
        student = Student.load(self.root / kind, self.task)
        parsed = HSKSpec.parse(spec)
        return student, from_store(
            self.superset, Distillation(settings, parsed, student, self.task, self.train), folder / "store"
        )

    def trial(
        self,
        folder: Path,
        *,
        kind: StudentKind = "rosita",
        run: RunOptions | None = None,
        progress: Progress | None = None,
        wrap: Callable[[KnowledgeSource | None], KnowledgeSource | None] = lambda source: source,
        spec: str = "2l_3t_0.5w",
        **settings: Any,
    ) -> dict[str, Any]:
        """Run a trial from the store in ``folder``, or resume it, as ``hskd distill`` does."""
        chosen = DistillSettings(**{"hsk_epochs": 2, "prediction_epochs": 1, "batch_size": 16, **settings})
        student, prepared = self.prepare(chosen, folder, kind, spec)
        source = wrap(prepared.source)
        inputs = TrialInputs(
            chosen,
            self.task,
            self.splits,
            student.model,
            prepared.teacher_width,
            source,
            student.folder,
            spread=prepared.spread,
        )
        return run_prepared(inputs, folder, run or RunOptions("fp32"), About(prepared.record), progress).as_json()


def arguments(folder: Path, **changes: Any) -> Any:
    """Return the training arguments of a short run that logs every step."""
    defaults = {"epochs": 5, "learning_rate": 1e-3, "schedule": "constant", "batch_size": 16, "seed": 0}
    return training_arguments(folder, **{**defaults, "dtype": "fp32", "device": CPU, "logging_steps": 1, **changes})


def losses(trainer: StageTrainer) -> list[float]:
    """Train, and return the loss of every step."""
    trainer.run()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the files of a trial's student."""
    files = sorted((folder / "student").glob("*.safetensors"))
    assert (folder / "student" / "model.safetensors") in files
    return {file.name: file.read_bytes() for file in files}


def die(*args: Any, **kwargs: Any) -> None:
    """End the process like a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_until(point: str, root: Path, data: Path, folder: Path) -> None:
    """Run the trial of the resume tests and die at ``point``: after a number of steps, or at a named moment."""
    torch.set_num_threads(1)
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1
        if str(steps) == point:
            die()

    def begin(stage: str) -> None:
        if point == f"begin {stage}":
            die()

    if point == "save hsk":
        stages.save_file = die
    if point == "save result":
        TrialResult.write = die  # type: ignore[method-assign]
    lab = Lab.open(root, data)
    lab.trial(folder, kind="narrow", progress=Calls(advance, begin=begin), **RESUMED)


if __name__ == "__main__":
    gc.freeze()
    # Each point has its own fork, because importing the libraries takes longer than the trial.
    _, root, data, out, *names = sys.argv
    for name in names:
        child = os.fork()
        if child == 0:
            # A name may continue after a comma: the same point in another folder.
            run_until(name.partition(",")[0], Path(root), Path(data), Path(out) / name)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{name}: {status}"
