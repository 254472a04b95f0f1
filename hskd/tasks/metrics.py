"""Scores of predictions, as the GLUE benchmark defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from hskd.errors import HskdError
from hskd.tasks.task import Task


def _pearson(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    return _correlation(stats.pearsonr, labels, predictions)


def _spearman(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    return _correlation(stats.spearmanr, labels, predictions)


def _correlation(
    function: Callable[..., tuple[float, float]], labels: NDArray[np.generic], predictions: NDArray[np.generic]
) -> float:
    # Undefined for a constant; scikit-learn calls the Matthews correlation 0 there, and so do we.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(function(labels, predictions)[0])


METRICS: dict[str, Callable[[NDArray[np.generic], NDArray[np.generic]], float]] = {
    "accuracy": lambda labels, predictions: float(sk.accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(sk.f1_score(labels, predictions, zero_division=0.0)),
    "matthews": lambda labels, predictions: float(sk.matthews_corrcoef(labels, predictions)),
    "pearson": _pearson,
    "spearman": _spearman,
}


def compute_metrics(
    task: Task, logits: NDArray[np.floating], labels: Sequence[int] | Sequence[float] | NDArray[np.generic]
) -> dict[str, float]:
    """The task's metrics and ``score``, their mean.

    Values are fractions (1 is perfect), not percentages. F1 is that of class 1. A correlation with constant
    predictions counts as 0.

    Args:
        task: says which metrics.
        logits: (N, C) for classification; (N, 1) or (N,) predictions for regression.
        labels: N label indices or regression targets.

    Raises:
        HskdError: no examples, lengths that differ, or logits that are not finite.
    """
    logits, truth = np.asarray(logits), np.asarray(labels)
    if len(truth) == 0 or len(logits) != len(truth):
        raise HskdError(
            f"Task {task.name}: {len(logits)} predictions for {len(truth)} labels; need as many, at least 1."
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits.reshape(len(logits), -1)).all(axis=1)).sum())
        raise HskdError(
            f"Task {task.name}: the model's outputs are not finite for {bad} of {len(logits)} examples. "
            "Training diverged: lower the learning rate."
        )
    predictions = logits.reshape(len(truth)) if task.label_type == "regression" else logits.argmax(axis=1)
    values = {name: METRICS[name](truth, predictions) for name in task.metrics}
    return {**values, "score": float(np.mean(list(values.values())))}
