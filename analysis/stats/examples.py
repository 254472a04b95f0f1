"""Predictions of trials on the test examples, to estimate how scores would vary with other test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hskd.analysis.table import Study
from hskd.errors import HskdError, MismatchError
from hskd.heads import METRICS, Head, head_of, head_of_rows
from hskd.results import LABELS_FILE, ResultsFolder
from hskd.trials.result import TrialResult

BLOCKS = 100
"""Number of blocks of examples for the jackknife of regressions and of word predictions."""
TOLERANCE = 0.005
"""Largest difference of a recomputed score. Predictions are stored in fp16, where two logits may tie."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The predictions of a study's trials on its ``M`` scored examples, and their labels.

    Attributes:
        head: kind of the predictions, and the metrics that score them.
        labels: label indices or regression targets, ``(M,)``; where words are predicted, the labels of all tokens.
        logits: of each point and seed, ``(M, C)`` or, for regression, ``(M, 1)``.
    """

    head: Head
    labels: NDArray[np.generic] = field(repr=False)
    logits: Mapping[tuple[str, int], NDArray[np.floating]] = field(repr=False)
    _scores: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path | None, study: Study) -> Answers | None:
        """Read the predictions and labels of a results folder (see :mod:`hskd.results.folder`).

        Returns:
            None where there is no folder, or the labels or any trial's predictions are not stored.

        Raises:
            HskdError: a trial's score does not follow from its predictions and the labels (:class:`MismatchError`), or
                a file cannot be read (:class:`CorruptionError`).
        """
        if folder is None or "trial" not in study.trials:
            return None
        trials = study.trials
        kept = ResultsFolder(folder)
        labels, result = kept.labels(study.score_split), kept.result(trials["trial"].iloc[0])
        if labels is None or result is None:
            return None
        outputs = kept.outputs(trials["trial"], study.score_split)
        if not set(trials["trial"]) <= outputs.keys():
            return None
        logits = {
            (name, int(seed)): outputs[trial].astype(np.float32)
            for name, seed, trial in zip(trials["name"], trials["seed"], trials["trial"], strict=True)
        }
        answers = cls(_head(result, study, next(iter(logits.values()))), labels, logits)
        for name, seed, score, trial in zip(
            trials["name"], trials["seed"], trials["score"], trials["trial"], strict=True
        ):
            again = answers.score(name, int(seed))
            if abs(again - score) > TOLERANCE:
                raise MismatchError(
                    f"{folder}: with the labels of {LABELS_FILE}, trial {trial} scores {again:.4f}, but the table says "
                    f"{score:.4f}. The labels or predictions belong to other data: delete them and run the grid again."
                )
        return answers

    def score(self, name: str, seed: int) -> float:
        """Return the score of a point's trial, recomputed from its predictions."""
        return self.head.metrics(self.logits[name, seed], self.labels)["score"]

    @property
    def df(self) -> int:
        """Degrees of freedom of :meth:`variance`."""
        return (len(self._blocks) if self._blocks is not None else len(self.labels)) - 1

    def variance(self, weights: Mapping[str, float], seeds: Sequence[int]) -> float:
        """Return the variance, over samples of examples, of the mean over ``seeds`` of a weighted sum of scores.

        This is the jackknife: each example is left out in turn (each hundredth of them, for regression and for words).
        For accuracy it equals the sample variance of an example's share in the sum, divided by ``M``.

        Args:
            weights: of each point's score, such as ``{"full": 1, "none": -1}``.
            seeds: seeds of which every point has a trial.
        """
        used = {name: weight for name, weight in weights.items() if weight}
        if not used:
            return 0.0
        total: Any = sum(weight * self._left_out(name, seed) for name, weight in used.items() for seed in seeds)
        return self.df * float(np.var(total / len(seeds)))

    def _left_out(self, name: str, seed: int) -> NDArray[np.float64]:
        """Return the trial's scores with each example, or each block of examples, left out: ``(df + 1,)``."""
        key = name, seed
        if key not in self._scores:
            logits = self.logits[key]
            if self._blocks is None:
                # Examples with the same label and prediction give the same score, so one of each kind is enough.
                kinds = np.stack([self.labels, self.head.predict(logits)], axis=1)
                _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
                self._scores[key] = np.array([self._score_without(logits, one) for one in first])[kind]
            else:
                self._scores[key] = self.head.scores_without(logits, self.labels, self._blocks)
        return self._scores[key]

    def _score_without(self, logits: NDArray[np.floating], left_out: Any) -> float:
        rest = np.delete(np.arange(len(self.labels)), left_out)
        return self.head.metrics(logits[rest], self.labels[rest])["score"]

    @cached_property
    def _blocks(self) -> list[NDArray[np.int64]] | None:
        """Rows that are left out together, as blocks of examples.

        None where each example has one class label: then each example is left out by itself.
        """
        example = self.head.examples(self.labels)
        count = int(example.max()) + 1
        if count == len(self.labels) and self.labels.ndim == 1 and np.issubdtype(self.labels.dtype, np.integer):
            return None
        # Blocks are random, because neighbours in a file may be alike.
        order = np.random.default_rng(0).permutation(count)
        parts = np.array_split(order, min(BLOCKS, count))
        if count == len(self.labels):
            return parts
        return [np.flatnonzero(np.isin(example, part)) for part in parts]


def _head(result: TrialResult, study: Study, logits: NDArray[np.floating]) -> Head:
    """Return a head that can score a study's predictions. It needs no data files."""
    if result.head is not None:
        return head_of(result.head["kind"], result.head["label_names"], result.head["metric_names"])
    names = [name for name in result.metrics.get(study.score_split, ()) if name != "score"]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise HskdError(f"trial {result.id}: unknown metrics {unknown}; known: {', '.join(METRICS)}.")
    return head_of_rows(logits.shape[1] if logits.ndim == 2 else 1, names)
