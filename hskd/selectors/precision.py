"""Precision: the bits in which a kept value is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from hskd.selectors.base import Registry, Selector

if TYPE_CHECKING:
    import torch

Layout = dict[str, tuple["torch.dtype", int]]
"""Arrays by name: the type and the number of the elements."""


class PrecisionSelector(Selector):
    """Base of the precisions: how kept values turn into stored arrays and back.

    A plain number type needs only ``number``. A quantiser overrides all four methods: it may store several
    arrays, a scale beside the codes, say.
    """

    number: ClassVar[str]
    """PyTorch's name of the type of the stored numbers. A name, so that a spec is read without importing PyTorch."""
    superset: ClassVar[str] = "fp32"
    """The precision of a superset for specs of this one alone: itself where storing twice changes nothing."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers."""
        import torch

        dtype: torch.dtype = getattr(torch, self.number)
        return dtype

    def layout(self, count: int) -> Layout:
        """The arrays stored for ``count`` values of one token in one layer: name -> (dtype, elements)."""
        return {"values": (self.dtype, count)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """``values`` ``(..., count)`` as the arrays of :meth:`layout`."""
        return {"values": values.to(self.dtype)}

    def decode(self, arrays: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        """The ``count`` values that ``arrays`` hold, ``(..., count)`` fp32."""
        return arrays["values"].float()

    def ranked(self, values: torch.Tensor) -> torch.Tensor:
        """Hidden states ``(M, d_T)`` as the width selector ranks them: rounded as they will be stored.

        So a superset in the spec's precision, one in fp32 and the teacher itself all give the same neurons.
        """
        return values.to(self.dtype).float()


PRECISION: Registry[PrecisionSelector] = Registry("precision")


@PRECISION.register
class FP32(PrecisionSelector):
    """32 bits: as the teacher computes."""

    selector: Literal["fp32"] = "fp32"
    number: ClassVar[str] = "float32"


@PRECISION.register
class FP16(PrecisionSelector):
    """16 bits, 11 of them significant."""

    selector: Literal["fp16"] = "fp16"
    number: ClassVar[str] = "float16"
    superset: ClassVar[str] = "fp16"


@PRECISION.register
class BF16(PrecisionSelector):
    """16 bits, 8 of them significant, with the range of fp32."""

    selector: Literal["bf16"] = "bf16"
    number: ClassVar[str] = "bfloat16"
    superset: ClassVar[str] = "bf16"


class _Quantiser(PrecisionSelector):
    """Whole numbers from ``-largest`` to ``largest``, times one scale for each kept token and layer.

    The scale depends on which neurons are kept, so neurons are ranked before any rounding, and a superset cannot
    be stored like this. A value is wrong by half a scale at most, and by what fp16 rounds off the scale: a share of
    2^-11, or 2^-25 for a scale below 2^-14. Where the largest value takes a scale beyond fp16 (65,504), the scale is
    infinite and the values read back are not finite; no store is written of them.
    """

    largest: ClassVar[int]

    def ranked(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` as they are."""
        return values

    def _codes(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        scale = (values.abs().amax(dim=-1, keepdim=True) / self.largest).half()
        # A scale that fp16 rounds to 0 belongs to values that are as good as 0.
        codes = (values / scale.float()).nan_to_num(0.0).round().clamp(-self.largest, self.largest)
        return codes.to(torch.int8), scale


@PRECISION.register
class Int8(_Quantiser):
    """8 bits, from -127 to 127 times a scale in fp16 for each kept token and layer."""

    selector: Literal["int8"] = "int8"
    number: ClassVar[str] = "int8"
    largest: ClassVar[int] = 127

    def layout(self, count: int) -> Layout:
        """A byte for each value, and the scale."""
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
    """4 bits, from -7 to 7 times a scale in fp16 for each kept token and layer; two values to a byte."""

    selector: Literal["int4"] = "int4"
    number: ClassVar[str] = "uint8"
    largest: ClassVar[int] = 7

    def layout(self, count: int) -> Layout:
        """Half a byte for each value, and the scale."""
        import torch

        return {"values": (torch.uint8, -(-count // 2)), "scale": (torch.float16, 1)}

    @override
    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Two numbers a byte: 8 is added to each, and 0 stands for the missing one of an odd count."""
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
    """2 bits: -1.5, -0.5, 0.5 or 1.5 times a scale in fp16 for each kept token and layer; four values to a byte.

    The step follows the spread of the values, where ``int8`` and ``int4`` follow the largest: of four numbers, none
    can be spent on an outlier. Coordinates that are alike in spread suit it best (``width=pca,rotate=true``).
    """

    selector: Literal["int2"] = "int2"
    number: ClassVar[str] = "uint8"
    largest: ClassVar[int] = 1
    step: ClassVar[float] = 0.9957
    """Best distance of four levels, for normally distributed values of unit variance (Max 1960)."""

    def layout(self, count: int) -> Layout:
        """A quarter of a byte for each value, and the scale."""
        import torch

        return {"values": (torch.uint8, -(-count // 4)), "scale": (torch.float16, 1)}

    @override
    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Four numbers a byte, 0 to 3; 0 stands for the missing ones."""
        import torch

        step = self.step * values.square().mean(dim=-1, keepdim=True).sqrt()
        codes = ((values / step).nan_to_num(0.0, 0.0, 0.0).floor() + 2).clamp(0, 3)
        # Given the codes, this scale has the least squared error. It makes a token's only value exact.
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
