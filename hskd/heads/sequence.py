"""Heads with one prediction for each example: a class, several labels, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hskd.errors import MismatchError
from hskd.heads.base import Batch, Head, output_names
from hskd.heads.classes import NamedOutputs, OneOfClasses, output_fields
from hskd.heads.metrics import named_metrics, require_scorable
from hskd.heads.registry import HEADS
from hskd.store_format.layout import ArraySpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SequenceHead(Head):
    """Base class of heads for whole examples: the model reads ``[CLS]`` and gives one row for each example."""

    @property
    @override
    def auto_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @override
    def config_fields(self) -> dict[str, Any]:
        return {**output_fields(self._output_names), "problem_type": self._problem_type}

    @property
    def _problem_type(self) -> str | None:
        """Name of this kind of head in ``transformers``, by which ``pipeline`` decides how outputs become scores."""
        return "single_label_classification"

    @property
    def _output_names(self) -> tuple[str, ...]:
        """Names of the outputs in a model that is made for this head."""
        return self.label_names

    @override
    def target(self) -> ArraySpec:
        import torch

        return ArraySpec("example", torch.float32, self.outputs)

    @override
    def readout(self, batch: Batch) -> torch.Tensor | None:
        import torch

        ids = batch["input_ids"]
        return torch.zeros((len(ids), 1), dtype=torch.long, device=ids.device)

    @override
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits

    @override
    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"]

    @override
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        import numpy as np

        rows, truth = np.asarray(rows), np.asarray(labels)
        require_scorable(rows, truth)
        return named_metrics(self.metric_names, truth, self.predict(rows))


@HEADS.register
@dataclass(frozen=True)
class SequenceClassification(OneOfClasses, SequenceHead):
    """One of several classes for each example; rows are logits."""

    kind: ClassVar[str] = "classification"

    metric_names: tuple[str, ...] = ("accuracy",)

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(rows.float(), labels)


@HEADS.register
@dataclass(frozen=True)
class MultiLabel(NamedOutputs, SequenceHead):
    """Any number of labels for each example; rows are logits, and labels with a logit above 0 are predicted.

    The gold label of an example is the list of the indices of its labels. The score is ``micro_f1``.
    """

    kind: ClassVar[str] = "multilabel"

    metric_names: tuple[str, ...] = ("micro_f1", "macro_f1")

    @property
    @override
    def _problem_type(self) -> str | None:
        return "multi_label_classification"

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(rows.float(), labels.float())

    @override
    def gold_losses(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(rows.double(), labels.double(), reduction="none").mean(1)

    @override
    def entropies(self, rows: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        rows = rows.double()
        return (rows.sigmoid() * F.softplus(-rows) + (-rows).sigmoid() * F.softplus(rows)).sum(1)

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        return soft_binary_cross_entropy(rows, target_rows, tau)

    @override
    def predicted_loss(self, rows: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.softplus(-rows.abs()).sum()

    @override
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        array = np.zeros((len(labels), self.outputs), np.int64)
        for row, indices in enumerate(labels):
            array[row, list(indices)] = 1
        return array

    @override
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        import numpy as np

        return (np.asarray(rows) > 0).astype(np.int64)

    @override
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        values = super().metrics(rows, labels)
        return {**values, "score": values[self.metric_names[0]]}


@HEADS.register
@dataclass(frozen=True)
class SequenceRegression(SequenceHead):
    """One number for each example."""

    kind: ClassVar[str] = "regression"
    fits_numbers: ClassVar[bool] = True

    metric_names: tuple[str, ...] = ("pearson", "spearman")

    @property
    @override
    def outputs(self) -> int:
        return 1

    @property
    @override
    def _output_names(self) -> tuple[str, ...]:
        return ("score",)

    @property
    @override
    def _problem_type(self) -> str:
        return "regression"

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.mse_loss(rows.float().squeeze(1), labels.float())

    @override
    def gold_losses(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (rows.double().squeeze(1) - labels.double()).square()

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        from torch.nn import functional as F

        return F.mse_loss(rows.float(), target_rows.float())

    @override
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        return np.array(labels, dtype=np.float32)

    @override
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        import numpy as np

        rows = np.asarray(rows)
        return rows.reshape(len(rows))

    @override
    def align(self, model: PreTrainedModel, where: str) -> None:
        names = output_names(model.config)
        if len(names) != 1:
            raise MismatchError(
                f"{where}: the task is a regression and needs a model with 1 output, not {len(names)} ({list(names)}); "
                "use a model that was fine-tuned on this task."
            )


def head_of_rows(columns: int, metric_names: Sequence[str]) -> Head:
    """Return a head for sequence predictions with ``columns`` columns and unknown label names, to score results."""
    if columns == 1:
        return SequenceRegression(metric_names=tuple(metric_names))
    return SequenceClassification(tuple(map(str, range(columns))), tuple(metric_names))


def soft_binary_cross_entropy(rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """Return the binary cross-entropy with the teacher's sigmoids, mean over rows and columns.

    Args:
        rows: the student's logits, ``(R, C)``.
        target_rows: the teacher's logits, ``(R, C)``.
        tau: temperature, by which both logits are divided before the sigmoid.
    """
    from torch.nn import functional as F

    return F.binary_cross_entropy_with_logits(rows.float() / tau, (target_rows.float() / tau).sigmoid())
