"""The models that are timed, with random weights."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hskd.benchmarks.shapes import Sizes
from hskd.heads import SequenceClassification
from hskd.students.rosita.model import RositaConfig, RositaForSequenceClassification
from hskd.teachers.loading import Teacher

HEAD = SequenceClassification(label_names=("0", "1"))
"""The head of every model."""


def student_of(kind: str, sizes: Sizes) -> PreTrainedModel:
    """Return a student of ``kind`` (see ``STUDENTS``), initialised by its class in ``transformers`` or :mod:`hskd`."""
    torch.manual_seed(1)
    fields = sizes.shapes[kind]
    model: PreTrainedModel
    if kind == "rosita6":
        model = RositaForSequenceClassification(RositaConfig(**fields))
    else:
        model = BertForSequenceClassification(BertConfig(**fields))
    return model


class RandomTeacher(Teacher):
    """A teacher with random weights and without a tokenizer."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """A constant, because there is no tokenizer."""
        return "none"


def teacher_of(sizes: Sizes, device: torch.device) -> RandomTeacher:
    """Return a teacher with random weights, in eval mode."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes.shapes["teacher"])).eval().to(device)
    return RandomTeacher("random", model, None, HEAD, "random")  # type: ignore[arg-type]
