"""Precision: the bits in which a kept value is stored."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from hskd.selectors.base import Registry, Selector


class PrecisionSelector(Selector):
    """Base of the precisions: how kept values turn into stored arrays and back.

    A plain number type needs only ``dtype``. A quantiser overrides all four methods: it may store several
    arrays, a scale beside the codes, say.
    """

    dtype: ClassVar[torch.dtype]

    def layout(self, count: int) -> dict[str, tuple[torch.dtype, int]]:
        """The arrays stored for ``count`` values of one token in one layer: name -> (dtype, elements)."""
        return {"values": (self.dtype, count)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """``values`` ``(..., count)`` as the arrays of :meth:`layout`."""
        return {"values": values.to(self.dtype)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The values ``(..., count)`` that ``arrays`` hold, as fp32."""
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
    dtype: ClassVar[torch.dtype] = torch.float32


@PRECISION.register
class FP16(PrecisionSelector):
    """16 bits, 11 of them significant."""

    selector: Literal["fp16"] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16


@PRECISION.register
class BF16(PrecisionSelector):
    """16 bits, 8 of them significant, with the range of fp32."""

    selector: Literal["bf16"] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16
