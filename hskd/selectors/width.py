"""Width: which neurons of a kept token are kept, or which numbers in their place (basis.py, codebook.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.selectors.base import LayerView, Registry, Selector
from hskd.selectors.precision import Layout, PrecisionSelector

if TYPE_CHECKING:
    import numpy as np
    import torch

Codec = Mapping[str, "torch.Tensor"]
"""What is needed once for each layer to turn hidden states into the numbers that are kept, and back: name -> array."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions along which a loss compares hidden states, for each of ``n`` layers.

    Attributes:
        directions: one in each column, ``(n, d_T, k)`` fp32.
        origin: the coordinates of the point that coordinates are counted from, ``(n, k)`` fp32.
    """

    directions: torch.Tensor
    origin: torch.Tensor


class Fitter(Protocol):
    """Learns the codec of one layer from hidden states, which it is given in one pass."""

    def add(self, view: LayerView) -> None:
        """Take the kept tokens of some examples into account."""

    def codec(self) -> Codec:
        """The codec, once all tokens have been added."""


class WidthSelector(Selector):
    """Base of the selectors along width: keeps ``max(1, floor(w * d_T))`` numbers of every kept token.

    A selector of neurons gives either one :meth:`fixed` mask for all layers, or the :meth:`neurons` of each token in
    each layer. A selector that computes its numbers from all neurons overrides :meth:`fixed` to keep them all, and
    :meth:`encode` and :meth:`decode`, or :meth:`basis`; what these need beside the hidden states is the codec.
    """

    w: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the neurons, or as many other numbers."""

    @field_validator("w", mode="before")
    @classmethod
    def _all_is_one(cls, value: object) -> object:
        return 1.0 if value == "all" else value

    def count(self, width: int) -> int:
        """Numbers kept of ``width``. Exact: 0.29 of 100 is 29, though ``0.29 * 100 < 29`` in floating point."""
        return max(1, int(Fraction(str(self.w)) * width))

    def fixed(self, width: int) -> np.ndarray | None:
        """The neurons kept in every token and layer, ascending, ``(count,)``; None where :meth:`neurons` chooses."""
        import numpy as np

        return np.arange(width) if self.count(width) == width else None

    def neurons(self, view: LayerView) -> torch.Tensor:
        """The neurons kept of each token of ``view`` (the kept tokens), ascending, ``(M, count)`` int64."""
        raise NotImplementedError

    def check(self, precision: PrecisionSelector) -> None:
        """Refuse a precision that the kept numbers cannot have.

        Raises:
            ValueError: says which precisions they can have.
        """

    def layout(self, precision: PrecisionSelector, width: int) -> Layout:
        """The arrays stored for one token in one layer, apart from :meth:`neurons`: name -> (dtype, elements)."""
        return precision.layout(self.count(width))

    def encode(self, values: torch.Tensor, precision: PrecisionSelector, codec: Codec) -> dict[str, torch.Tensor]:
        """What is stored of one layer.

        Args:
            values: the kept neurons of the kept tokens, ``(K, kept neurons)`` fp32.
            precision: how numbers are stored.
            codec: that of the layer; empty unless :meth:`codec_layout` names arrays.

        Returns:
            The arrays of :meth:`layout`, ``(K, elements)`` each.
        """
        return precision.encode(values)

    def decode(
        self, arrays: Mapping[str, torch.Tensor], precision: PrecisionSelector, codec: Codec, width: int
    ) -> torch.Tensor:
        """The numbers that a loss compares, ``(K, n, k)`` fp32, for all ``n`` layers at once.

        Args:
            arrays: those of :meth:`encode`, ``(K, n, elements)`` each.
            precision: how numbers are stored.
            codec: those of all layers, :meth:`prepared`.
            width: ``d_T``.
        """
        return precision.decode(arrays, self.count(width))

    def prepared(self, codec: Codec, width: int) -> Codec:
        """The codecs of all layers, ``(n, ...)`` for each array, as :meth:`decode` wants them batch after batch."""
        return codec

    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What is stored once for each layer: name -> (dtype, shape). Empty where nothing has to be learnt."""
        return {}

    def fitter(self, precision: PrecisionSelector, width: int) -> Fitter:
        """Learns the codec of a layer from the kept tokens of the training examples."""
        raise NotImplementedError

    def basis(self, codec: Codec, layers: int, width: int) -> Basis | None:
        """The directions that the kept numbers are coordinates along; None where the numbers are neurons.

        Args:
            codec: those of all layers, ``(n, ...)`` for each array.
            layers: ``n``.
            width: ``d_T``.
        """
        return None


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
