"""Precision: the number format in which kept values are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from hskd.selectors.base import Registry, Selector

if TYPE_CHECKING:
    import torch

Layout = dict[str, tuple["torch.dtype", int]]
"""The type and the number of elements of each array, by name."""


class PrecisionSelector(Selector):
    """Base class of the precisions. It converts kept values into stored arrays and back.

    A plain number type defines only ``number``. A quantiser overrides all four methods, and may store several arrays,
    such as codes and a scale.
    """

    number: ClassVar[str]
    """PyTorch's name of the type of the stored numbers. It is a string, so that parsing a spec needs no PyTorch."""
    superset: ClassVar[str] = "fp32"
    """The precision of a superset if all specs have this precision: the same one if rounding twice is harmless."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers."""
        import torch

        dtype: torch.dtype = getattr(torch, self.number)
        return dtype

    def layout(self, count: int) -> Layout:
        """Return the arrays stored for ``count`` values of one token in one layer: name -> (dtype, elements)."""
        return {"values": (self.dtype, count)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``values`` ``(..., count)`` as the arrays of :meth:`layout`."""
        return {"values": values.to(self.dtype)}

    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        """Return the ``count`` values that ``arrays`` hold, ``(..., count)`` fp32."""
        return arrays["values"].float()

    def ranked(self, values: torch.Tensor) -> torch.Tensor:
        """Return hidden states ``(M, d_T)`` rounded as for storage, by which selectors rank.

        Rounding first makes a superset in the spec's precision, a superset in fp32 and the teacher itself all give the
        same neurons.
        """
        return values.to(self.dtype).float()


PRECISION: Registry[PrecisionSelector] = Registry("precision")


@PRECISION.register
class FP32(PrecisionSelector):
    """Stores 32-bit floats, without rounding."""

    selector: Literal["fp32"] = "fp32"
    number: ClassVar[str] = "float32"


@PRECISION.register
class FP16(PrecisionSelector):
    """Stores 16-bit floats with 11 significant bits."""

    selector: Literal["fp16"] = "fp16"
    number: ClassVar[str] = "float16"
    superset: ClassVar[str] = "fp16"


@PRECISION.register
class BF16(PrecisionSelector):
    """Stores 16-bit floats with 8 significant bits and the range of fp32."""

    selector: Literal["bf16"] = "bf16"
    number: ClassVar[str] = "bfloat16"
    superset: ClassVar[str] = "bf16"


class _Quantiser(PrecisionSelector):
    """Base class of precisions that store a code per value, and one scale per kept token and layer.

    The scale depends on which neurons are kept. Neurons are therefore ranked before rounding, and a superset cannot
    have this precision. If the scale exceeds the range of fp16 (65,504), it is infinite and the decoded values are not
    finite. No store is written in that case.

    In ``int8`` and ``int4``, codes are integers from ``-largest`` to ``largest``. The error of a value is at most half
    a scale, plus the rounding error of the scale in fp16: a relative error of 2^-11, or an absolute error of 2^-25 for
    a scale below 2^-14.
    """

    largest: ClassVar[int]

    def ranked(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` unchanged."""
        return values

    def _codes(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        scale = (values.abs().amax(dim=-1, keepdim=True) / self.largest).half()
        # If fp16 rounds the scale to 0, the values are practically 0.
        codes = (values / scale.float()).nan_to_num(0.0).round().clamp(-self.largest, self.largest)
        return codes.to(torch.int8), scale


@PRECISION.register
class Int8(_Quantiser):
    """Stores 8-bit integers from -127 to 127, and an fp16 scale per kept token and layer."""

    selector: Literal["int8"] = "int8"
    number: ClassVar[str] = "int8"
    largest: ClassVar[int] = 127

    def layout(self, count: int) -> Layout:
        """Return one byte per value, and the scale."""
        import torch

        return {"values": (torch.int8, count), "scale": (torch.float16, 1)}

    @override
    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = self._codes(values)
        return {"values": codes, "scale": scale}

    @override
    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        return arrays["values"].float() * arrays["scale"].float()


@PRECISION.register
class Int4(_Quantiser):
    """Stores 4-bit integers from -7 to 7, two per byte, and an fp16 scale per kept token and layer."""

    selector: Literal["int4"] = "int4"
    number: ClassVar[str] = "uint8"
    largest: ClassVar[int] = 7

    def layout(self, count: int) -> Layout:
        """Return half a byte per value, and the scale."""
        import torch

        return {"values": (torch.uint8, -(-count // 2)), "scale": (torch.float16, 1)}

    @override
    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return two integers per byte, each plus 8. An odd count is padded with 0."""
        import torch

        codes, scale = self._codes(values)
        nibbles = (codes + 8).to(torch.uint8)
        if nibbles.shape[-1] % 2:
            nibbles = torch.cat([nibbles, torch.zeros_like(nibbles[..., :1])], dim=-1)
        return {"values": nibbles[..., 0::2] | nibbles[..., 1::2] << 4, "scale": scale}

    @override
    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        import torch

        packed = arrays["values"]
        nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :count]
        return (nibbles.float() - 8) * arrays["scale"].float()


@PRECISION.register
class Int2(_Quantiser):
    """Stores 2-bit codes for -1.5, -0.5, 0.5 and 1.5, four per byte, and an fp16 scale per kept token and layer.

    The step follows the spread of the values. In ``int8`` and ``int4`` it follows the largest value, but with four
    levels, none can be spent on an outlier. Coordinates with similar spread suit this precision best
    (``width=pca,rotate=true``).
    """

    selector: Literal["int2"] = "int2"
    number: ClassVar[str] = "uint8"
    largest: ClassVar[int] = 1
    step: ClassVar[float] = 0.9957
    """Optimal distance between four levels, for normally distributed values of unit variance (Max 1960)."""

    def layout(self, count: int) -> Layout:
        """Return a quarter of a byte per value, and the scale."""
        import torch

        return {"values": (torch.uint8, -(-count // 4)), "scale": (torch.float16, 1)}

    @override
    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return four codes per byte, each from 0 to 3. An incomplete byte is padded with 0."""
        import torch

        step = self.step * values.square().mean(dim=-1, keepdim=True).sqrt()
        codes = ((values / step).nan_to_num(0.0, 0.0, 0.0).floor() + 2).clamp(0, 3)
        # This is the least-squares scale for the given codes. A single value per token is exact.
        levels = codes - 1.5
        scale = ((values * levels).sum(-1, keepdim=True) / levels.square().sum(-1, keepdim=True)).half()
        quarters = torch.nn.functional.pad(codes.to(torch.uint8), (0, -values.shape[-1] % 4)).unflatten(-1, (-1, 4))
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=values.device)
        return {"values": (quarters << shifts).sum(-1).to(torch.uint8), "scale": scale}

    @override
    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        import torch

        packed = arrays["values"]
        codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(-2)[..., :count]
        return (codes.float() - 1.5) * arrays["scale"].float()
