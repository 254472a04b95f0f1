"""Base classes of heads whose outputs have names: one output for each class, tag or label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hskd.errors import MismatchError
from hskd.heads.base import IGNORED, Head, output_names
from hskd.heads.labels import label_permutation, permute_outputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class NamedOutputs(Head):
    """A head with one output for each of its names."""

    @property
    @override
    def outputs(self) -> int:
        return len(self.label_names)

    @override
    def align(self, model: PreTrainedModel, where: str) -> None:
        names = output_names(model.config)
        if len(names) != self.outputs:
            raise MismatchError(
                f"{where}: the model has {len(names)} labels, {list(names)}, and the task has {self.outputs}, "
                f"{list(self.label_names)}; use a model that was fine-tuned on this task."
            )
        permute_outputs(model, label_permutation(self.label_names, names, where), where)
        fields = output_fields(self.label_names)
        model.config.id2label, model.config.label2id = fields["id2label"], fields["label2id"]


@dataclass(frozen=True)
class OneOfClasses(NamedOutputs):
    """A head that predicts one of its classes for each row."""

    @override
    def gold_losses(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        losses = F.cross_entropy(rows.double(), labels, ignore_index=IGNORED, reduction="none")
        return torch.where(labels == IGNORED, torch.nan, losses)

    @override
    def entropies(self, rows: torch.Tensor) -> torch.Tensor:
        logs = rows.double().log_softmax(-1)
        # A class of probability 0 must add 0, although its logarithm may be infinite.
        return -(logs.exp() * logs.clamp(min=-1e300)).sum(-1)

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        return soft_cross_entropy(rows, target_rows, tau)

    @override
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        return np.array(labels, dtype=np.int64)

    @override
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        import numpy as np

        return np.asarray(rows).argmax(axis=1)


def output_fields(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a model's configuration that name its outputs."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def soft_cross_entropy(rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """Return the cross-entropy with the teacher's distribution (arXiv 2106.05691): sum over classes, mean over rows.

    Args:
        rows: the student's logits, ``(R, C)``.
        target_rows: the teacher's logits, ``(R, C)``.
        tau: temperature of both distributions.
    """
    from torch.nn import functional as F

    return F.cross_entropy(rows.float() / tau, F.softmax(target_rows.float() / tau, dim=-1))
