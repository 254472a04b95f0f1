"""Make a ROSITA student from a fine-tuned teacher and save it with a record of its origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hskd.artifacts import SCHEMAS, build_artifact, write_record
from hskd.compat import importance_seed
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.students.base import STUDENT_FILE
from hskd.students.rosita.importance import taylor_importance
from hskd.students.rosita.prune import prune_rosita, require_sizes
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import TokenizedSplit, sequential_batches
from hskd.tasks.content import labelled
from hskd.teachers.loading import Teacher, save_classifier, save_tokenizer


def create_rosita(
    teacher: Teacher,
    train: TokenizedSplit,
    settings: RositaSettings,
    folder: Path,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Path:
    """Prune ``teacher`` to a ROSITA student and save it, tokenizer and ``student.json`` included, in ``folder``.

    Args:
        teacher: a fine-tuned classifier, of a type in :data:`hskd.encoders.ENCODERS`.
        train: the task's training examples, with labels.
        settings: sizes, and the number of examples on which importance is measured.
        folder: the student's folder; a finished student stays unchanged.
        batch_size: examples per batch of the importance pass.
        progress: receives the batches of the importance pass.

    Returns:
        ``folder``.

    Raises:
        HskdError: the teacher cannot be pruned, a size is out of range, or ``folder`` was not made by this function.
        MismatchError: ``folder`` holds another student.
    """
    count = settings.importance_examples
    examples = train if count is None or count >= len(train) else train.first(count)

    def builder(partial: Path) -> None:
        sizes = settings.model_dump(exclude={"importance_examples", "compat"})
        # Checked before the pass over the data, which may take long.
        require_sizes(teacher.model, **sizes)
        dropout_seed = importance_seed(settings.compat)
        told = progress or Silent()
        told.begin("importance", -(-len(examples) // batch_size))
        batches = _batches(examples, batch_size)
        importance = taylor_importance(teacher.model, teacher.head, batches, progress=told, dropout_seed=dropout_seed)
        student = prune_rosita(teacher.model, importance, **sizes)
        save_classifier(student, teacher.head, partial)
        save_tokenizer(teacher.tokenizer, partial)
        write_record(
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

    recipe = {
        "kind": "rosita",
        "settings": settings.model_dump(mode="json"),
        "teacher": teacher.fingerprint,
        "tokenizer": teacher.tokenizer_fingerprint,
        "data": labelled(teacher.head, examples),
        "schema": SCHEMAS["students"],
    }
    other = "a student of other sizes, of another teacher or of other examples"
    return build_artifact(folder, recipe, builder, other, progress=progress)


def _batches(split: TokenizedSplit, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    for order in sequential_batches(split.lengths, batch_size):
        yield split.collate(order)
