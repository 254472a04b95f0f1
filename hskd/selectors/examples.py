"""Examples: of which training examples anything is kept."""

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
    """What a selector along examples sees: ``N`` training examples.

    Attributes:
        example_ids: ``(N,)`` int64.
        losses: the loss of each example's gold label under the teacher, ``(N,)``; None where it is not known.
        entropies: the entropy of the teacher's prediction for each, in nats, ``(N,)``; None where it is not known.
    """

    example_ids: np.ndarray
    losses: np.ndarray | None = None
    entropies: np.ndarray | None = None


class ExamplesSelector(Selector):
    """Base of the selectors along examples: keeps the ``max(1, floor(e * N))`` of highest score.

    Ties go to the smaller example id, so that the choice does not depend on the order of the examples. A subclass says
    what an example's score is.
    """

    e: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training examples."""

    needs_losses: ClassVar[bool] = False
    """Whether :meth:`scores` reads the loss of the gold label under the teacher."""
    needs_entropies: ClassVar[bool] = False
    """Whether :meth:`scores` reads the entropy of the teacher's prediction."""

    @field_validator("e", mode="before")
    @classmethod
    def _all_is_one(cls, value: object) -> object:
        return 1.0 if value == "all" else value

    @property
    def keeps_all(self) -> bool:
        """Whether something is kept of every example."""
        return self.e == 1

    @property
    def needs_teacher(self) -> bool:
        """Whether which examples are kept is known only once the teacher has run."""
        return not self.keeps_all and (self.needs_losses or self.needs_entropies)

    def count(self, examples: int) -> int:
        """How many of ``examples`` are kept, at least one. Exact: 0.29 of 100 is 29."""
        return max(1, int(Fraction(str(self.e)) * examples))

    def scores(self, view: ExampleScores) -> np.ndarray:
        """Importance of each example, ``(N,)``; the highest are kept."""
        raise NotImplementedError

    def select(self, view: ExampleScores) -> np.ndarray:
        """Indices of the kept examples, ascending, ``(count(N),)``.

        Raises:
            HskdError: the selector reads what is not known of the examples.
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
    """Examples drawn by a hash of ``seed`` and example id. A larger ``e`` adds to what a smaller one keeps."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        import numpy as np

        return (mix(self.seed, view.example_ids) >> np.uint64(11)).astype(np.float64)


@EXAMPLES.register
class Disagree(ExamplesSelector):
    """The examples on which the teacher and the gold labels disagree most: the highest loss of the label.

    The loss is that which the teacher was fine-tuned with; of an example with a label for each word, the mean over
    its words.
    """

    selector: Literal["disagree"] = "disagree"

    needs_losses: ClassVar[bool] = True

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        assert view.losses is not None
        return view.losses


@EXAMPLES.register
class EntropyOfExamples(ExamplesSelector):
    """The examples of which the teacher is least certain: the highest entropy of its prediction.

    Of an example with a prediction for each word, it is the mean over its words.
    """

    selector: Literal["entropy"] = "entropy"

    needs_entropies: ClassVar[bool] = True

    @override
    def scores(self, view: ExampleScores) -> np.ndarray:
        assert view.entropies is not None
        return view.entropies
