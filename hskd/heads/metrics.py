"""Metrics of predictions, as the GLUE benchmark defines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from hskd.errors import HskdError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Metric: TypeAlias = "Callable[[NDArray[np.generic], NDArray[np.generic]], float]"


# The libraries are imported inside the functions, because a task names its metrics long before any is computed.
def _accuracy(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _micro_f1(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="micro", zero_division=0.0))


def _macro_f1(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def _spearman(labels: NDArray[np.generic], predictions: NDArray[np.generic]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _correlation(
    function: Callable[..., tuple[float, float]], labels: NDArray[np.generic], predictions: NDArray[np.generic]
) -> float:
    # The correlation with a constant is undefined. It is set to 0, as scikit-learn does for the Matthews correlation.
    import numpy as np

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(function(labels, predictions)[0])


METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "micro_f1": _micro_f1,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Metrics by name. Each is a function of labels and predictions, and 1 is perfect.

``f1`` is the F1 of class 1; ``micro_f1`` and ``macro_f1`` are over all labels.
"""

UNITS = {
    "accuracy": "%",
    "token_accuracy": "%",
    "f1": "F1 x 100",
    "micro_f1": "F1 x 100",
    "entity_f1": "F1 x 100",
    "matthews": "Matthews x 100",
    "pearson": "correlation x 100",
    "spearman": "correlation x 100",
    "agreement": "cosine x 100",
    "ndcg_10": "nDCG x 100",
    "map": "MAP x 100",
}
"""Unit of 100 times a score, by the metric that is the score."""


def unit_of(names: Sequence[str]) -> str:
    """Return the unit of 100 times the score of a head with the metrics ``names``; ``%`` for an unknown metric.

    The score is the first metric, or for accuracy with F1 their mean, as in GLUE.
    """
    if tuple(names) == ("accuracy", "f1"):
        return "mean of accuracy and F1 x 100"
    return UNITS.get(names[0], "%") if names else "%"


def in_unit(score: float, unit: str, digits: int = 1) -> str:
    """Return 100 times a score as text, with its unit (:attr:`hskd.heads.Head.unit`)."""
    text = f"{100 * score:.{digits}f}"
    return f"{text} %" if unit == "%" else f"{text} ({unit})"


def metrics_line(metrics: Mapping[str, float], unit: str) -> str:
    """Return a line with every metric and the score, each times 100; ``unit`` is the unit of the score."""
    percent = " %" if unit == "%" else ""
    others = (f"{name} {100 * value:.1f}{percent}" for name, value in metrics.items() if name != "score")
    return ", ".join((*others, f"score {in_unit(metrics['score'], unit)}"))


def named_metrics(
    names: Sequence[str], labels: NDArray[np.generic], predictions: NDArray[np.generic]
) -> dict[str, float]:
    """Return the metrics ``names`` of ``predictions`` and their mean, ``score``; fractions, not percentages."""
    import numpy as np

    values = {name: METRICS[name](labels, predictions) for name in names}
    return {**values, "score": float(np.mean(list(values.values())))}


def require_scorable(rows: NDArray[np.floating], labels: NDArray[np.generic]) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        HskdError: there are no rows, the number of labels is not the number of rows, or a row is not finite.
    """
    import numpy as np

    if len(labels) == 0 or len(rows) != len(labels):
        raise HskdError(f"{len(rows)} predictions for {len(labels)} labels; expected equal numbers, at least 1.")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)).sum())
        raise HskdError(
            f"the model's outputs are not finite for {bad} of {len(rows)} examples. "
            "Training diverged: lower the learning rate."
        )
