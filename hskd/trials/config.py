"""The config of one trial: everything that its result depends on, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from hskd.errors import HskdError
from hskd.hashing import fingerprint
from hskd.io import with_home
from hskd.runtime import DType, resolve_device, resolve_dtype
from hskd.spec import HSKSpec
from hskd.students.kinds import AnyStudent
from hskd.tasks.choices import MAX_TOKENS, LabelType
from hskd.tasks.registry import TASKS
from hskd.teachers.settings import OFFLINE_MINILM, TeacherSettings
from hskd.trials.settings import DistillSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hskd.heads import Head


Place = Annotated[str, AfterValidator(with_home)]
"""A path, in which ``~`` means home, or a URL, or a name."""


@dataclass(frozen=True)
class Machine:
    """Resolved precision, device and thread counts. They change a result's bits, so every config contains them."""

    dtype: str
    device: str
    threads: int
    build_threads: int

    @classmethod
    def here(cls, threads: int = 1, dtype: DType = "auto") -> Machine:
        """Return the settings of this machine: ``threads`` per trial, and all cores for artifacts that trials share."""
        device = resolve_device()
        return cls(resolve_dtype(dtype, device), str(device), threads, os.cpu_count() or 1)


class TaskPlan(BaseModel):
    """The examples of a trial."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(description="A task by its name (hskd teacher --help lists them).")] = "mr"
    data: Annotated[Place | None, Field(description="Folder, file, URL or hub name of the examples.")] = None
    text_columns: Annotated[tuple[str, ...] | None, Field(description="custom, reranking: the text columns.")] = None
    label_column: Annotated[str | None, Field(description="custom, reranking: the label column.")] = None
    label_type: Annotated[
        LabelType | None,
        # Omitted from the JSON if not given, as in the trials recorded so far.
        Field(description="custom: kind of the labels [default: inferred].", exclude_if=lambda value: value is None),
    ] = None
    max_length: Annotated[int | None, Field(ge=3, le=MAX_TOKENS, description="Tokens an example is cut to.")] = None
    train_examples: Annotated[
        int | None, Field(ge=1, description="A fixed random subset for the students [default: all].")
    ] = None

    augment: Annotated[
        Place | None,
        # Omitted from the JSON if not given: a trial is named by the fingerprint of everything written there.
        Field(description="File of further sentences, without labels.", exclude_if=lambda value: value is None),
    ] = None

    held_out: Annotated[
        int | None,
        Field(
            ge=1,
            description="Training examples to score instead of dev and test. Neither teacher nor student trains on "
            "them, and nothing else is scored. For a search of learning rates.",
            exclude_if=lambda value: value is None,
        ),
    ] = None

    @field_validator("text_columns", mode="before")
    @classmethod
    def _may_be_one(cls, columns: Any) -> Any:
        return (columns,) if isinstance(columns, str) else columns

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            TASKS.require(name)
        except HskdError as error:
            raise ValueError(str(error)) from None
        return name


class TeacherPlan(BaseModel):
    """The teacher of a trial."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[Place, Field(description="Local folder, hub name, or offline:minilm.")] = OFFLINE_MINILM
    fine_tuned: Annotated[bool, Field(description="The model is a teacher already: do not fine-tune it.")] = False
    examples: Annotated[int | None, Field(ge=1, description="Training examples of the teacher [default: all].")] = None
    settings: TeacherSettings = TeacherSettings()


class GivenStudent(BaseModel):
    """A student that already exists, in a folder of the user's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["given"] = "given"
    folder: Place

    @property
    def name(self) -> str:
        """The student's folder, as its name for display."""
        return self.folder

    @property
    def layers(self) -> int:
        """``L_S``."""
        return int(self._config().num_hidden_layers)

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """Return the configuration of the student, which does not depend on the teacher."""
        return self._config()

    def _config(self) -> PretrainedConfig:
        from hskd.teachers.loading import load_config

        return load_config(self.folder)


class TrialConfig(BaseModel):
    """The config of one distillation. Its fingerprint names the result, so it includes threads and precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskPlan
    teacher: TeacherPlan | None
    """The teacher; None if no teacher runs, because the trial trains from ``store`` or from labels alone."""
    student: AnyStudent | GivenStudent
    settings: DistillSettings
    spec: HSKSpec | None
    """The HSK that the HSK stage distils; None if there is no HSK."""
    dtype: str
    """Resolved precision: fp32, or bf16 for autocast."""
    device: str
    threads: int
    """CPU threads of the trial. One thread makes best use of a machine that runs a trial on every core."""
    build_threads: int
    """CPU threads for artifacts that trials share: teacher, students, superset."""
    # Omitted from the JSON if off: a trial is named by the fingerprint of everything written there.
    online: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """Whether the teacher runs in the training loop, and nothing is stored."""
    store: Annotated[Place | None, Field(exclude_if=lambda value: value is None)] = None
    """Folder of an existing store to train from."""
    store_alone: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """Whether the training examples come from ``store`` too, and nothing is scored."""
    files: dict[str, str] = {}
    """Fingerprints of the user's own files behind ``task.data``, ``task.augment``, ``teacher.model``, the student's
    ``checkpoint`` or ``text``, and a given ``student`` and ``store``. A path alone does not identify the contents."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits that name the trial's result."""
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The config as JSON, which the id is computed from; ``files`` is left out if empty.

        For given folders (see :func:`hskd.trials.inputs.with_contents`), it contains fingerprints of their contents
        instead of their paths.
        """
        content = self.model_dump(mode="json", exclude=None if self.files else {"files"})
        if self.given and "student" in self.files:
            content["student"].pop("folder")
            for name, part, key in (
                ("model", content["teacher"], "model"),
                ("store", content, "store"),
                ("data", content["task"], "data"),
                ("augment", content["task"], "augment"),
            ):
                if name in self.files and part is not None:
                    part.pop(key, None)
        return content

    @property
    def point(self) -> str:
        """The spec's short form, or else the arm, for display."""
        return self.spec.label if self.spec and self.settings.arm == "spec" else self.settings.arm

    @property
    def title(self) -> str:
        """Arm or spec, and seed, for display."""
        return f"{self.point}, seed {self.settings.seed}"

    @property
    def given(self) -> bool:
        """Whether everything that the trial trains from is given as a folder, so that no artifact is built for it."""
        return isinstance(self.student, GivenStudent)

    @property
    def student_name(self) -> str:
        """The student's kind and sizes, for display."""
        return self.student.name

    def recipe(self, *parts: str) -> dict[str, Any]:
        """Return the named parts of the config and the machine, on which an artifact shared by trials depends."""
        content = self.model_dump(mode="json", include={*parts, "dtype", "device", "build_threads"})
        # Neither teacher nor student depends on augmented sentences, and a store's recipe contains its examples.
        files = {name: key for name, key in self.files.items() if name != "augment"}
        return content | ({"files": files} if files else {})
