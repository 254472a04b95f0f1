"""The kinds of student; and from a fine-tuned teacher to a saved ROSITA student, with what it was made from beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from transformers import BertConfig, PretrainedConfig

from hskd.artifacts import build, read_json, write_json
from hskd.errors import HskdError, MismatchError
from hskd.runtime import provenance
from hskd.students.checkpoint import checkpoint_config
from hskd.students.general import GeneralSettings
from hskd.students.importance import require_bert_shaped, taylor_importance
from hskd.students.prune import prune_rosita, require_sizes
from hskd.students.rosita import RositaConfig
from hskd.tasks import TokenizedSplit, sequential_batches
from hskd.teachers.loading import Teacher

STUDENT_FILE = "student.json"


class StudentSettings(BaseModel):
    """Sizes of a ROSITA student; the defaults are the small one, where there is something to learn from HSK."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Annotated[int, Field(ge=1, description="Layers kept, from the lowest up.")] = 3
    heads: Annotated[int, Field(ge=1, description="Attention heads kept in each layer.")] = 2
    ffn: Annotated[int, Field(ge=1, description="FFN neurons kept in each layer.")] = 96
    rank: Annotated[
        int | None, Field(ge=1, description="Rank of the factorised word embeddings [default: not factorised].")
    ] = None
    importance_examples: Annotated[
        int | None, Field(ge=1, description="Training examples that importance is measured on [default: all].")
    ] = 1024

    @property
    def name(self) -> str:
        """For people: kind and sizes."""
        rank = f"-r{self.rank}" if self.rank else ""
        return f"rosita-{self.layers}l-{self.heads}h-{self.ffn}ffn{rank}"

    def config(self, teacher: PretrainedConfig, labels: int) -> PretrainedConfig:
        """The configuration of a student of so many labels, pruned from a BERT of configuration ``teacher``."""
        return RositaConfig(
            **{
                **teacher.to_diff_dict(),
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "attention_head_size": teacher.hidden_size // teacher.num_attention_heads,
                "intermediate_size": self.ffn,
                "embedding_rank": self.rank,
                "num_labels": labels,
            }
        )


class TinyBertSettings(BaseModel):
    """A student of the TinyBERT type: a narrower encoder from a checkpoint, or distilled from the teacher's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tinybert"] = "tinybert"
    checkpoint: Annotated[str | None, Field(description="Local folder or hub name of a pretrained encoder.")] = None
    general: Annotated[
        GeneralSettings | None, Field(description="Make one by general distillation from the teacher's body.")
    ] = None
    seed: Annotated[int, Field(ge=0, description="The classification head is drawn from it.")] = 0

    @model_validator(mode="after")
    def _has_one_origin(self) -> TinyBertSettings:
        if (self.checkpoint is None) == (self.general is None):
            raise ValueError("a student of kind tinybert takes either checkpoint or general")
        return self

    @property
    def layers(self) -> int:
        """``L_S``."""
        if self.general is not None:
            return self.general.layers
        return int(checkpoint_config(self.checkpoint or "").num_hidden_layers)

    @property
    def name(self) -> str:
        """For people: kind and sizes."""
        if self.general is not None:
            return f"tinybert-{self.general.layers}l-{self.general.width}d-{self.general.ffn}ffn-general"
        config = checkpoint_config(self.checkpoint or "")
        return f"tinybert-{config.num_hidden_layers}l-{config.hidden_size}d-{_ffn(config)}ffn"

    def config(self, teacher: PretrainedConfig, labels: int) -> PretrainedConfig:
        """The configuration of a student of so many labels; ``teacher`` is that of the teacher's body."""
        if self.general is None:
            config = checkpoint_config(self.checkpoint or "")
            return type(config).from_dict({**config.to_dict(), "num_labels": labels})
        return BertConfig(
            vocab_size=teacher.vocab_size,
            hidden_size=self.general.width,
            num_hidden_layers=self.general.layers,
            num_attention_heads=self.general.heads,
            intermediate_size=self.general.ffn,
            num_labels=labels,
        )


def _ffn(config: PretrainedConfig) -> int:
    """FFN neurons of a layer, under the names that encoders give them."""
    return int(getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None) or 0)


def _kind(settings: Any) -> str:
    """The kind of student that ``settings`` are of; ROSITA's need not say it."""
    kind = settings.get("kind", "rosita") if isinstance(settings, dict) else getattr(settings, "kind", "rosita")
    return str(kind)


def _without_kind(settings: Any) -> Any:
    # It is not a field of ROSITA's: their dump is part of the ids of trials that are older than the other kind.
    return {key: settings[key] for key in settings if key != "kind"} if isinstance(settings, dict) else settings


KINDS: dict[str, type[BaseModel]] = {"rosita": StudentSettings, "tinybert": TinyBertSettings}
AnyStudent = Annotated[
    Annotated[StudentSettings, BeforeValidator(_without_kind), Tag("rosita")]
    | Annotated[TinyBertSettings, Tag("tinybert")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message=f"unknown kind of student; the kinds are {', '.join(KINDS)}",
    ),
]
"""Settings of a student of either kind."""


def create_rosita(
    teacher: Teacher,
    train: TokenizedSplit,
    settings: StudentSettings,
    folder: Path,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda batches: None,
) -> Path:
    """Prune ``teacher`` to a ROSITA student and save it, tokenizer and ``student.json`` included, in ``folder``.

    Args:
        teacher: a fine-tuned BERT.
        train: the task's training examples, with labels.
        settings: sizes, and how many examples importance is measured on.
        folder: where the student will lie; a finished one is left as it is.
        batch_size: examples in a batch of the importance pass.
        advance: receives the number of batches done.

    Raises:
        HskdError: the teacher is not BERT-shaped, a size is out of its range, or ``folder`` was not made here.
        MismatchError: ``folder`` holds another student.
    """

    def builder(partial: Path) -> None:
        sizes = settings.model_dump(exclude={"importance_examples"})
        # Before the pass over the data, which may take long.
        require_sizes(require_bert_shaped(teacher.model), **sizes)
        count = settings.importance_examples
        examples = train if count is None or count >= len(train) else train.first(count)
        importance = taylor_importance(teacher.model, _batches(examples, batch_size), progress=advance)
        student = prune_rosita(teacher.model, importance, **sizes)
        student.save_pretrained(partial)
        teacher.tokenizer.save_pretrained(partial)
        write_json(
            partial / STUDENT_FILE,
            {
                "kind": "rosita",
                "settings": settings.model_dump(mode="json"),
                "importance_examples": len(examples),
                "teacher": teacher.fingerprint,
                "parameters": student.num_parameters(),
                "made_by": provenance(),
            },
        )

    build(folder, builder)
    if not (folder / STUDENT_FILE).is_file():
        raise HskdError(f"{folder}: exists, and was not made by this command; choose another folder.")
    made = read_json(folder / STUDENT_FILE)
    if made["settings"] != settings.model_dump(mode="json") or made["teacher"] != teacher.fingerprint:
        raise MismatchError(f"{folder}: holds a student of other sizes or of another teacher; choose another folder.")
    return folder


def _batches(split: TokenizedSplit, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    for order in sequential_batches(split.lengths, batch_size):
        yield split.collate(order)
