"""The interface of a head: the one object that knows what a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from hskd.errors import HskdError, MismatchError
from hskd.store_format.layout import ArraySpec

# Imported where they are used: a task names its head when it is declared, long before a model is built.
if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

IGNORED = -100
"""Label of a token that has none. It is PyTorch's own default: cross-entropy leaves such rows out."""

BEGINS = -101
"""Label of the first token of an example where words have labels: it begins no word, and there an example begins."""

HEAD_FIELDS = ("architectures", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
"""Fields of a model's configuration that speak of its head: a checkpoint's have no say in a new one."""

Batch: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass(frozen=True)
class Head(ABC):
    """What a task's model puts out, what it learns from, and how its predictions are scored.

    A head speaks of *rows*: ``(R, C)``, one for each example or one for each word, end to end and without pads. The
    row of a word is that of its first token. A model's rows, the target rows in a store and the gold labels of a batch
    have the same order.

    Attributes:
        label_names: names of the output columns; empty where they have none.
        metric_names: metrics of the task; its score is their mean, unless the kind of head says otherwise.
    """

    kind: ClassVar[str]
    """Name in the registry."""
    fits_numbers: ClassVar[bool] = False
    """Whether a gold label is a number to come close to, and not the index of a class."""

    has_gold_labels: ClassVar[bool] = True
    """Whether there are labels to learn from. Where not, the teacher is used as it is, and says what is scored."""

    kept_type: ClassVar[str] = "float16"
    """Type in which :meth:`answers` are kept: numpy's name of a float that is exact enough for the score."""

    label_names: tuple[str, ...] = ()
    metric_names: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What 100 times a score is called."""
        return "%"

    def for_teacher(self, model: str) -> Head:
        """This head for the teacher in the folder ``model``, or a student of it: one with outputs of its size."""
        return self

    def for_target(self, target: ArraySpec) -> Head:
        """This head for a store that holds ``target``."""
        return self

    def with_loss(self, name: str | None) -> Head:
        """This head with another loss for the prediction stage; None for its own.

        Raises:
            HskdError: it has no loss of that name.
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
        """``C``, columns of a row."""

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """Fields of a model's configuration that this head decides, such as ``id2label``."""

    @abstractmethod
    def target(self) -> ArraySpec:
        """The array of a store that holds the teacher's rows.

        Rows of words are stored ``per`` token: the store says which tokens begin a word, and the others' rows are 0.
        """

    @abstractmethod
    def readout(self, batch: Batch) -> torch.Tensor | None:
        """Positions of the top layer that the head reads, ``(B, k)`` int64; None for all of them."""

    @abstractmethod
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        """The rows ``(R, C)`` of a model's raw ``output`` for ``batch``."""

    @abstractmethod
    def labels(self, batch: Batch) -> torch.Tensor:
        """The gold labels of a batch, one for each row."""

    @abstractmethod
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss against gold labels, a scalar: the mean over rows."""

    @abstractmethod
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        """The loss against the teacher's rows at temperature ``tau``, a scalar: the mean over rows."""

    def predicted_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """A scalar whose gradient says what a prediction depends on: the loss of the rows against what they predict.

        Where a row is one number, it is the number itself.

        Raises:
            HskdError: a row predicts nothing.
        """
        return rows.sum() if rows.shape[-1] == 1 else -rows.log_softmax(-1).amax(-1).sum()

    def gold_losses(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each row against its gold label, ``(R,)``; NaN for a row that has none.

        Raises:
            HskdError: there is no such loss.
        """
        raise HskdError(f"a prediction of kind {self.kind} has no gold label that a loss is known of.")

    def entropies(self, rows: torch.Tensor) -> torch.Tensor:
        """The entropy of the distribution that each row predicts, in nats, ``(R,)``.

        Raises:
            HskdError: a row predicts no distribution.
        """
        raise HskdError(f"a prediction of kind {self.kind} is no distribution, so that it has no entropy.")

    @abstractmethod
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """A split's labels as one array: one for each example, or for each token of the examples end to end.

        A token that begins no word has the label :data:`IGNORED`, and the first of an example :data:`BEGINS`.
        """

    def examples(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """The example to which each of the labels of a split belongs, ``(L,)``, counted from 0."""
        import numpy as np

        return np.arange(len(labels))

    def scores_without(
        self, rows: NDArray[np.floating], labels: NDArray[Any], blocks: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """The score without each of ``blocks`` in turn; a block holds some of the rows, all of an example or none."""
        import numpy as np

        every = np.arange(len(labels))
        rests = (np.delete(every, block) for block in blocks)
        return np.array([self.metrics(rows[rest], labels[rest])["score"] for rest in rests])

    def labels_come_from_teacher(self, labels: NDArray[Any] | None) -> bool:
        """Whether the labels of a scored split are, or are yet to be, what the teacher says."""
        return False

    @abstractmethod
    def predict(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        """The prediction for each row, in the type of the labels."""

    def answers(self, rows: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.floating]:
        """What is kept of the rows of a scored split, ``(R, K)``: as much as :meth:`metrics` needs."""
        return rows

    @abstractmethod
    def metrics(self, rows: NDArray[np.floating], labels: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
        """The metrics by name, and ``score``, by default their mean.

        Where words have labels, there is a row for each token, and those of tokens that begin no word are not read.

        Raises:
            HskdError: no rows, as many labels as rows are not given, or a row is not finite.
        """

    @abstractmethod
    def align(self, model: PreTrainedModel, where: str) -> None:
        """Bring the outputs of a loaded ``model`` into this head's order.

        Args:
            model: changed in place: weights of its last layer, and the label names of its configuration.
            where: names the model and the task in messages.

        Raises:
            MismatchError: the model's outputs are not those of this head.
        """

    def record(self) -> dict[str, Any]:
        """The head as JSON: what :func:`~hskd.heads.head_of` needs to make it again."""
        names = {"label_names": list(self.label_names), "metric_names": list(self.metric_names)}
        return {"kind": self.kind, **names, "unit": self.unit}

    def matches(self, model: PreTrainedModel) -> bool:
        """Whether the outputs of ``model`` are those of this head, in this order, as far as they have names."""
        return not self.label_names or output_names(model.config) == self.label_names


def output_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Names of a model's outputs in their order, as its configuration gives them.

    Raises:
        MismatchError: they are not numbered from 0.
    """
    if set(config.id2label) != set(range(config.num_labels)):
        where = getattr(config, "name_or_path", "") or "the model"
        raise MismatchError(
            f"{where}: its config.json numbers the labels {', '.join(map(str, config.id2label))} (id2label); expected "
            f"0 to {config.num_labels - 1}. Correct id2label and label2id there."
        )
    return tuple(config.id2label[i] for i in range(config.num_labels))
