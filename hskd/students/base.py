"""What every kind of student is: settings that say its sizes, what it is made from, and how it is made."""

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
"""Beside a student: what it was made from."""


@dataclass(frozen=True, eq=False)
class StudentContext:
    """What a kind of student may be made from. Nothing is loaded or made before it is asked for.

    Attributes:
        task: the task; its head says what the student predicts.
        model: folder or name of the model that the teacher is made from.
        teacher: loads the fine-tuned teacher.
        teacher_key: identifies that teacher.
        train: the task's training examples, with labels.
        artifact_folder: the folder of a further artifact, given its type and its recipe, such as a general student.
        device: where to compute.
        machine: ``dtype``, ``device`` and ``build_threads`` as a recipe holds them: they change the bits.
        files: fingerprints of the user's own files behind the data, the model, and :meth:`StudentKind.files`.
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
        """The fingerprints of those of the named files that are there."""
        return {name: self.files[name] for name in names if name in self.files}


class StudentKind(BaseModel):
    """Base of the kinds of student. Its fields are the settings: they are part of what identifies a trial.

    A subclass has a field ``kind``, a ``Literal`` with its name as default, and is registered with
    ``@STUDENTS.register`` (:mod:`hskd.students.registry`). It also says the student's ``layers`` (without the embedding
    output), in a field or in a property.
    """

    if TYPE_CHECKING:
        kind: str

        @property
        def layers(self) -> int:
            """``L_S``."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @property
    def name(self) -> str:
        """For people: kind and sizes. Results of a grid are told apart by it."""
        raise NotImplementedError

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """The configuration of a student with that head; ``teacher`` is that of the teacher's body."""
        raise NotImplementedError

    def files(self) -> dict[str, Path | str | None]:
        """Files and folders of the user's own that the student is made from, by a name for each."""
        return {}

    def contents(self) -> dict[str, str]:
        """Fingerprints of the bytes that the student is made from, beside teacher and data, by a name for each."""
        return {}

    def tokenizer_model(self, teacher: str) -> str:
        """The model whose tokenizer the student has: ``teacher``, or one with another tokenizer."""
        return teacher

    def with_checkpoint(self, checkpoint: str) -> dict[str, Any] | None:
        """The fields to change for a student from another checkpoint; None where the kind has none."""
        return None

    def recipe(self, context: StudentContext) -> dict[str, Any]:
        """Everything that the student depends on, as JSON: its folder is named by the fingerprint."""
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
        """Make the student in ``folder``: model, tokenizer and ``student.json``; a finished one is left as it is."""
        raise NotImplementedError
