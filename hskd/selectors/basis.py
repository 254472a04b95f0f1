"""Width selectors that store coordinates along a basis, so that no neuron indices need to be stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from typing_extensions import override

from hskd.selectors.base import LayerView
from hskd.selectors.precision import PrecisionSelector
from hskd.selectors.width import WIDTH, Basis, Codec, WidthSelector

if TYPE_CHECKING:
    import numpy as np
    import torch


@lru_cache(maxsize=4)
def random_orthogonal(width: int, seed: int) -> torch.Tensor:
    """Return a uniformly random orthogonal matrix, drawn from ``seed``, ``(width, width)`` float64."""
    import numpy as np
    import torch

    orthogonal, triangular = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    # Without the correction of signs, the distribution would not be uniform.
    return torch.from_numpy(orthogonal * np.sign(np.diag(triangular)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch compute in one thread within the context, so that sums do not depend on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BasisWidth(WidthSelector):
    """Base class of the selectors that keep coordinates ``B^T (h - m)`` of the hidden state instead of some neurons.

    A subclass defines the :meth:`directions` ``B`` and the :meth:`centre` ``m``.
    """

    def directions(self, codec: Codec, width: int) -> torch.Tensor:
        """Return ``B`` of one layer or of all layers, ``(..., d_T, k)`` fp32."""
        raise NotImplementedError

    def centre(self, codec: Codec) -> torch.Tensor | None:
        """Return ``m`` of one layer or of all layers, ``(..., d_T)`` fp32; None if it is 0."""
        return None

    @override
    def fixed(self, width: int) -> np.ndarray:
        """Return all neurons, because coordinates are computed from all of them."""
        import numpy as np

        return np.arange(width)

    @override
    def encode(self, values: torch.Tensor, precision: PrecisionSelector, codec: Codec) -> dict[str, torch.Tensor]:
        directions, centre = self.directions(codec, values.shape[1]), self.centre(codec)
        if centre is not None:
            values = values - centre.to(values.device)
        return precision.encode(values @ directions.to(values.device))

    @override
    def basis(self, codec: Codec, layers: int, width: int) -> Basis:
        import torch

        directions, centre = self.directions(codec, width).expand(layers, -1, -1), self.centre(codec)
        if centre is None:
            return Basis(directions, torch.zeros(layers, directions.shape[2]))
        return Basis(directions, (centre[:, None] @ directions)[:, 0])


@WIDTH.register
class Projection(BasisWidth):
    """Keeps coordinates along the first directions of a random orthogonal basis, the same for every layer.

    The basis is computed from ``seed``, so it is not stored.
    """

    selector: Literal["projection"] = "projection"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def directions(self, codec: Codec, width: int) -> torch.Tensor:
        return _first(width, self.seed, self.count(width))


@lru_cache(maxsize=8)
def _first(width: int, seed: int, count: int) -> torch.Tensor:
    return random_orthogonal(width, seed)[:, :count].float().contiguous()


@WIDTH.register
class PCA(BasisWidth):
    """Keeps the centred coordinates along the principal components of the teacher's hidden states, for each layer.

    Components and mean are computed from the kept tokens of the training examples, and stored once.
    """

    selector: Literal["pca"] = "pca"
    rotate: bool = False
    """Whether to rotate the kept coordinates at random, so that all have about the same spread. Use it with int4 and
    int2, which have one scale for all coordinates of a token (arXiv 2410.01680)."""

    @override
    def directions(self, codec: Codec, width: int) -> torch.Tensor:
        return codec["basis"].float()

    @override
    def centre(self, codec: Codec) -> torch.Tensor:
        return codec["mean"]

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the layout of the mean in fp32 and the directions in fp16, or in fp32 if the coordinates are.

        Rounding the directions costs no accuracy, because teacher and student are compared along the rounded ones.
        """
        import torch

        dtype = torch.float32 if precision.selector == "fp32" else torch.float16
        return {"basis": (dtype, (width, self.count(width))), "mean": (torch.float32, (width,))}

    @override
    def fitter(self, precision: PrecisionSelector, width: int) -> Components:
        dtype, (_, count) = self.codec_layout(precision, width)["basis"]
        return Components(width, count, dtype, self.rotate)


class Components:
    """Computes principal components in one pass over any number of tokens, from sums in float64.

    Args:
        width: ``d_T``.
        count: number of components.
        dtype: type of the directions.
        rotate: whether to rotate the coordinates.
    """

    def __init__(self, width: int, count: int, dtype: torch.dtype, rotate: bool) -> None:
        import torch

        self._count, self._dtype, self._rotate = count, dtype, rotate
        self._tokens = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros((width, width), dtype=torch.float64)

    def add(self, view: LayerView) -> None:
        """Add the hidden states of a view to the sums."""
        with one_thread():
            hidden = view.hidden.cpu().double()
            self._tokens += len(hidden)
            self._sum += hidden.sum(0)
            self._products += hidden.T @ hidden

    def codec(self) -> Mapping[str, torch.Tensor]:
        """Return the components of largest variance, and the mean."""
        import torch

        with one_thread():
            mean = self._sum / max(1, self._tokens)
            covariance = self._products / max(1, self._tokens) - mean.outer(mean)
            directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self._count]
            # An eigenvector's sign is arbitrary: make its largest element positive.
            largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
            directions = directions * torch.where(largest < 0, -1.0, 1.0)
            if self._rotate:
                directions = directions @ random_orthogonal(self._count, seed=0)
        return {"basis": directions.to(self._dtype).contiguous(), "mean": mean.float()}
