"""Scores of a model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError
from hskd.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def compute_metrics(task: Task, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics, and ``score``, their mean.

    Values are fractions (1 is perfect), not percentages. F1 is that of class 1. A correlation with constant predictions
    counts as 0.

    Args:
        task: its head determines the metrics.
        rows: a model's outputs, ``(R, C)``: logits, or the predictions of a regression.
        labels: the gold label of each row.

    Raises:
        HskdError: there are no examples, the lengths differ, or the outputs are not finite.
    """
    try:
        return task.head.metrics(rows, labels)
    except HskdError as error:
        raise HskdError(f"Task {task.name}: {error}") from None
