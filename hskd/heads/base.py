"""Interface of a head, the object that defines what a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from hskd.errors import HskdError, MismatchError
from hskd.heads.metrics import unit_of
from hskd.store_format.layout import ArraySpec

# Imported inside functions, because a task names its head when it is declared, long before a model is built.
if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

IGNORED = -100
"""Label of a token without a label. It is PyTorch's default ``ignore_index``, so cross-entropy leaves such rows out."""

BEGINS = -101
"""Label of the first token of an example if words have labels. The token begins no word, and marks a new example."""

HEAD_FIELDS = ("architectures", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
"""Fields of a model's configuration that describe its head. A new head does not inherit them from a checkpoint."""

Batch: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass(frozen=True)
class Head(ABC):
    """Defines the outputs of a task's model, the losses that it learns by, and the metrics of its predictions.

    A head works on *rows* ``(R, C)``: one row for each example or one for each word, concatenated without pads. The
    row of a word is the row of its first token. A model's rows, the target rows in a store and the gold labels of a
    batch have the same order.

    Attributes:
        label_names: names of the output columns; empty if they have none.
        metric_names: metrics of the task. Its score is their mean, unless the kind of head defines another.
    """

    kind: ClassVar[str]
    """Name in the registry."""
    fits_numbers: ClassVar[bool] = False
    """Whether a gold label is a number to approximate, and not the index of a class."""

    has_gold_labels: ClassVar[bool] = True
    """Whether there are gold labels to learn from. If not, the teacher is used as it is, without fine-tuning."""

    kept_type: ClassVar[str] = "float16"
    """NumPy's name of the float type in which :meth:`answers` are stored. It must be exact enough for the score."""

    label_names: tuple[str, ...] = ()
    metric_names: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Unit of 100 times a score; that of its metric, unless a head has a unit of its own."""
        return unit_of(self.metric_names)

    def for_teacher(self, model: str) -> Head:
        """Return this head with the output size of the teacher in the folder ``model``, for it or its students."""
        return self

    def for_target(self, target: ArraySpec) -> Head:
        """Return this head with the output size of a store that holds ``target``."""
        return self

    def with_loss(self, name: str | None) -> Head:
        """Return this head with another loss for the prediction stage; None keeps its own.

        Raises:
            HskdError: the head has no loss of that name.
        """
        if name is None:
            return self
        raise HskdError(f"--loss {name}: a task of kind {self.kind} has one loss; leave it out.")

    @property
    @abstractmethod
    def auto_class(self) -> Any:
        """The ``transformers`` Auto class that builds and loads a model with this head."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """``C``, the number of columns of a row."""

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """Return the fields of a model's configuration that this head sets, such as ``id2label``."""

    @abstractmethod
    def target(self) -> ArraySpec:
        """Return the specification of the array that holds the teacher's rows in a store.

        Rows of words are stored ``per`` token. The store marks the tokens that begin a word; other tokens have rows of
        0.
        """

    @abstractmethod
    def readout(self, batch: Batch) -> torch.Tensor | None:
        """Return the positions of the top layer that the head reads, ``(B, k)`` int64; None for all of them."""

    @abstractmethod
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the rows ``(R, C)`` of a model's raw ``output`` for ``batch``."""

    @abstractmethod
    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the gold labels of a batch, one for each row."""

    @abstractmethod
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss against gold labels, a scalar: the mean over rows."""

    @abstractmethod
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        """Return the loss against the teacher's rows at temperature ``tau``, a scalar: the mean over rows."""

    def predicted_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a scalar whose gradient shows what the predictions depend on.

        It is the loss of the rows against their own predictions, summed over rows. If a row is a single number, it is
        the sum of these numbers.

        Raises:
            HskdError: the rows predict nothing.
        """
        return rows.sum() if rows.shape[-1] == 1 else -rows.log_softmax(-1).amax(-1).sum()

    def gold_losses(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row against its gold label, ``(R,)``; NaN for a row without a gold label.

        Raises:
            HskdError: this head has no such loss.
        """
        raise HskdError(f"a prediction of kind {self.kind} has no loss against a gold label.")

    def entropies(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the entropy of the distribution that each row predicts, in nats, ``(R,)``.

        Raises:
            HskdError: the rows do not predict a distribution.
        """
        raise HskdError(f"a prediction of kind {self.kind} is not a distribution, so it has no entropy.")

    @abstractmethod
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Return a split's labels as one array: one label for each example, or one for each token of all examples.

        In labels of tokens, a token that begins no word has :data:`IGNORED`. The first token of an example has
        :data:`BEGINS`.
        """

    def examples(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the example to which each label of a split belongs, ``(L,)``, counted from 0."""
        import numpy as np

        return np.arange(len(labels))

    def scores_without(
        self, rows: NDArray[np.floating], labels: NDArray[Any], blocks: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Return the score without each of ``blocks`` in turn. A block is a set of rows that splits no example."""
        import numpy as np

        every = np.arange(len(labels))
        rests = (np.delete(every, block) for block in blocks)
        return np.array([self.metrics(rows[rest], labels[rest])["score"] for rest in rests])

    def labels_come_from_teacher(self, labels: NDArray[Any] | None) -> bool:
        """Return whether the labels of a scored split are the teacher's outputs, now or once they are computed."""
        return False

    @abstractmethod
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        """Return the prediction for each row, in the type of the labels."""

    def answers(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.floating]:
        """Return the part of a scored split's rows to store, ``(R, K)``: as much as :meth:`metrics` needs."""
        return rows

    @abstractmethod
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        """Return the metrics by name, and ``score``, by default their mean.

        If words have labels, there is a row for each token, and rows of tokens that begin no word are ignored.

        Raises:
            HskdError: there are no rows, the number of labels is not the number of rows, or a row is not finite.
        """

    @abstractmethod
    def align(self, model: PreTrainedModel, where: str) -> None:
        """Reorder the outputs of a loaded ``model`` into this head's order.

        Args:
            model: changed in place: the weights of its last layer, and the label names in its configuration.
            where: names the model and the task in messages.

        Raises:
            MismatchError: the model's outputs do not match this head.
        """

    def record(self) -> dict[str, Any]:
        """Return the head as JSON, with all that :func:`~hskd.heads.head_of` needs to make it again."""
        names = {"label_names": list(self.label_names), "metric_names": list(self.metric_names)}
        return {"kind": self.kind, **names, "unit": self.unit}

    def matches(self, model: PreTrainedModel) -> bool:
        """Return whether ``model`` has this head's outputs in this head's order. Outputs without names always match."""
        return not self.label_names or output_names(model.config) == self.label_names


def output_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's outputs in their order, from its configuration.

    Raises:
        MismatchError: the outputs are not numbered from 0.
    """
    if set(config.id2label) != set(range(config.num_labels)):
        where = getattr(config, "name_or_path", "") or "the model"
        raise MismatchError(
            f"{where}: its config.json numbers the labels {', '.join(map(str, config.id2label))} (id2label); expected "
            f"0 to {config.num_labels - 1}. Correct id2label and label2id there."
        )
    return tuple(config.id2label[i] for i in range(config.num_labels))
