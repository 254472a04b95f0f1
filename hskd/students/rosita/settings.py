"""Settings of a ROSITA student, a fine-tuned encoder that is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.compat import STUDENT_COMPAT_HELP, StudentCompat
from hskd.students.base import StudentContext, StudentKind
from hskd.students.registry import STUDENTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hskd.heads import Head
    from hskd.progress import Progress


@STUDENTS.register
class RositaSettings(StudentKind):
    """Sizes of a ROSITA student. The defaults make it small enough to benefit from HSK."""

    # Excluded from dumps because it would change the ids of trials that predate the other kinds.
    kind: Annotated[Literal["rosita"], Field(exclude=True)] = "rosita"
    layers: Annotated[int, Field(ge=1, description="Layers kept, starting from the lowest.")] = 3
    heads: Annotated[int, Field(ge=1, description="Attention heads kept in each layer.")] = 2
    ffn: Annotated[int, Field(ge=1, description="FFN neurons kept in each layer.")] = 96
    rank: Annotated[
        int | None, Field(ge=1, description="Rank of the factorised word embeddings [default: not factorised].")
    ] = None
    importance_examples: Annotated[
        int | None,
        Field(ge=1, description="Training examples on which importance is measured; null in a grid file means all."),
    ] = 1024
    compat: Annotated[
        tuple[StudentCompat, ...],
        Field(description=STUDENT_COMPAT_HELP, exclude_if=lambda switches: not switches),
    ] = ()

    @field_validator("compat")
    @classmethod
    def _once(cls, switches: tuple[StudentCompat, ...]) -> tuple[StudentCompat, ...]:
        return tuple(sorted(set(switches)))

    @property
    def name(self) -> str:
        """Readable name with kind, sizes and the ``compat`` switches that are on."""
        rank = f"-r{self.rank}" if self.rank else ""
        return "-".join([f"rosita-{self.layers}l-{self.heads}h-{self.ffn}ffn{rank}", *self.compat])

    def config(self, teacher: PretrainedConfig, head: Head) -> PretrainedConfig:
        """Return the configuration of a student with ``head``, pruned from an encoder of configuration ``teacher``."""
        from hskd.students.rosita.prune import pruned_config

        config = pruned_config(teacher, layers=self.layers, heads=self.heads, ffn=self.ffn, rank=self.rank)
        return type(config).from_dict({**config.to_dict(), **head.config_fields()})

    @override
    def create(self, context: StudentContext, folder: Path, progress: Progress) -> Path:
        from hskd.students.rosita.create import create_rosita

        return create_rosita(context.teacher(), context.train(), self, folder, progress=progress)
