"""Examples: which training examples have hidden states in the store."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import Registry, Selector, mix

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """The input of a selector along examples: ids and scores of ``N`` training examples.

    Attributes:
        example_ids: ``(N,)`` int64.
        losses: the teacher's loss on each example's gold label, ``(N,)``; None if it is not known.
        entropies: the entropy of the teacher's prediction for each example, in nats, ``(N,)``; None if it is not known.
    """

    example_ids: np.ndarray
    losses: np.ndarray | None = None
    entropies: np.ndarray | None = None


class ExamplesSelector(Selector):
    """Base class of the selectors along examples. It keeps the ``max(1, floor(e * N))`` examples of highest score.

    Ties go to the smaller example id, so the choice does not depend on the order of the examples. A subclass defines
    :meth:`scores`.
    """

    e: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training examples."""

    needs_losses: ClassVar[bool] = False
    """Whether :meth:`scores` reads the teacher's loss on the gold label."""
    needs_entropies: ClassVar[bool] = False
    """Whether :meth:`scores` reads the entropy of the teacher's prediction."""

    @field_validator("e", mode="before")
    @classmethod
    def _all_is_one(cls, value: object) -> object:
        return 1.0 if value == "all" else value

    @property
    def keeps_all(self) -> bool:
        """Whether every example is kept."""
        return self.e == 1

    @property
    def needs_teacher(self) -> bool:
        """Whether the choice of examples needs the teacher's outputs."""
        return not self.keeps_all and (self.needs_losses or self.needs_entropies)

    def count(self, examples: int) -> int:
        """Return the number of examples kept of ``examples``, at least 1. It is exact: 0.29 of 100 is 29."""
        return max(1, int(Fraction(str(self.e)) * examples))

    def scores(self, view: ExampleScores) -> np.ndarray:
        """Return the importance of each example, ``(N,)``. The highest are kept."""
        raise NotImplementedError

    def select(self, view: ExampleScores) -> np.ndarray:
        """Return the indices of the kept examples, ascending, ``(count(N),)``.

        Raises:
            HskdError: ``view`` lacks a score that the selector needs.
        """
        import numpy as np

        if self.keeps_all:
            return np.arange(len(view.example_ids))
        for what, needed, known in (
            ("the loss of the gold label", self.needs_losses, view.losses),
            ("the entropy of the prediction", self.needs_entropies, view.entropies),
        ):
            if needed and known is None:
                raise HskdError(f"examples={self.selector}: ranks examples by {what}, and it is not known here.")
        best_first = np.lexsort((view.example_ids, -self.scores(view)))
        return np.sort(best_first[: self.count(len(best_first))])


EXAMPLES: Registry[ExamplesSelector] = Registry("examples")


@EXAMPLES.register
class RandomExamples(ExamplesSelector):
    """Keeps random examples, drawn by a hash of ``seed`` and example id. A larger ``e`` keeps a superset of them."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        import numpy as np

        return (mix(self.seed, view.example_ids) >> np.uint64(11)).astype(np.float64)


@EXAMPLES.register
class Disagree(ExamplesSelector):
    """Keeps the examples on which teacher and gold label disagree most: those with the highest loss of the label.

    The loss is the loss that the teacher was fine-tuned with. If an example has a label for each word, it is the mean
    over words.
    """

    selector: Literal["disagree"] = "disagree"

    needs_losses: ClassVar[bool] = True

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        assert view.losses is not None
        return view.losses


@EXAMPLES.register
class EntropyOfExamples(ExamplesSelector):
    """Keeps the examples on which the teacher is least certain: those with the highest entropy of its prediction.

    If the teacher predicts each word, the entropy is the mean over words.
    """

    selector: Literal["entropy"] = "entropy"

    needs_entropies: ClassVar[bool] = True

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        assert view.entropies is not None
        return view.entropies
