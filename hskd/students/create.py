"""From a fine-tuned teacher to a saved student, with what it was made from beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hskd.artifacts import build, read_json, write_json
from hskd.errors import HskdError, MismatchError
from hskd.runtime import provenance
from hskd.students.importance import require_bert_shaped, taylor_importance
from hskd.students.prune import prune_rosita, require_sizes
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
    compat: Annotated[
        tuple[Literal["taylor_dropout"], ...],
        Field(
            description="Departures of the paper's released code to switch on: taylor_dropout measures importance with "
            "dropout on (docs/compat.md).",
            exclude_if=lambda switches: not switches,
        ),
    ] = ()

    @field_validator("compat")
    @classmethod
    def _once(cls, switches: tuple[Literal["taylor_dropout"], ...]) -> tuple[Literal["taylor_dropout"], ...]:
        return tuple(sorted(set(switches)))


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
        sizes = settings.model_dump(exclude={"importance_examples", "compat"})
        # Before the pass over the data, which may take long.
        require_sizes(require_bert_shaped(teacher.model), **sizes)
        count = settings.importance_examples
        examples = train if count is None or count >= len(train) else train.first(count)
        dropout_seed = 0 if "taylor_dropout" in settings.compat else None
        batches = _batches(examples, batch_size)
        importance = taylor_importance(teacher.model, batches, progress=advance, dropout_seed=dropout_seed)
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
