"""Hidden-state knowledge in memory, and its selection: the one piece of code that online and offline share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from hskd.selectors import LayerView, Tokens
from hskd.spec import HSKSpec, Layer


@dataclass(frozen=True, eq=False)
class TeacherStates:
    """What a teacher knows of ``B`` examples with ``M`` real tokens in all, pads left out.

    Attributes:
        tokens: the tokens, end to end.
        hidden: teacher layer -> ``(M, d_T)`` fp32; layer 0 is the embedding output.
        attention: attention layer (1-based) -> share of attention that ``[CLS]`` pays each token, ``(M,)`` fp32.
    """

    tokens: Tokens
    hidden: Mapping[int, torch.Tensor]
    attention: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class KeptHSK:
    """The kept hidden-state knowledge of ``B`` examples: ``K`` kept tokens in all, ``n`` layers, ``k`` neurons.

    Attributes:
        layers: the ``n`` student layers that learn.
        counts: kept tokens of each example, ``(B,)`` int64, the same in every layer.
        positions: places of the kept tokens in their example, ``(K, n)`` int64.
        values: ``(K, n, k)`` fp32.
        neurons: which neurons the values are: None for all, ``(k,)`` the same everywhere, or ``(K, n, k)``, int64.
        weights: of each value among those of its example and layer, ``(K, n, k)``, summing to 1; None: all alike.
            Selection always gives None; a source of your own may give others.
        most: kept tokens of the example that has the most. It is known on the CPU, so that no step has to wait for a
            GPU to count; None to count it now.
    """

    layers: tuple[int, ...]
    counts: torch.Tensor
    positions: torch.Tensor
    values: torch.Tensor
    neurons: torch.Tensor | None
    weights: torch.Tensor | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        """Count what is not given."""
        if self.most is None:
            object.__setattr__(self, "most", int(self.counts.max()) if len(self.counts) else 0)

    @cached_property
    def example(self) -> torch.Tensor:
        """Which example of the batch each kept token belongs to, ``(K,)`` int64."""
        examples = torch.arange(len(self.counts), device=self.counts.device)
        return torch.repeat_interleave(examples, self.counts, output_size=len(self.positions))

    @cached_property
    def rank(self) -> torch.Tensor:
        """Place of each kept token among the kept ones of its example, ``(K,)`` int64, from 0."""
        starts = self.counts.cumsum(0) - self.counts
        first = torch.repeat_interleave(starts, self.counts, output_size=len(self.positions))
        return torch.arange(len(first), device=first.device) - first

    def to(self, device: torch.device, non_blocking: bool = False) -> KeptHSK:
        """The same knowledge on ``device``; ``non_blocking`` is that of ``Tensor.to``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeptHSK:
        """The same knowledge in pinned memory, from which a GPU copies while it computes."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> KeptHSK:
        return replace(
            self,
            counts=change(self.counts),
            positions=change(self.positions),
            values=change(self.values),
            neurons=None if self.neurons is None else change(self.neurons),
            weights=None if self.weights is None else change(self.weights),
        )


def select_hsk(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates) -> KeptHSK:
    """What ``spec`` keeps of a teacher's ``states`` in the given ``layers``.

    Tokens are chosen layer by layer, neurons token by token, both on values rounded to the spec's precision.

    Raises:
        HskdError: the length selector ranks by attention and ``states`` has none.
        KeyError: ``states`` lacks a teacher layer of ``layers``.
    """
    tokens = states.tokens
    positions, values, neurons = [], [], []
    fixed: torch.Tensor | None = None
    for layer in layers:
        attention = None if layer.attention is None else states.attention[layer.attention]
        view = LayerView(tokens, layer.student, states.hidden[layer.teacher], attention, spec.precision.ranked)
        view = view.take(spec.length.select(view))
        positions.append(torch.from_numpy(view.tokens.position))
        kept = view.hidden
        mask = spec.width.fixed(kept.shape[1])
        if mask is None:
            picked = spec.width.neurons(view).to(kept.device)
            neurons.append(picked)
            kept = kept.gather(1, picked)
        elif len(mask) < kept.shape[1]:
            fixed = torch.from_numpy(mask).to(kept.device)
            kept = kept[:, fixed]
        values.append(spec.precision.decode(spec.precision.encode(kept)))
    return KeptHSK(
        layers=tuple(layer.student for layer in layers),
        counts=torch.from_numpy(spec.length.counts(tokens)),
        positions=torch.stack(positions, dim=1),
        values=torch.stack(values, dim=1),
        neurons=torch.stack(neurons, dim=1) if neurons else fixed,
    )
