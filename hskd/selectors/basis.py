"""Width as coordinates along a basis: a kept token costs no byte for saying which neurons it keeps."""

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
    """An orthogonal matrix drawn uniformly from ``seed``, ``(width, width)`` float64."""
    import numpy as np
    import torch

    orthogonal, triangular = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return torch.from_numpy(orthogonal * np.sign(np.diag(triangular)))  # the signs make it uniform


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes in one thread: a sum has the same bits whatever the number of threads around it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BasisWidth(WidthSelector):
    """Base of the selectors that keep coordinates ``B^T (h - m)`` of all neurons in place of some neurons.

    A subclass gives the directions ``B`` and the point ``m`` that coordinates are counted from.
    """

    def directions(self, codec: Codec, width: int) -> torch.Tensor:
        """``B`` of one layer or of all, ``(..., d_T, k)`` fp32."""
        raise NotImplementedError

    def centre(self, codec: Codec) -> torch.Tensor | None:
        """``m`` of one layer or of all, ``(..., d_T)`` fp32; None for the origin."""
        return None

    @override
    def fixed(self, width: int) -> np.ndarray:
        """Every neuron takes part."""
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
    """Coordinates along the first directions of a random orthogonal basis, the same for every layer.

    The basis follows from ``seed``, so that it takes no bytes.
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
    """Coordinates along the principal components of the teacher's hidden states, for each layer, about their mean.

    Components and mean are those of the kept tokens of the training examples. They are stored once.
    """

    selector: Literal["pca"] = "pca"
    rotate: bool = False
    """Rotate the kept coordinates at random, so that all have about the same spread: for int4 and int2, whose scale
    serves all coordinates of a token (arXiv 2410.01680)."""

    @override
    def directions(self, codec: Codec, width: int) -> torch.Tensor:
        return codec["basis"].float()

    @override
    def centre(self, codec: Codec) -> torch.Tensor:
        return codec["mean"]

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The mean in fp32, and the directions in fp16 unless the coordinates are in fp32.

        Teacher and student are compared along the directions as they are stored, so rounding them costs nothing.
        """
        import torch

        dtype = torch.float32 if precision.selector == "fp32" else torch.float16
        return {"basis": (dtype, (width, self.count(width))), "mean": (torch.float32, (width,))}

    @override
    def fitter(self, precision: PrecisionSelector, width: int) -> Components:
        dtype, (_, count) = self.codec_layout(precision, width)["basis"]
        return Components(width, count, dtype, self.rotate)


class Components:
    """Principal components from exact sums, in float64: one pass, whatever the number of tokens.

    Args:
        width: ``d_T``.
        count: components wanted.
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
        """Add the products of the view's hidden states."""
        with one_thread():
            hidden = view.hidden.cpu().double()
            self._tokens += len(hidden)
            self._sum += hidden.sum(0)
            self._products += hidden.T @ hidden

    def codec(self) -> Mapping[str, torch.Tensor]:
        """The components of largest variance, and the mean."""
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
