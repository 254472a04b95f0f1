"""Width: which neurons of a kept token are kept."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.selectors.base import LayerView, Registry, Selector

if TYPE_CHECKING:
    import numpy as np
    import torch


class WidthSelector(Selector):
    """Base of the selectors along width: keeps ``max(1, floor(w * d_T))`` neurons of every kept token.

    A subclass gives either one :meth:`fixed` mask for all layers, or the :meth:`neurons` of each token in each layer.
    """

    w: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the neurons."""

    @field_validator("w", mode="before")
    @classmethod
    def _all_is_one(cls, value: object) -> object:
        return 1.0 if value == "all" else value

    def count(self, width: int) -> int:
        """Neurons kept of ``width``. Exact: 0.29 of 100 is 29, though ``0.29 * 100 < 29`` in floating point."""
        return max(1, int(Fraction(str(self.w)) * width))

    def fixed(self, width: int) -> np.ndarray | None:
        """The neurons kept in every token and layer, ascending, ``(count,)``; None where :meth:`neurons` chooses."""
        import numpy as np

        return np.arange(width) if self.count(width) == width else None

    def neurons(self, view: LayerView) -> torch.Tensor:
        """The neurons kept of each token of ``view`` (the kept tokens), ascending, ``(M, count)`` int64."""
        raise NotImplementedError


WIDTH: Registry[WidthSelector] = Registry("width")


@WIDTH.register
class Magnitude(WidthSelector):
    """The neurons of largest ``|h|``, token by token; ties go to the lower index (arXiv 2106.05691)."""

    selector: Literal["magnitude"] = "magnitude"

    @override
    def neurons(self, view: LayerView) -> torch.Tensor:
        # topk leaves the order of ties open; a stable sort does not.
        order = view.hidden.abs().sort(dim=1, descending=True, stable=True).indices
        return order[:, : self.count(view.hidden.shape[1])].sort(dim=1).values


@WIDTH.register
class RandomNeurons(WidthSelector):
    """One mask drawn from ``seed``, the same for every token, example and layer."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def fixed(self, width: int) -> np.ndarray:
        import numpy as np

        draw = np.random.default_rng(self.seed).choice(width, self.count(width), replace=False)
        return np.sort(draw)


@WIDTH.register
class UniformNeurons(WidthSelector):
    """Neurons at even distances, the same for every token, example and layer."""

    selector: Literal["uniform"] = "uniform"

    @override
    def fixed(self, width: int) -> np.ndarray:
        import numpy as np

        count = self.count(width)
        return np.arange(count) * width // count
