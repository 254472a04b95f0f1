"""A head with one prediction for each word: named entities, or any other tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from typing_extensions import override

from hskd.errors import HskdError
from hskd.heads.base import BEGINS, IGNORED, Batch
from hskd.heads.classes import OneOfClasses, output_fields
from hskd.heads.metrics import METRICS, require_scorable
from hskd.heads.registry import HEADS
from hskd.store_format.layout import ArraySpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

ENTITY_F1, TOKEN_ACCURACY = "entity_f1", "token_accuracy"


class EntityCounts(NamedTuple):
    """Numbers of entities in some examples: predicted with the right words and type, predicted at all, and gold."""

    correct: int
    predicted: int
    gold: int

    @property
    def f1(self) -> float:
        """Micro F1 over all types; 0 if there are no entities."""
        return 2 * self.correct / max(self.predicted + self.gold, 1)


@HEADS.register
@dataclass(frozen=True)
class TokenClassification(OneOfClasses):
    """One of several tags for each word, read from its first token; rows are logits.

    The score is the first of the metrics. It is ``entity_f1`` (micro F1 of whole entities, as CoNLL counts them) if
    tags mark entities (``B-person``, ``I-person``, ``O``), or ``token_accuracy`` (share of words with the right tag).
    """

    kind: ClassVar[str] = "token_classification"

    metric_names: tuple[str, ...] = (ENTITY_F1, TOKEN_ACCURACY)

    @property
    @override
    def auto_class(self) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    @override
    def config_fields(self) -> dict[str, Any]:
        return output_fields(self.label_names)

    @override
    def target(self) -> ArraySpec:
        import torch

        return ArraySpec("token", torch.float32, self.outputs)

    @override
    def readout(self, batch: Batch) -> torch.Tensor | None:
        return None

    @override
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits.flatten(0, 1).index_select(0, batch["words"])

    @override
    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"].flatten().index_select(0, batch["words"])

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(rows.float(), labels, ignore_index=IGNORED)

    @override
    def examples(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        import numpy as np

        return np.cumsum(np.asarray(labels) == BEGINS) - 1

    @override
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        import numpy as np

        rows, truth = np.asarray(rows), np.asarray(labels)
        require_scorable(rows, truth)
        words = truth >= 0
        if not words.any():
            raise HskdError("no word has a label; there is nothing to score.")
        values = {}
        for name in self.metric_names:
            if name == ENTITY_F1:
                values[name] = self.count_entities(rows, truth).f1
            else:
                metric = METRICS["accuracy" if name == TOKEN_ACCURACY else name]
                values[name] = metric(truth[words], self.predict(rows[words]))
        return {**values, "score": values[self.metric_names[0]]}

    def count_entities(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> EntityCounts:
        """Count the entities of some examples, from ``rows`` ``(R, C)`` and ``labels`` ``(R,)`` of all their tokens."""
        from nervaluate import Evaluator

        words = labels >= 0
        example = self.examples(labels)[words]
        gold, predicted = (self._sentences(tags, example) for tags in (labels[words], self.predict(rows[words])))
        types = sorted({name[2:] for name in self.label_names if name != "O"})
        result = Evaluator(gold, predicted, tags=types, loader="list").evaluate()["overall"]["strict"]
        return EntityCounts(result.correct, result.actual, result.possible)

    def _sentences(self, tags: NDArray[Any], example: NDArray[np.int64]) -> list[list[str]]:
        """Return the tag names of each example, with B, I and O. An I that follows no B of its type opens an entity."""
        import numpy as np

        names = np.array([_as_iob2(name) for name in self.label_names])[tags]
        return [part.tolist() for part in np.split(names, np.flatnonzero(np.diff(example)) + 1)]

    @override
    def scores_without(
        self, rows: NDArray[np.floating], labels: NDArray[Any], blocks: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        import numpy as np

        if self.metric_names[0] != ENTITY_F1:
            return super().scores_without(rows, labels, blocks)
        # F1 is a function of counts, and counts are sums over examples, so each example is counted only once.
        rest = np.setdiff1d(np.arange(len(labels)), np.concatenate(blocks))
        counts = [
            np.array(self.count_entities(rows[at], labels[at])) if (labels[at] >= 0).any() else np.zeros(3, np.int64)
            for at in (*blocks, rest)
        ]
        total = np.sum(counts, axis=0)
        return np.array([EntityCounts(*(total - block)).f1 for block in counts[:-1]])


def _as_iob2(name: str) -> str:
    """Convert a BILOU or BIOES tag to IOB2: U and S begin an entity, L and E are inside an entity."""
    return {"U": "B", "S": "B", "L": "I", "E": "I"}.get(name[:1], name[:1]) + name[1:] if name[1:2] == "-" else name
