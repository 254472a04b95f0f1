"""Hidden-state knowledge in memory, and its selection: the one piece of code that online and offline share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from hskd.errors import HskdError
from hskd.selectors import LayerView, Tokens
from hskd.selectors.width import Basis, Codec
from hskd.spec import HSKSpec, Layer


@dataclass(frozen=True, eq=False)
class TeacherStates:
    """What a teacher knows of ``B`` examples with ``M`` real tokens in all, pads left out.

    Attributes:
        tokens: the tokens, end to end.
        hidden: teacher layer -> ``(M, d_T)`` fp32; layer 0 is the embedding output.
        attention: attention layer (1-based) -> share of attention that ``[CLS]`` pays each token, ``(M,)`` fp32.
        gradient: teacher layer -> ``|h . dL/dh|`` of each token (see ``length=gradient``), ``(M,)`` fp32.
        received: attention layer (1-based) -> mean attention that each token receives, ``(M,)`` fp32.
        entropy: entropy of the prediction for each token that begins a word, 0 for the others, ``(M,)``; None where it
            was not asked for, or the prediction is one of the example.
    """

    tokens: Tokens
    hidden: Mapping[int, torch.Tensor]
    attention: Mapping[int, np.ndarray]
    gradient: Mapping[int, np.ndarray] = field(default_factory=dict)
    received: Mapping[int, np.ndarray] = field(default_factory=dict)
    entropy: np.ndarray | None = None


class Members(NamedTuple):
    """The tokens that kept ones are the means of: ``P`` in all, in every layer the same.

    Attributes:
        kept: which of the ``K`` kept tokens each belongs to, ``(P,)`` int64.
        position: its place in the example, ``(P,)`` int64.
    """

    kept: torch.Tensor
    position: torch.Tensor

    @classmethod
    def of(cls, spec: HSKSpec, tokens: Tokens) -> Members | None:
        """Those of the examples in ``tokens``."""
        members = spec.length.members(tokens)
        return None if members is None else cls(*map(torch.from_numpy, members))

    def mean(self, states: torch.Tensor, count: int) -> torch.Tensor:
        """``states`` ``(P, d)`` of the members, averaged for each of the ``count`` kept tokens: ``(count, d)``."""
        states = states.float()  # bf16 would add up badly
        sums = states.new_zeros((count, states.shape[1])).index_add(0, self.kept, states)
        sizes = torch.zeros(count, device=states.device).index_add(
            0, self.kept, self.kept.new_ones(()).expand_as(self.kept).float()
        )
        return sums / sizes[:, None]


@dataclass(frozen=True, eq=False)
class KeptHSK:
    """The kept hidden-state knowledge of ``B`` examples: ``K`` kept tokens in all, ``n`` layers, ``k`` neurons.

    Attributes:
        layers: the ``n`` student layers that learn.
        counts: kept tokens of each example, ``(B,)`` int64, the same in every layer.
        positions: places of the kept tokens in their example, ``(K, n)`` int64.
        values: ``(K, n, k)`` fp32: neurons, or coordinates along ``basis``.
        neurons: which neurons the values are: None for all, ``(k,)`` the same everywhere, or ``(K, n, k)``, int64.
        weights: of each value among those of its example and layer, ``(K, n, k)``, summing to 1; None: all alike.
            Selection always gives None; a source of your own may give others.
        most: kept tokens of the example that has the most. It is known on the CPU, so that no step has to wait for a
            GPU to count; None to count it now.
        basis: the directions that the values are coordinates along; None where they are neurons.
        members: the tokens that each kept one is the mean of; None where each is one token.
        places: which of the spec's layers these are, where they are drawn for each batch; None for all of them.
    """

    layers: tuple[int, ...]
    counts: torch.Tensor
    positions: torch.Tensor
    values: torch.Tensor
    neurons: torch.Tensor | None
    weights: torch.Tensor | None = None
    most: int | None = None
    basis: Basis | None = None
    members: Members | None = None
    places: tuple[int, ...] | None = None

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

    def drawn(self, spec: HSKSpec, student_layers: int, teacher_layers: int, batch: Mapping[str, Any]) -> KeptHSK:
        """What a batch learns from, of all layers that ``spec`` may draw; the same where it draws none.

        Args:
            spec: what is kept.
            student_layers: ``L_S``.
            teacher_layers: ``L_T``.
            batch: as a loader of training batches gives it, with its number ``draw``.

        Raises:
            HskdError: layers are drawn, and the batch has no such number.
        """
        if not spec.depth.draws:
            return self
        if "draw" not in batch:
            raise HskdError(
                f"depth={spec.depth.selector}: draws layers for each batch of training, by the number draw that "
                "hskd.tasks.batch_loader gives it; this batch has none."
            )
        layers, places = zip(*spec.depth.drawn(student_layers, teacher_layers, batch["draw"]), strict=True)
        chosen = list(places)
        of_tokens = self.neurons is not None and self.neurons.dim() == 3
        return replace(
            self,
            layers=layers,
            positions=self.positions[:, chosen],
            values=self.values[:, chosen],
            neurons=self.neurons[:, chosen] if of_tokens and self.neurons is not None else self.neurons,
            weights=None if self.weights is None else self.weights[:, chosen],
            basis=None if self.basis is None else Basis(self.basis.directions[chosen], self.basis.origin[chosen]),
            places=places,
        )

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
            basis=None if self.basis is None else Basis(change(self.basis.directions), change(self.basis.origin)),
            members=None if self.members is None else Members(*map(change, self.members)),
        )


@dataclass(frozen=True, eq=False)
class SelectedHSK:
    """Kept hidden-state knowledge as a store holds it, of ``B`` examples: ``K`` kept tokens in all, ``n`` layers.

    Attributes:
        counts: kept tokens of each example, ``(B,)`` int64.
        positions: places of the kept tokens in their example, ``(K, n)`` int64.
        arrays: the arrays of the width selector, ``(K, n, elements)`` each.
        neurons: as in :class:`KeptHSK`.
    """

    counts: torch.Tensor
    positions: torch.Tensor
    arrays: Mapping[str, torch.Tensor]
    neurons: torch.Tensor | None


def select_hsk(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates, codec: Codec | None = None) -> KeptHSK:
    """What ``spec`` keeps of a teacher's ``states`` in the given ``layers``.

    Tokens are chosen layer by layer, neurons token by token, both on values rounded to the spec's precision.

    Args:
        spec: what to keep.
        layers: the kept layers.
        states: the teacher's.
        codec: what :func:`fit_codec` gave, where the width selector has to learn.

    Raises:
        HskdError: the length selector ranks by attention and ``states`` has none; or the width selector has to learn
            from the training examples first, and no codec is given.
        KeyError: ``states`` lacks a teacher layer of ``layers``.
    """
    selected = select(spec, layers, states, codec)
    width = next(iter(states.hidden.values())).shape[1]
    return KeptHSK(
        layers=tuple(layer.student for layer in layers),
        counts=selected.counts,
        positions=selected.positions,
        values=spec.width.decode(selected.arrays, spec.precision, spec.width.prepared(codec or {}, width), width),
        neurons=selected.neurons,
        basis=spec.width.basis(codec or {}, len(layers), width),
        members=Members.of(spec, states.tokens),
    )


def select(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates, codec: Codec | None = None) -> SelectedHSK:
    """:func:`select_hsk`, with the numbers as they are stored."""
    positions, neurons = [], []
    arrays: dict[str, list[torch.Tensor]] = {}
    fixed: torch.Tensor | None = None
    for i, layer in enumerate(layers):
        view = _kept_view(spec, layer, states)
        positions.append(torch.from_numpy(view.tokens.position))
        kept = view.hidden
        width = kept.shape[1]
        missing = set(spec.width.codec_layout(spec.precision, width)) - set(codec or {})
        if missing:
            raise HskdError(
                f"width={spec.width.selector}: has to learn from the training examples before anything is kept; "
                "fit it first."
            )
        mask = spec.width.fixed(width)
        if mask is None:
            picked = spec.width.neurons(view).to(kept.device)
            neurons.append(picked)
            kept = kept.gather(1, picked)
        elif len(mask) < width:
            fixed = torch.from_numpy(mask).to(kept.device)
            kept = kept[:, fixed]
        own = {name: array[i] for name, array in (codec or {}).items()}
        for name, array in spec.width.encode(kept, spec.precision, own).items():
            arrays.setdefault(name, []).append(array)
    return SelectedHSK(
        counts=torch.from_numpy(spec.length.counts(states.tokens)),
        positions=torch.stack(positions, dim=1),
        arrays={name: torch.stack(parts, dim=1) for name, parts in arrays.items()},
        neurons=torch.stack(neurons, dim=1) if neurons else fixed,
    )


def fit_codec(
    spec: HSKSpec, layers: Sequence[Layer], width: int, batches: Iterable[TeacherStates]
) -> dict[str, torch.Tensor] | None:
    """What the width selector learns from the kept tokens of the training examples, in one pass over them.

    Args:
        spec: its width selector learns; only the tokens that it keeps count.
        layers: the kept layers, which learn separately.
        width: ``d_T``.
        batches: the teacher's states for all training examples, some examples at a time.

    Returns:
        The arrays of ``spec.width.codec_layout``, ``(n, ...)`` each; None where there is nothing to learn.
    """
    if not spec.width.codec_layout(spec.precision, width):
        return None
    fitters = [spec.width.fitter(spec.precision, width) for _ in layers]
    for states in batches:
        for layer, fitter in zip(layers, fitters, strict=True):
            fitter.add(_kept_view(spec, layer, states))
    codecs = [fitter.codec() for fitter in fitters]
    return {name: torch.stack([codec[name] for codec in codecs]) for name in codecs[0]}


class Spread:
    """Standard deviations of numbers, from exact sums in float64 over one pass."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, values: torch.Tensor) -> None:
        """Take ``(K, ...)`` values into account, one of each number in a row."""
        exact = values.detach().cpu().double()
        new = exact.sum(0), exact.square().sum(0)
        self._count += len(exact)
        self._sums = new if self._sums is None else (self._sums[0] + new[0], self._sums[1] + new[1])

    def deviations(self) -> torch.Tensor:
        """The standard deviation of each number, ``(...)`` fp32; 1 for a number that never changes.

        Raises:
            HskdError: there are no values.
        """
        if self._sums is None or not self._count:
            raise HskdError("standard deviations: there are no values to take them of.")
        mean, square = (total / self._count for total in self._sums)
        variance = (square - mean.square()).clamp(min=0)
        # What rounding leaves of no variance would be divided by.
        constant = variance <= 1e-12 * square
        return torch.where(constant, 1.0, variance.sqrt()).float()


def kept_neurons(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates) -> torch.Tensor:
    """All neurons of the kept tokens, ``(K, n, d_T)`` fp32."""
    return torch.stack([_kept_view(spec, layer, states).hidden for layer in layers], dim=1)


def _kept_view(spec: HSKSpec, layer: Layer, states: TeacherStates) -> LayerView:
    """The tokens that ``spec`` keeps in a layer."""
    view = LayerView(
        tokens=states.tokens,
        layer=layer.student,
        states=states.hidden[layer.teacher],
        attention=None if layer.attention is None else states.attention[layer.attention],
        rounding=spec.precision.ranked,
        gradient=None if layer.gradient is None else states.gradient[layer.gradient],
        received=None if layer.received is None else states.received[layer.received],
        entropy=states.entropy,
    )
    return spec.length.kept(view)
