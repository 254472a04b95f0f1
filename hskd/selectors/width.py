"""Width: which neurons of a kept token are kept, or which other numbers replace them (basis.py, codebook.py)."""

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
"""The arrays, by name, that turn the hidden states of a layer into the kept numbers and back. They are stored once."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The directions along which a loss compares hidden states, for each of ``n`` layers.

    Attributes:
        directions: one direction per column, ``(n, d_T, k)`` fp32.
        origin: the coordinates of the point that counts as zero, ``(n, k)`` fp32.
    """

    directions: torch.Tensor
    origin: torch.Tensor


class Fitter(Protocol):
    """Learns the codec of one layer from hidden states, in one pass."""

    def add(self, view: LayerView) -> None:
        """Learn from the kept tokens of some examples."""

    def codec(self) -> Codec:
        """Return the codec, after all tokens have been added."""


class WidthSelector(Selector):
    """Base class of the selectors along width. It keeps ``max(1, floor(w * d_T))`` numbers of every kept token.

    A selector of neurons defines either one :meth:`fixed` mask for all layers, or the :meth:`neurons` of each token in
    each layer. A selector that computes its numbers from all neurons overrides :meth:`fixed` to keep all neurons. It
    also overrides :meth:`encode` together with :meth:`decode` or :meth:`basis`. If these need learnt arrays, it
    defines :meth:`codec_layout` and :meth:`fitter`.
    """

    w: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Number of kept values, as a share of the neurons."""

    @field_validator("w", mode="before")
    @classmethod
    def _all_is_one(cls, value: object) -> object:
        return 1.0 if value == "all" else value

    def count(self, width: int) -> int:
        """Return how many numbers are kept of ``width``. It is exact: 0.29 of 100 is 29, unlike ``int(0.29 * 100)``."""
        return max(1, int(Fraction(str(self.w)) * width))

    def fixed(self, width: int) -> np.ndarray | None:
        """Return the neurons kept in every token and layer, ascending, ``(count,)``; None if they differ by token."""
        import numpy as np

        return np.arange(width) if self.count(width) == width else None

    def neurons(self, view: LayerView) -> torch.Tensor:
        """Return the neurons kept of each token of ``view`` (the kept tokens), ascending, ``(M, count)`` int64."""
        raise NotImplementedError

    def check(self, precision: PrecisionSelector) -> None:
        """Check that the selector supports the precision.

        Raises:
            ValueError: names the supported precisions.
        """

    def layout(self, precision: PrecisionSelector, width: int) -> Layout:
        """Return the arrays stored per token and layer, without :meth:`neurons`: name -> (dtype, elements)."""
        return precision.layout(self.count(width))

    def encode(self, values: torch.Tensor, precision: PrecisionSelector, codec: Codec) -> dict[str, torch.Tensor]:
        """Return the arrays to store for one layer.

        Args:
            values: the kept neurons of the kept tokens, ``(K, kept neurons)`` fp32.
            precision: how numbers are stored.
            codec: the codec of the layer; empty unless :meth:`codec_layout` names arrays.

        Returns:
            The arrays of :meth:`layout`, ``(K, elements)`` each.
        """
        return precision.encode(values)

    def decode(
        self, arrays: Mapping[str, torch.Tensor], precision: PrecisionSelector, codec: Codec, width: int
    ) -> torch.Tensor:
        """Return the numbers that a loss compares, ``(K, n, k)`` fp32, for all ``n`` layers at once.

        Args:
            arrays: the arrays of :meth:`encode`, ``(K, n, elements)`` each.
            precision: how numbers are stored.
            codec: the result of :meth:`prepared`.
            width: ``d_T``.
        """
        return precision.decode(arrays, self.count(width))

    def prepared(self, codec: Codec, width: int) -> Codec:
        """Return the codecs of all layers in the form that :meth:`decode` needs. It is computed once, not per batch.

        Args:
            codec: the codecs of all layers, ``(n, ...)`` for each array.
            width: ``d_T``.
        """
        return codec

    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the learnt arrays that are stored once per layer: name -> (dtype, shape). Empty if there are none."""
        return {}

    def fitter(self, precision: PrecisionSelector, width: int) -> Fitter:
        """Return an object that learns the codec of a layer from the kept tokens of the training examples."""
        raise NotImplementedError

    def basis(self, codec: Codec, layers: int, width: int) -> Basis | None:
        """Return the directions along which the kept numbers are coordinates; None if the numbers are neurons.

        Args:
            codec: the codecs of all layers, ``(n, ...)`` for each array.
            layers: ``n``.
            width: ``d_T``.
        """
        return None


WIDTH: Registry[WidthSelector] = Registry("width")


@WIDTH.register
class Magnitude(WidthSelector):
    """Keeps the neurons of largest ``|h|`` of each token. Ties go to the lower index (arXiv 2106.05691)."""

    selector: Literal["magnitude"] = "magnitude"

    @override
    def neurons(self, view: LayerView) -> torch.Tensor:
        # The order of ties is undefined in topk, but not in a stable sort.
        order = view.hidden.abs().sort(dim=1, descending=True, stable=True).indices
        return order[:, : self.count(view.hidden.shape[1])].sort(dim=1).values


@WIDTH.register
class RandomNeurons(WidthSelector):
    """Keeps random neurons, drawn from ``seed``, which are the same for every token, example and layer."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def fixed(self, width: int) -> np.ndarray:
        import numpy as np

        draw = np.random.default_rng(self.seed).choice(width, self.count(width), replace=False)
        return np.sort(draw)


@WIDTH.register
class UniformNeurons(WidthSelector):
    """Keeps evenly spaced neurons, which are the same for every token, example and layer."""

    selector: Literal["uniform"] = "uniform"

    @override
    def fixed(self, width: int) -> np.ndarray:
        import numpy as np

        count = self.count(width)
        return np.arange(count) * width // count
