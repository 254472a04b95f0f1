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
"""A path, in which ``~`` means home; or a URL, or a name."""


@dataclass(frozen=True)
class Machine:
    """Resolved precision, device and threads: they change the bits, so they are part of every config."""

    dtype: str
    device: str
    threads: int
    build_threads: int

    @classmethod
    def here(cls, threads: int = 1, dtype: DType = "auto") -> Machine:
        """This machine: ``threads`` to a trial, all cores for what trials share."""
        device = resolve_device()
        return cls(resolve_dtype(dtype, device), str(device), threads, os.cpu_count() or 1)


class TaskPlan(BaseModel):
    """Which examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(description="A task by its name (hskd teacher --help lists them).")] = "mr"
    data: Annotated[Place | None, Field(description="Folder, file, URL or hub name of the examples.")] = None
    text_columns: Annotated[tuple[str, ...] | None, Field(description="custom, reranking: the text columns.")] = None
    label_column: Annotated[str | None, Field(description="custom, reranking: the label column.")] = None
    label_type: Annotated[
        LabelType | None,
        # Left out where it is not given, as in the trials recorded so far.
        Field(description="custom: what labels are [default: as they look].", exclude_if=lambda value: value is None),
    ] = None
    max_length: Annotated[int | None, Field(ge=3, le=MAX_TOKENS, description="Tokens an example is cut to.")] = None
    train_examples: Annotated[
        int | None, Field(ge=1, description="A fixed random subset for the students [default: all].")
    ] = None

    augment: Annotated[
        Place | None,
        # Left out where there is none: a trial is named by the fingerprint of all that is written here.
        Field(description="File of further sentences, without labels.", exclude_if=lambda value: value is None),
    ] = None

    held_out: Annotated[
        int | None,
        Field(
            ge=1,
            description="Training examples that take the place of dev and test; neither teacher nor student trains on "
            "them, and nothing else is scored. For a search of rates.",
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
    """Which teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[Place, Field(description="Local folder, hub name, or offline:minilm.")] = OFFLINE_MINILM
    fine_tuned: Annotated[bool, Field(description="The model is a teacher already: do not fine-tune it.")] = False
    examples: Annotated[int | None, Field(ge=1, description="Training examples of the teacher [default: all].")] = None
    settings: TeacherSettings = TeacherSettings()


class GivenStudent(BaseModel):
    """A student that is there already, in a folder of the user's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["given"] = "given"
    folder: Place

    @property
    def name(self) -> str:
        """For people: the folder."""
        return self.folder

    @property
    def layers(self) -> int:
        """``L_S``."""
        return int(self._config().num_hidden_layers)

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """The configuration of the student, whatever the teacher."""
        return self._config()

    def _config(self) -> PretrainedConfig:
        from hskd.teachers.loading import load_config

        return load_config(self.folder)


class TrialConfig(BaseModel):
    """One distillation. Its fingerprint names the result; threads and precision change the bits, so they are in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskPlan
    teacher: TeacherPlan | None
    """None where no teacher runs: the trial trains from ``store``, or from labels alone."""
    student: AnyStudent | GivenStudent
    settings: DistillSettings
    spec: HSKSpec | None
    """What the HSK stage distils; None where there is none."""
    dtype: str
    """Resolved: fp32, or bf16 for autocast."""
    device: str
    threads: int
    """CPU threads of the trial; one is the best use of a machine that runs a trial on every core."""
    build_threads: int
    """CPU threads of what trials share: teacher, students, superset."""
    # Left out where it is off: a trial is named by the fingerprint of all that is written here.
    online: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """The teacher runs in the training loop, and nothing is stored."""
    store: Annotated[Place | None, Field(exclude_if=lambda value: value is None)] = None
    """Folder of a store that is there already, from which the trial trains."""
    store_alone: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """The training examples come from ``store`` too, and nothing is scored."""
    files: dict[str, str] = {}
    """Fingerprints of the user's own files behind ``task.data``, ``task.augment``, ``teacher.model``, the student's
    ``checkpoint`` or ``text``, and of a given ``student`` and ``store``: a path says nothing of them."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the name of the trial's result."""
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The config as JSON; without ``files`` where nothing of it lies in files of the user's.

        Of given folders (see :func:`hskd.trials.inputs.with_contents`) it has the contents, not the paths.
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
        """For people: the spec's short form, or the arm."""
        return self.spec.label if self.spec and self.settings.arm == "spec" else self.settings.arm

    @property
    def title(self) -> str:
        """For people: arm or spec, and seed."""
        return f"{self.point}, seed {self.settings.seed}"

    @property
    def given(self) -> bool:
        """Whether everything that the trial trains from is given as a folder, so that nothing is built for it."""
        return isinstance(self.student, GivenStudent)

    @property
    def student_name(self) -> str:
        """For people: the student's kind and sizes."""
        return self.student.name

    def recipe(self, *parts: str) -> dict[str, Any]:
        """The named parts of the config, and the machine: what an artifact that trials share depends on."""
        content = self.model_dump(mode="json", include={*parts, "dtype", "device", "build_threads"})
        # Augmented sentences are in no teacher and no student, and a store is named by its examples.
        files = {name: key for name, key in self.files.items() if name != "augment"}
        return content | ({"files": files} if files else {})
