"""Head that gives each text a vector: a sentence embedding, as in sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hskd.errors import HskdError, MismatchError
from hskd.heads.base import Batch, Head
from hskd.heads.embedding.layout import embedding_size
from hskd.heads.embedding.retrieval import MRR, NDCG, corpus_size, query_scores
from hskd.heads.metrics import METRICS, require_scorable
from hskd.heads.registry import HEADS
from hskd.store_format.layout import ArraySpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

SPEARMAN, AGREEMENT = "spearman", "agreement"
LOSSES = ("cosine", "mse", "similarity")
SIMILARITY_TAU = 0.05
"""Factor of the temperature when similarities are compared, because these lie between -1 and 1."""


@HEADS.register
@dataclass(frozen=True)
class SentenceEmbedding(Head):
    """A normalised vector of the teacher's size for each text; rows are vectors.

    The teacher is used as it is, and no gold labels are learnt. The data decide which of three scores is computed:

    * Pairs with ratings: the texts of a pair follow each other, and both have its rating. ``spearman`` is the rank
      correlation of the cosines with the ratings.
    * Texts without labels: their labels are the teacher's vectors. ``agreement`` is the mean cosine with them.
    * A corpus and queries that retrieve its passages: :func:`~hskd.heads.embedding.retrieval.retrieval_labels` makes
      the labels. ``ndcg_10`` and ``mrr_10`` are means over queries, computed from the ten passages with the largest
      cosines. The score is ``ndcg_10``.

    Attributes:
        size: size of the teacher's vectors; 0 while no teacher is known.
        loss: loss of the prediction stage: ``cosine`` (1 - cosine), ``mse`` (squared distance of the normalised
            vectors), or ``similarity`` (KL divergence of the softmaxed cosines between the texts of a batch).
    """

    kind: ClassVar[str] = "embedding"
    fits_numbers: ClassVar[bool] = True
    has_gold_labels: ClassVar[bool] = False

    metric_names: tuple[str, ...] = (SPEARMAN,)
    size: int = 0
    loss: str = "cosine"

    @property
    @override
    def auto_class(self) -> Any:
        from hskd.heads.embedding.model import EmbeddingLoader

        return EmbeddingLoader(self.size)

    @property
    @override
    def outputs(self) -> int:
        return self.size

    @override
    def config_fields(self) -> dict[str, Any]:
        return {"num_labels": 1, "id2label": {0: "embedding"}, "label2id": {"embedding": 0}}

    @override
    def for_teacher(self, model: str) -> Head:
        return replace(self, size=embedding_size(model))

    @override
    def for_target(self, target: ArraySpec) -> Head:
        return replace(self, size=target.elements)

    @override
    def with_loss(self, name: str | None) -> Head:
        if name is None:
            return self
        if name not in LOSSES:
            raise HskdError(f"--loss {name}: unknown loss of embeddings; known: {', '.join(LOSSES)}.")
        return replace(self, loss=name)

    @override
    def target(self) -> ArraySpec:
        import torch

        return ArraySpec("example", torch.float32, self.size)

    @override
    def readout(self, batch: Batch) -> torch.Tensor | None:
        return None

    @override
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        embedding: torch.Tensor = output.embedding
        return embedding

    @override
    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"]

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise HskdError(
            "sentence embeddings are learnt from the teacher's vectors, and there are no labels to learn from: leave "
            "out the arm gold, use the teacher as it is, and a student of kind tinybert."
        )

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        from torch.nn import functional as F

        rows, target_rows = rows.float(), target_rows.float()
        if self.loss == "cosine":
            return 1 - (rows * target_rows).sum(1).mean()
        if self.loss == "mse":
            return (rows - target_rows).square().sum(1).mean()
        return F.kl_div(
            _log_similarities(rows, tau), _log_similarities(target_rows, tau), reduction="batchmean", log_target=True
        )

    @override
    def predicted_loss(self, rows: torch.Tensor) -> torch.Tensor:
        raise HskdError(
            "length=gradient ranks tokens by what a prediction depends on, and a sentence embedding predicts nothing; "
            "use another length selector."
        )

    @override
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        import numpy as np

        retrieves = len(labels) > 0 and isinstance(labels[0], list)
        return np.array(labels, dtype=np.int64 if retrieves else np.float32)

    @override
    def examples(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        import numpy as np

        if _retrieves(labels):  # Each query is an example. Documents belong to all queries; the first one gets them.
            return np.maximum(np.arange(len(labels)) - corpus_size(labels), 0)
        return np.arange(len(labels)) // (1 if labels.ndim == 2 else 2)

    @override
    def labels_come_from_teacher(self, labels: NDArray[Any] | None) -> bool:
        return labels is None or (labels.ndim == 2 and not _retrieves(labels))

    @override
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        import numpy as np

        return np.asarray(rows)

    @override
    def answers(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.floating]:
        import numpy as np

        if _retrieves(labels):
            return query_scores(rows, labels)
        if labels.ndim == 2:
            return np.asarray((rows * labels).sum(axis=1, keepdims=True))
        cosines = (rows[0::2] * rows[1::2]).sum(axis=1, keepdims=True)
        return np.asarray(np.repeat(cosines, 2, axis=0))

    @override
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        import numpy as np

        rows, truth = np.asarray(rows), np.asarray(labels)
        require_scorable(rows, truth)
        if _retrieves(truth):
            ndcg, rank = self._query_scores(rows, truth)[corpus_size(truth) :].mean(axis=0, dtype=np.float64).tolist()
            return {NDCG: ndcg, MRR: rank, "score": ndcg}
        answers = rows if rows.shape[1] == 1 else self.answers(rows, truth)
        if truth.ndim == 2:
            values = {AGREEMENT: float(answers.mean())}
        else:
            values = {SPEARMAN: METRICS[SPEARMAN](truth[0::2], answers[0::2, 0])}
        return {**values, "score": next(iter(values.values()))}

    @override
    def scores_without(
        self, rows: NDArray[np.floating], labels: NDArray[Any], blocks: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        import numpy as np

        if not _retrieves(labels):
            return super().scores_without(rows, labels, blocks)
        # The corpus stays complete, whichever queries are left out.
        queries = np.arange(corpus_size(labels), len(labels))
        scores = self._query_scores(rows, labels)[:, 0]
        return np.array([scores[np.setdiff1d(queries, block)].mean(dtype=np.float64) for block in blocks])

    def _query_scores(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.floating]:
        """Return the metrics of each query, from vectors or from the metrics that are stored instead of vectors."""
        return rows if rows.shape[1] == 2 else query_scores(rows, labels)

    @override
    def align(self, model: PreTrainedModel, where: str) -> None:
        if model.embedding_size != self.size:
            raise MismatchError(
                f"{where}: gives vectors of {model.embedding_size} numbers, and {self.size} are expected; use the "
                "teacher whose vectors the task was made for."
            )

    @override
    def matches(self, model: PreTrainedModel) -> bool:
        return bool(model.embedding_size == self.size)


def _retrieves(labels: NDArray[Any]) -> bool:
    """Return whether these are the labels of a corpus and queries, which are integers and not float vectors."""
    return labels.ndim == 2 and labels.dtype.kind == "i"


def _log_similarities(rows: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the log-softmax of each text's cosines with the other texts of the batch, ``(B, B - 1)``."""
    import torch

    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (rows @ rows.T / (SIMILARITY_TAU * tau))[others].view(len(rows), -1)
    return scores.log_softmax(dim=1)
