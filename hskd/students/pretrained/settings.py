"""Settings of a TinyBERT-style student: a narrower encoder, from a checkpoint or distilled from the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import override

from hskd.io import with_home
from hskd.students.base import StudentContext, StudentKind
from hskd.students.general.settings import GeneralSettings
from hskd.students.registry import STUDENTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hskd.heads import Head
    from hskd.progress import Progress


@STUDENTS.register
class TinyBertSettings(StudentKind):
    """Settings of a TinyBERT-style student: an encoder from a checkpoint, or distilled from the teacher's body."""

    kind: Literal["tinybert"] = "tinybert"
    checkpoint: Annotated[
        str | None,  # The validator is outside the union, because some versions of typer cannot handle it inside.
        AfterValidator(lambda place: None if place is None else with_home(place)),
        Field(
            description="Local folder (such as one of `hskd general`) or hub name of a pretrained encoder, such as "
            "huawei-noah/TinyBERT_General_4L_312D.",
            json_schema_extra={"artifact": True},
        ),
    ] = None
    general: Annotated[
        GeneralSettings | None, Field(description="Make the encoder by general distillation from the teacher's body.")
    ] = None
    seed: Annotated[
        int, Field(ge=0, description="Seed of the head's weights.", json_schema_extra={"option": "head_seed"})
    ] = 0

    @model_validator(mode="after")
    def _has_one_origin(self) -> TinyBertSettings:
        if (self.checkpoint is None) == (self.general is None):
            raise ValueError("a student of kind tinybert takes either checkpoint or general")
        return self

    @property
    def layers(self) -> int:
        """``L_S``, the number of layers."""
        if self.general is not None:
            return self.general.layers
        return int(self._checkpoint_config().num_hidden_layers)

    @property
    def name(self) -> str:
        """Readable name with kind and sizes."""
        if self.general is not None:
            return f"tinybert-{self.general.layers}l-{self.general.width}d-{self.general.ffn}ffn-general"
        config = self._checkpoint_config()
        return f"tinybert-{config.num_hidden_layers}l-{config.hidden_size}d-{_ffn(config)}ffn"

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """Return the configuration of a student with ``head``, given the configuration of the teacher's body."""
        if self.general is None:
            config = self._checkpoint_config()
            return type(config).from_dict({**config.to_dict(), **head.config_fields()})
        from hskd.students.general.narrow import narrow_config

        sizes = self.general
        config = narrow_config(teacher, sizes.layers, sizes.width, sizes.heads, sizes.ffn)
        return type(config).from_dict({**config.to_dict(), **head.config_fields()})

    def _checkpoint_config(self) -> PretrainedConfig:
        from hskd.students.pretrained.checkpoint import checkpoint_config

        return checkpoint_config(self.checkpoint or "")

    @override
    def tokenizer_model(self, teacher: str) -> str:
        from hskd.students.pretrained.checkpoint import checkpoint_tokenizer
        from hskd.tasks.alignment import differ
        from hskd.teachers.loading import load_tokenizer

        own = None if self.checkpoint is None else checkpoint_tokenizer(self.checkpoint)
        return teacher if own is None or not differ(own, load_tokenizer(teacher)) else str(self.checkpoint)

    @override
    def files(self) -> dict[str, Path | str | None]:
        return {"checkpoint": self.checkpoint, "text": self.general.text if self.general else None}

    @override
    def contents(self) -> dict[str, str]:
        from hskd.students.general.text import text_content
        from hskd.students.pretrained.checkpoint import checkpoint_fingerprint

        if self.general is not None:
            return {"text": text_content(self.general.text)}
        return {"checkpoint": checkpoint_fingerprint(self.checkpoint or "")}

    @override
    def with_checkpoint(self, checkpoint: str) -> dict[str, Any]:
        return {"checkpoint": checkpoint, "general": None}

    def recipe(self, context: StudentContext) -> dict[str, Any]:
        """Return everything that the student depends on, as JSON.

        The student depends on neither the fine-tuned teacher nor the examples. The model that the teacher is made from
        counts because of its tokenizer.
        """
        from hskd.students.pretrained.checkpoint import checkpoint_fingerprint
        from hskd.teachers.loading import model_content

        general = self._general_folder(context)
        return {
            "student": self.model_dump(mode="json"),
            "checkpoint": checkpoint_fingerprint(self.checkpoint or "") if general is None else general.name,
            "task": context.task.name,
            "head": context.task.head.kind,
            "labels": list(context.task.label_names),
            "model": model_content(context.model),
        }

    def _general_folder(self, context: StudentContext) -> Path | None:
        """Return the folder of the general student, which depends on the teacher's body but not on the task."""
        if self.general is None:
            return None
        from hskd.students.general.text import text_content
        from hskd.teachers.loading import model_content

        recipe = {
            "model": model_content(context.model),
            "settings": self.general.model_dump(mode="json", exclude={"text"}),
            "text": text_content(self.general.text),
            **context.machine,
        }
        return context.artifact_folder("general", recipe)

    @override
    def create(self, context: StudentContext, folder: Path, progress: Progress) -> Path:
        """Make the student. If it needs a general student that does not exist yet, distil that first."""
        from hskd.students.pretrained.create import create_tinybert

        general = self._general_folder(context)
        if self.general is not None and general is not None:
            from hskd.runtime import RunOptions
            from hskd.students.general.distillation import general_distill

            options = RunOptions(context.machine["dtype"], context.device)
            general_distill(context.model, self.general, general, options, progress)
        return create_tinybert(self, context.task, context.model, folder, general=general, progress=progress)


def _ffn(config: PretrainedConfig) -> int:
    """Return the number of FFN neurons of a layer, whose field differs between encoders."""
    return int(getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None) or 0)
