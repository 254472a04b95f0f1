"""Base class of the kinds of student, and the context from which a student is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from hskd.heads import Head
    from hskd.progress import Progress
    from hskd.tasks import Task, TokenizedSplit
    from hskd.teachers.loading import Teacher

STUDENT_FILE = "student.json"
"""File in a student's folder that records what the student was made from."""


@dataclass(frozen=True, eq=False)
class StudentContext:
    """Everything that a student can be made from. The callables load or make their result on demand.

    Attributes:
        task: the task; its head defines what the student predicts.
        model: folder or name of the model that the teacher was fine-tuned from.
        teacher: loads the fine-tuned teacher.
        teacher_key: returns the identity of that teacher.
        train: returns the task's training examples, with labels.
        artifact_folder: returns the folder of another artifact, such as a general student, given its type and recipe.
        device: the device to compute on.
        machine: ``dtype``, ``device`` and ``build_threads`` for the recipe, because they change the result's bits.
        files: fingerprints, by name, of the user's own files: the data, the model, and :meth:`StudentKind.files`.
    """

    task: Task
    model: str
    teacher: Callable[[], Teacher]
    teacher_key: Callable[[], str]
    train: Callable[[], TokenizedSplit]
    artifact_folder: Callable[[str, dict[str, Any]], Path]
    device: torch.device
    machine: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def files_of(self, *names: str) -> dict[str, str]:
        """Return the fingerprints of the named files, leaving out names that have none."""
        return {name: self.files[name] for name in names if name in self.files}


class StudentKind(BaseModel):
    """Base class of the kinds of student. Its fields are the student's settings, and part of a trial's identity.

    A subclass has a field ``kind``, a ``Literal`` with its name as default, and is registered with
    ``@STUDENTS.register`` (:mod:`hskd.students.registry`). It also defines ``layers``, as a field or a property: the
    student's number of layers, without the embedding output.
    """

    if TYPE_CHECKING:
        kind: str

        @property
        def layers(self) -> int:
            """``L_S``, the number of layers."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @property
    def name(self) -> str:
        """Readable name with kind and sizes. It distinguishes the students in a grid's results."""
        raise NotImplementedError

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """Return the configuration of a student with ``head``, given the configuration of the teacher's body."""
        raise NotImplementedError

    def files(self) -> dict[str, Path | str | None]:
        """Return the user's own files and folders that the student is made from, by name."""
        return {}

    def contents(self) -> dict[str, str]:
        """Return fingerprints, by name, of what the student is made from in addition to the teacher and the data."""
        return {}

    def tokenizer_model(self, teacher: str) -> str:
        """Return the model whose tokenizer the student uses: ``teacher``, or a model with another tokenizer."""
        return teacher

    def with_checkpoint(self, checkpoint: str) -> dict[str, Any] | None:
        """Return the fields to change for a student from ``checkpoint``; None if the kind uses no checkpoint."""
        return None

    def recipe(self, context: StudentContext) -> dict[str, Any]:
        """Return everything that the student depends on, as JSON. Its fingerprint names the student's folder."""
        from hskd.tasks.content import labelled

        return {
            "student": self.model_dump(mode="json"),
            "teacher": context.teacher_key(),
            "data": labelled(context.task.head, context.train()),
            **self.contents(),
            **context.machine,
            **({"files": dict(context.files)} if context.files else {}),
        }

    def create(self, context: StudentContext, folder: Path, progress: Progress) -> Path:
        """Make the student in ``folder``: model, tokenizer and ``student.json``. A finished student stays unchanged."""
        raise NotImplementedError
