"""Head of a reranker, which scores how well a passage answers a query, as ``CrossEncoder`` does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hskd.errors import HskdError, MismatchError
from hskd.heads.base import Batch, Head, output_names
from hskd.heads.metrics import require_scorable
from hskd.heads.ranking import RankingScores, ranking_scores
from hskd.heads.registry import HEADS
from hskd.heads.sequence import SequenceHead, soft_binary_cross_entropy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

METRIC_NAMES = ("map", "mrr", "ndcg_10")
LOSSES = ("bce", "mse")


@HEADS.register
@dataclass(frozen=True)
class Reranking(SequenceHead):
    """One logit for each pair of a query and a passage; its sigmoid is the relevance.

    An example's label has two numbers: the grade of the passage, from 0, and the number of its query, from 0 in the
    order in which queries appear. The score is ``map``. A query counts in the metrics only if it has both relevant and
    irrelevant passages, because otherwise all its rankings are equally good.

    Attributes:
        largest: the largest grade, which a perfect passage has.
        loss: loss of the prediction stage: ``bce`` (binary cross-entropy with the teacher's sigmoid at temperature
            ``tau``) or ``mse`` (squared distance of the logits).
    """

    kind: ClassVar[str] = "reranking"
    kept_type: ClassVar[str] = "float32"

    metric_names: tuple[str, ...] = METRIC_NAMES
    largest: int = 1
    loss: str = "bce"

    @property
    @override
    def outputs(self) -> int:
        return 1

    @property
    @override
    def _output_names(self) -> tuple[str, ...]:
        return ("relevance",)

    @property
    @override
    def _problem_type(self) -> str | None:
        return None  # CrossEncoder does not set it either, and applies a sigmoid to a single output.

    @override
    def with_loss(self, name: str | None) -> Head:
        if name is None:
            return self
        if name not in LOSSES:
            raise HskdError(f"--loss {name}: unknown loss of rerankers; known: {', '.join(LOSSES)}.")
        return replace(self, loss=name)

    @override
    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"][:, 0]

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(rows.float().squeeze(1), labels.float() / self.largest)

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        from torch.nn import functional as F

        if self.loss == "mse":
            return F.mse_loss(rows.float(), target_rows.float())
        return soft_binary_cross_entropy(rows, target_rows, tau)

    @override
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        return np.array(labels, dtype=np.int64).reshape(len(labels), 2)

    @override
    def examples(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        import numpy as np

        return np.asarray(labels[:, 1], np.int64)

    @override
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        import numpy as np

        return np.asarray(rows)[:, 0]

    @override
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        import numpy as np

        scores = list(self._by_query(rows, np.asarray(labels)).values())
        if not scores:
            raise HskdError("no query has both a relevant and an irrelevant passage; there is nothing to score.")
        values = dict(zip(METRIC_NAMES, np.mean(scores, axis=0).tolist(), strict=True))
        return {**{name: values[name] for name in self.metric_names}, "score": values[self.metric_names[0]]}

    @override
    def scores_without(
        self, rows: NDArray[np.floating], labels: NDArray[Any], blocks: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        import numpy as np

        # The score is a mean over queries, so each query has to be ranked only once.
        by_query = self._by_query(rows, labels)
        column = METRIC_NAMES.index(self.metric_names[0])
        total, count = sum(scores[column] for scores in by_query.values()), len(by_query)
        means = []
        for block in blocks:
            left_out = [by_query[query][column] for query in set(labels[block, 1].tolist()) & by_query.keys()]
            means.append((total - sum(left_out)) / max(count - len(left_out), 1))
        return np.array(means)

    def _by_query(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> dict[int, RankingScores]:
        """Return the metrics of every query that has both relevant and irrelevant passages."""
        import numpy as np

        require_scorable(rows, labels)
        scores = self.predict(rows)
        order = np.argsort(labels[:, 1], kind="stable")
        queries, starts = np.unique(labels[order, 1], return_index=True)
        scores_by_query = {}
        for query, places in zip(queries.tolist(), np.split(order, starts[1:]), strict=True):
            grades = labels[places, 0]
            if is_rankable(grades):
                scores_by_query[query] = ranking_scores(scores[places], grades)
        return scores_by_query

    @override
    def align(self, model: PreTrainedModel, where: str) -> None:
        names = output_names(model.config)
        if len(names) != 1:
            raise MismatchError(
                f"{where}: a reranker has 1 output, not {len(names)} ({list(names)}); use a model that was fine-tuned "
                "on this task, or a CrossEncoder of one label."
            )


def is_rankable(grades: Collection[int] | NDArray[np.integer]) -> bool:
    """Return whether some of these grades are relevant and some are not, so that rankings can differ in quality."""
    return any(grade > 0 for grade in grades) and any(grade <= 0 for grade in grades)
