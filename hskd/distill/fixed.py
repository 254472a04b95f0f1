"""Knowledge in shapes that depend only on a batch's size and width, so that a step can be captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel
from typing_extensions import override

from hskd.fast.layers import at
from hskd.heads import Head
from hskd.knowledge import KeptHSK, select_neurons
from hskd.runtime import autocast
from hskd.selectors import LayerView, Tokens
from hskd.selectors.length import Attention, AttentionNoSep
from hskd.selectors.width import Basis, Codec
from hskd.spec import HSKSpec, Layer
from hskd.store.on_device import PlacedStore
from hskd.tasks import model_inputs
from hskd.teachers.attention import attention_rows

Batch = Mapping[str, torch.Tensor]


class FixedKnowledge(Protocol):
    """Provides the targets of a batch. It computes on the device only, and never waits for it."""

    def kept(self, rows: torch.Tensor, batch: Batch) -> KeptHSK:
        """Return the targets of the HSK stage.

        Args:
            rows: row numbers of the examples in their split, ``(B,)``, on the device.
            batch: the inputs of the batch, on the device.
        """

    def targets(self, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the targets of the prediction stage, ``(B, C)``."""


class FixedStore(FixedKnowledge):
    """Knowledge of a store that lies on the device.

    Args:
        placed: the store.
        device: where it lies.
        lengths: tokens of the examples of the split, ``(N,)``.
        rows: rows of these examples in the store, ``(N,)``.
        hsk_rows: rows in the store of the examples whose hidden states they learn from; None for their own.
    """

    def __init__(
        self,
        placed: PlacedStore,
        device: torch.device,
        lengths: np.ndarray,
        rows: np.ndarray,
        hsk_rows: np.ndarray | None = None,
    ) -> None:
        self._placed = placed
        self._lengths = lengths
        self._rows = torch.from_numpy(rows).to(device)
        self._partners = hsk_rows is not None
        self._known = rows if hsk_rows is None else hsk_rows
        self._hsk_rows = torch.from_numpy(self._known).to(device)
        self._sizes: dict[int, tuple[int, int]] = {}

    @override
    def kept(self, rows: torch.Tensor, batch: Batch) -> KeptHSK:
        kept = self._placed.kept_in_shape(self._hsk_rows[rows], *self._largest(batch["input_ids"].shape[1]))
        return kept.within(batch["attention_mask"].sum(1)) if self._partners else kept

    @override
    def targets(self, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._placed.targets_in_shape(self._rows[rows])

    def _largest(self, width: int) -> tuple[int, int]:
        """Return the most kept tokens, and the most averaged ones, of an example in a batch of this width."""
        if width not in self._sizes:
            shorter = self._known[self._lengths <= width]
            self._sizes[width] = self._placed.most(shorter), self._placed.averaged(shorter)
        return self._sizes[width]


@dataclass(frozen=True, eq=False)
class FixedTeacher(FixedKnowledge):
    """Knowledge of a teacher that runs on every batch, for specs that :func:`ranks_on_device` accepts.

    Attributes:
        model: the teacher.
        head: makes its rows.
        sep_id: the tokenizer's id of ``[SEP]``.
        spec: what is kept; None if only the targets of the prediction stage are needed.
        layers: the kept layers.
        dtype: resolved precision of the forward pass.
        codec: the codec of the width selector on the device; empty if it learns nothing.
    """

    model: PreTrainedModel
    head: Head
    sep_id: int
    spec: HSKSpec | None
    layers: Sequence[Layer]
    dtype: str
    codec: Codec

    @override
    @torch.no_grad()
    def kept(self, rows: torch.Tensor, batch: Batch) -> KeptHSK:
        spec, mask = self.spec, batch["attention_mask"].bool()
        assert spec is not None
        self.model.eval()
        attention = sorted({layer.attention for layer in self.layers if layer.attention is not None})
        with autocast(self.dtype, mask.device), attention_rows(self.model, attention, (), mask, True) as of_cls:
            hidden = self._output(batch, output_hidden_states=True).hidden_states
        eligible = mask & (batch["input_ids"] != self.sep_id) if isinstance(spec.length, AttentionNoSep) else mask
        most = mask.shape[1] if spec.length.k == "all" else min(spec.length.k, mask.shape[1])
        counts = eligible.sum(1).clamp(max=most)
        real = torch.arange(most, device=mask.device) < counts[:, None]
        positions, encoded, neurons = [], [], []
        for i, layer in enumerate(self.layers):
            tokens = torch.arange(most, device=mask.device).expand(len(mask), -1)
            if layer.attention is not None:
                scores = of_cls.paid[layer.attention].float().masked_fill(~eligible, -torch.inf)
                tokens = scores.sort(dim=1, descending=True, stable=True).indices[:, :most]
            states = at(hidden[layer.teacher], tokens).flatten(0, 1).float()
            view = LayerView(_NO_TOKENS, layer.student, states, rounding=spec.precision.ranked)
            arrays, picked = select_neurons(spec, view, {name: array[i] for name, array in self.codec.items()})
            positions.append(torch.where(real, tokens, 0).flatten())
            encoded.append(arrays)
            neurons += [] if picked is None else [picked]
        arrays = {name: torch.stack([layer[name] for layer in encoded], 1) for name in encoded[0]}
        return KeptHSK(
            layers=tuple(layer.student for layer in self.layers),
            counts=counts,
            positions=torch.stack(positions, 1),
            values=spec.width.decode(arrays, spec.precision, self._prepared, self.model.config.hidden_size),
            neurons=torch.stack(neurons, 1) if neurons else None,
            most=most,
            basis=self._basis,
            real=real.flatten(),
        )

    @override
    @torch.no_grad()
    def targets(self, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.model.eval()
        with autocast(self.dtype, batch["attention_mask"].device):
            return self.head.rows(self._output(batch), batch).float()

    def _output(self, batch: Batch, **options: bool) -> Any:
        # Of a mask (B, T), transformers would ask the device whether it has pads.
        mask = batch["attention_mask"].bool()[:, None, None].expand(-1, 1, batch["input_ids"].shape[1], -1)
        return self.model(**{**model_inputs(batch), "attention_mask": mask}, **options)

    @cached_property
    def _prepared(self) -> Codec:
        assert self.spec is not None
        prepared = self.spec.width.prepared(self.codec, self.model.config.hidden_size)
        return {name: array.to(self.model.device) for name, array in prepared.items()}

    @cached_property
    def _basis(self) -> Basis | None:
        assert self.spec is not None
        basis = self.spec.width.basis(self.codec, len(self.layers), self.model.config.hidden_size)
        device = self.model.device
        return None if basis is None else Basis(basis.directions.to(device), basis.origin.to(device))


def ranks_on_device(spec: HSKSpec, width: int) -> bool:
    """Return whether :class:`FixedTeacher` can keep what ``spec`` keeps of hidden states of this width.

    It keeps all tokens or those of most attention, and all neurons, those of largest magnitude, or a codec's output.
    Other selectors rank on the CPU.
    """
    mask = spec.width.fixed(width)
    ranks = spec.length.keeps_all or type(spec.length) in (Attention, AttentionNoSep)
    return not spec.depth.draws and ranks and (mask is None or len(mask) == width)


_NO_TOKENS = Tokens(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32), 0)
"""Width selectors read no tokens, only hidden states."""
