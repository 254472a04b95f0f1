"""What each trial answered on each test example: how much of a score is the luck of these very examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from analysis.table import Study
from hskd.artifacts import read_json
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.grid.publish import LABELS_FILE
from hskd.results import TABLE
from hskd.tasks.metrics import METRICS, compute_metrics
from hskd.tasks.task import Task

BLOCKS = 100
"""Blocks of examples that are left out in turn where the task is a regression."""
TOLERANCE = 0.005
"""Of a score computed again: predictions are kept in fp16, where two logits may tie."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The predictions of a study's trials on its ``M`` scored examples, and their labels.

    Attributes:
        task: says by which metrics the answers are scored.
        labels: label indices or regression targets, ``(M,)``.
        logits: of each point and seed, ``(M, C)`` or, for regression, ``(M, 1)``.
    """

    task: Task
    labels: NDArray[np.generic] = field(repr=False)
    logits: Mapping[tuple[str, int], NDArray[np.floating]] = field(repr=False)
    _scores: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path | None, study: Study) -> Answers | None:
        """The answers kept in a results folder: ``trials/<id>.npz`` and ``labels.npz``.

        Returns:
            None where there is no folder, or the labels or any trial's answers are not kept.

        Raises:
            HskdError: a trial's score does not follow from its answers and the labels (:class:`MismatchError`), or a
                file cannot be read (:class:`CorruptionError`).
        """
        if folder is None or "trial" not in study.trials:
            return None
        trials = study.trials
        files = [folder / TABLE / f"{trial}.npz" for trial in trials["trial"]]
        results = folder / TABLE / f"{trials['trial'].iloc[0]}.json"
        labels_file = folder / LABELS_FILE
        if not all(file.is_file() for file in (*files, labels_file, results)):
            return None
        labels = _array(labels_file, study.score_split)
        logits = {
            (name, int(seed)): _array(file, study.score_split).astype(np.float32)
            for name, seed, file in zip(trials["name"], trials["seed"], files, strict=True)
        }
        answers = cls(_task(results, study, next(iter(logits.values()))), labels, logits)
        for name, seed, score, file in zip(trials["name"], trials["seed"], trials["score"], files, strict=True):
            again = answers.score(name, int(seed))
            if abs(again - score) > TOLERANCE:
                raise MismatchError(
                    f"{file}: with the labels of {labels_file} it scores {again:.4f}, but the table says {score:.4f}. "
                    "One of the three is of other data: delete the labels and the table, and run the grid again."
                )
        return answers

    def score(self, name: str, seed: int) -> float:
        """The score of a point's trial, computed again from its answers."""
        return compute_metrics(self.task, self.logits[name, seed], self.labels)["score"]

    @property
    def df(self) -> int:
        """Degrees of freedom of :meth:`variance`."""
        return (len(self.labels) if self.task.label_type == "classification" else len(self._blocks)) - 1

    def variance(self, weights: Mapping[str, float], seeds: Sequence[int]) -> float:
        """How much the mean over ``seeds`` of a weighted sum of points' scores would vary with other examples.

        By the jackknife: the scores with one example left out (a hundredth of them, for regression), for each in
        turn. For accuracy that is exactly the sample variance of an example's share in the sum, over ``M``.

        Args:
            weights: of each point's score, such as ``{"full": 1, "none": -1}``.
            seeds: those whose trials all the points have.
        """
        used = {name: weight for name, weight in weights.items() if weight}
        if not used:
            return 0.0
        total: Any = sum(weight * self._left_out(name, seed) for name, weight in used.items() for seed in seeds)
        return self.df * float(np.var(total / len(seeds)))

    def _left_out(self, name: str, seed: int) -> NDArray[np.float64]:
        """The trial's score without each example in turn, or each block of them: ``(df + 1,)``."""
        key = name, seed
        if key not in self._scores:
            logits = self.logits[key]
            if self.task.label_type == "classification":
                # Without an example the score is the same for all that share its label and prediction.
                kinds = np.stack([self.labels, logits.argmax(axis=1)], axis=1)
                _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
                self._scores[key] = np.array([self._score_without(logits, one) for one in first])[kind]
            else:
                self._scores[key] = np.array([self._score_without(logits, block) for block in self._blocks])
        return self._scores[key]

    def _score_without(self, logits: NDArray[np.floating], left_out: Any) -> float:
        rest = np.delete(np.arange(len(self.labels)), left_out)
        return compute_metrics(self.task, logits[rest], self.labels[rest])["score"]

    @property
    def _blocks(self) -> list[NDArray[np.int64]]:
        # Drawn, not cut: neighbours in a file may be alike.
        order = np.random.default_rng(0).permutation(len(self.labels))
        return np.array_split(order, min(BLOCKS, len(order)))


def _array(file: Path, split: str) -> NDArray[Any]:
    try:
        with np.load(file) as arrays:
            return arrays[split]  # type: ignore[no-any-return]
    except KeyError:
        raise HskdError(f"{file}: no split {split}, which the table is scored on. Run the grid again.") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise CorruptionError(f"{file}: cannot be read ({error}); delete it and run the grid.") from None


def _task(results: Path, study: Study, logits: NDArray[np.floating]) -> Task:
    """As much of the task as scoring needs: the data itself may be elsewhere."""
    try:
        names = [name for name in read_json(results)["metrics"][study.score_split] if name != "score"]
    except (KeyError, TypeError):
        raise CorruptionError(f"{results}: not a trial's result; delete it and run the grid.") from None
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise HskdError(f"{results}: unknown metrics {unknown}; known: {', '.join(METRICS)}.")
    classes = logits.shape[1] if logits.ndim == 2 else 1
    return Task(
        name=study.task,
        text_columns=(),
        label_column="",
        label_type="regression" if classes == 1 else "classification",
        label_names=tuple(map(str, range(classes))) if classes > 1 else (),
        metrics=tuple(names),
        hsk_epochs=0,
        max_length=0,
    )
