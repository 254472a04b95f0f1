"""Hidden-state knowledge in memory, and its selection. Online and offline distillation share this code."""

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
    """A teacher's hidden states and scores for ``B`` examples with ``M`` real tokens in total, without padding.

    Attributes:
        tokens: the concatenated tokens.
        hidden: teacher layer -> ``(M, d_T)`` fp32; layer 0 is the embedding output.
        attention: attention layer (1-based) -> share of attention that ``[CLS]`` pays each token, ``(M,)`` fp32.
        gradient: teacher layer -> ``|h . dL/dh|`` of each token (see ``length=gradient``), ``(M,)`` fp32.
        received: attention layer (1-based) -> mean attention that each token receives, ``(M,)`` fp32.
        entropy: entropy of the prediction for each token that begins a word, and 0 for the others, ``(M,)``; None if
            it was not requested, or if the teacher makes one prediction per example.
    """

    tokens: Tokens
    hidden: Mapping[int, torch.Tensor]
    attention: Mapping[int, np.ndarray]
    gradient: Mapping[int, np.ndarray] = field(default_factory=dict)
    received: Mapping[int, np.ndarray] = field(default_factory=dict)
    entropy: np.ndarray | None = None


class Members(NamedTuple):
    """The ``P`` tokens that are averaged into kept tokens. They are the same in every layer.

    Attributes:
        kept: index of the kept token that each token is averaged into, ``(P,)`` int64.
        position: position of each token in its example, ``(P,)`` int64.

    A token whose ``kept`` is the number of kept tokens is averaged into none of them.
    """

    kept: torch.Tensor
    position: torch.Tensor

    @classmethod
    def of(cls, spec: HSKSpec, tokens: Tokens) -> Members | None:
        """Return the members for the examples in ``tokens``; None if ``spec`` averages no tokens."""
        members = spec.length.members(tokens)
        return None if members is None else cls(*map(torch.from_numpy, members))

    def mean(self, states: torch.Tensor, count: int) -> torch.Tensor:
        """Return the members' ``states`` ``(P, d)``, averaged for each of the ``count`` kept tokens: ``(count, d)``."""
        states = states.float()  # Sums in bf16 are inaccurate.
        sums = states.new_zeros((count + 1, states.shape[1])).index_add(0, self.kept, states)
        sizes = torch.zeros(count + 1, device=states.device).index_add(
            0, self.kept, self.kept.new_ones(()).expand_as(self.kept).float()
        )
        return sums[:count] / sizes[:count, None].clamp(min=1)


@dataclass(frozen=True, eq=False)
class KeptHSK:
    """Kept hidden-state knowledge of ``B`` examples: ``K`` kept tokens in total, ``n`` layers, ``k`` neurons.

    Attributes:
        layers: the ``n`` student layers that learn.
        counts: number of kept tokens of each example, the same in every layer, ``(B,)`` int64.
        positions: positions of the kept tokens in their examples, ``(K, n)`` int64.
        values: neurons, or coordinates along ``basis``, ``(K, n, k)`` fp32.
        neurons: indices of the neurons in ``values``, int64: ``(k,)`` if they are the same everywhere, or
            ``(K, n, k)``; None if ``values`` holds all neurons.
        weights: weight of each value, ``(K, n, k)``, summing to 1 over each example and layer; None for equal weights.
            Selection always gives None, but your own knowledge source may give weights.
        most: the largest number of kept tokens of an example. It is a CPU number, so that no training step waits for
            the GPU to count; None to compute it from ``counts``.
        basis: the directions along which the values are coordinates; None if the values are neurons.
        members: the tokens that are averaged into each kept token; None if kept tokens are not averages.
        places: indices of these layers among the spec's layers, if they are drawn for each batch; None for all layers.
        real: which rows are kept tokens, ``(K,)`` bool, if each example has ``most`` rows and ``K`` is ``B * most``.
            The other rows are pads, and no loss reads their values. None if each row is a kept token.
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
    real: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Compute ``most`` if it is not given."""
        if self.most is None:
            object.__setattr__(self, "most", int(self.counts.max()) if len(self.counts) else 0)

    @cached_property
    def example(self) -> torch.Tensor:
        """Index of the example that each kept token belongs to, ``(K,)`` int64."""
        examples = torch.arange(len(self.counts), device=self.counts.device)
        if self.real is not None:
            return examples.repeat_interleave(len(self.real) // len(examples))
        return torch.repeat_interleave(examples, self.counts, output_size=len(self.positions))

    @cached_property
    def rank(self) -> torch.Tensor:
        """Index of each row among the rows of its example, from 0, ``(K,)`` int64."""
        if self.real is not None:
            return torch.arange(len(self.real) // len(self.counts), device=self.real.device).repeat(len(self.counts))
        starts = self.counts.cumsum(0) - self.counts
        first = torch.repeat_interleave(starts, self.counts, output_size=len(self.positions))
        return torch.arange(len(first), device=first.device) - first

    def drawn(self, spec: HSKSpec, student_layers: int, teacher_layers: int, batch: Mapping[str, Any]) -> KeptHSK:
        """Return the knowledge in the layers that ``spec`` draws for a batch; unchanged if it draws no layers.

        Args:
            spec: what is kept.
            student_layers: ``L_S``.
            teacher_layers: ``L_T``.
            batch: a batch from a training loader, with its number ``draw``.

        Raises:
            HskdError: layers are drawn, and the batch has no ``draw``.
        """
        if not spec.depth.draws:
            return self
        if "draw" not in batch:
            raise HskdError(
                f"depth={spec.depth.selector}: draws layers for each batch of training, by the batch's number draw, "
                "and this batch has none; use hskd.tasks.batch_loader, which adds it."
            )
        layers, places = zip(*spec.depth.drawn(student_layers, teacher_layers, batch["draw"]), strict=True)

        def of_layers(array: torch.Tensor, dim: int = 1) -> torch.Tensor:
            # Indexing by a list would send the list to the device, and wait for it.
            return torch.stack([array.select(dim, place) for place in places], dim)

        of_tokens = self.neurons is not None and self.neurons.dim() == 3
        return replace(
            self,
            layers=layers,
            positions=of_layers(self.positions),
            values=of_layers(self.values),
            neurons=of_layers(self.neurons) if of_tokens and self.neurons is not None else self.neurons,
            weights=None if self.weights is None else of_layers(self.weights),
            basis=None
            if self.basis is None
            else Basis(of_layers(self.basis.directions, 0), of_layers(self.basis.origin, 0)),
            places=places,
        )

    def within(self, lengths: torch.Tensor) -> KeptHSK:
        """Return the kept tokens that lie, in every layer, inside examples of these lengths ``(B,)``.

        Averages stay if one of their tokens lies inside. The student's averages are then over its tokens inside.
        """
        inside, stays = (self.positions < lengths[self.example, None]).all(dim=1), None
        if self.real is not None:
            inside = inside & self.real
        if self.members is not None:
            kept, position = self.members
            among = kept.clamp(max=len(inside) - 1)
            stays = (kept < len(inside)) & (position < lengths[self.example[among]])
            inside = inside & (torch.zeros(len(inside), device=inside.device).index_add(0, among, stays.float()) > 0)
        if self.real is not None:
            return replace(
                self,
                counts=inside.unflatten(0, (len(lengths), -1)).sum(1),
                positions=self.positions * inside[:, None],
                members=self._members_at(torch.arange(len(inside), device=inside.device), stays, len(inside)),
                real=inside,
            )
        per_token = self.neurons is not None and self.neurons.dim() == 3
        positions = self.positions[inside]
        return replace(
            self,
            counts=torch.bincount(self.example[inside], minlength=len(lengths)),
            positions=positions,
            values=self.values[inside],
            neurons=self.neurons[inside] if per_token and self.neurons is not None else self.neurons,
            members=self._members_at(inside.cumsum(0) - 1, stays, len(positions)),
            most=None,
        )

    def _members_at(self, places: torch.Tensor, stays: torch.Tensor | None, count: int) -> Members | None:
        """Return the members ``stays`` ``(P,)`` after kept tokens have moved to ``places`` ``(K,)``.

        The others are averaged into none of the ``count`` kept tokens.
        """
        if self.members is None or stays is None:
            return None
        kept, position = self.members
        at = places[kept.clamp(max=len(places) - 1)]
        return Members(torch.where(stays, at, count), torch.where(stays, position, 0))

    def to(self, device: torch.device, non_blocking: bool = False) -> KeptHSK:
        """Return the same knowledge on ``device``. ``non_blocking`` is passed to ``Tensor.to``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeptHSK:
        """Return the same knowledge in pinned memory, from which a GPU can copy while it computes."""
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
            real=None if self.real is None else change(self.real),
        )


@dataclass(frozen=True, eq=False)
class SelectedHSK:
    """Kept hidden-state knowledge of ``B`` examples in the form in which a store holds it.

    There are ``K`` kept tokens in total, and ``n`` layers.

    Attributes:
        counts: number of kept tokens of each example, ``(B,)`` int64.
        positions: positions of the kept tokens in their examples, ``(K, n)`` int64.
        arrays: the arrays of the width selector, ``(K, n, elements)`` each.
        neurons: as in :class:`KeptHSK`.
    """

    counts: torch.Tensor
    positions: torch.Tensor
    arrays: Mapping[str, torch.Tensor]
    neurons: torch.Tensor | None


def select_hsk(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates, codec: Codec | None = None) -> KeptHSK:
    """Return what ``spec`` keeps of a teacher's ``states`` in the given ``layers``.

    Tokens are chosen per layer and neurons per token, by values rounded to the spec's precision.

    Args:
        spec: what to keep.
        layers: the kept layers.
        states: the teacher's hidden states and scores.
        codec: the result of :func:`fit_codec`, if the width selector learns.

    Raises:
        HskdError: ``states`` lacks a score that the length selector ranks by; or the width selector learns, and no
            codec is given.
        KeyError: ``states`` lacks a teacher layer of ``layers``, or a layer of its scores.
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
    """Return the same as :func:`select_hsk`, with the values encoded for storage."""
    positions, neurons = [], []
    arrays: dict[str, list[torch.Tensor]] = {}
    fixed: torch.Tensor | None = None
    for i, layer in enumerate(layers):
        view = _kept_view(spec, layer, states)
        positions.append(torch.from_numpy(view.tokens.position))
        encoded, picked = select_neurons(spec, view, {name: array[i] for name, array in (codec or {}).items()})
        if picked is not None and picked.dim() == 1:
            fixed = picked
        elif picked is not None:
            neurons.append(picked)
        for name, array in encoded.items():
            arrays.setdefault(name, []).append(array)
    return SelectedHSK(
        counts=torch.from_numpy(spec.length.counts(states.tokens)),
        positions=torch.stack(positions, dim=1),
        arrays={name: torch.stack(parts, dim=1) for name, parts in arrays.items()},
        neurons=torch.stack(neurons, dim=1) if neurons else fixed,
    )


def select_neurons(
    spec: HSKSpec, view: LayerView, codec: Codec
) -> tuple[Mapping[str, torch.Tensor], torch.Tensor | None]:
    """Return what ``spec`` keeps of the kept tokens of a layer, encoded for storage, and which neurons these are.

    Args:
        spec: what to keep.
        view: the kept tokens.
        codec: the layer's own codec; empty if the width selector learns nothing.

    Returns:
        The arrays of the width selector, ``(M, elements)`` each, and the neurons: ``(k,)`` if they are the same for
        every token, ``(M, k)`` if they differ, and None if all are kept.

    Raises:
        HskdError: the width selector learns, and no codec is given.
    """
    kept = view.hidden
    width = kept.shape[1]
    if set(spec.width.codec_layout(spec.precision, width)) - set(codec):
        raise HskdError(
            f"width={spec.width.selector}: has to learn from the training examples before it can select; "
            "fit its codec first (hskd.knowledge.fit_codec)."
        )
    mask, neurons = spec.width.fixed(width), None
    if mask is None:
        neurons = spec.width.neurons(view).to(kept.device)
        kept = kept.gather(1, neurons)
    elif len(mask) < width:
        neurons = torch.from_numpy(mask).to(kept.device)
        kept = kept[:, neurons]
    return spec.width.encode(kept, spec.precision, codec), neurons


def fit_codec(
    spec: HSKSpec, layers: Sequence[Layer], width: int, batches: Iterable[TeacherStates]
) -> dict[str, torch.Tensor] | None:
    """Learn the codec of the width selector from the training examples, in one pass over them.

    Args:
        spec: the spec with the width selector. It learns only from the tokens that the spec keeps.
        layers: the kept layers, each of which has its own codec.
        width: ``d_T``.
        batches: the teacher's states for all training examples, in batches.

    Returns:
        The arrays of ``spec.width.codec_layout``, ``(n, ...)`` each; None if the width selector learns nothing.
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
    """Computes standard deviations in one pass, from sums in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, values: torch.Tensor) -> None:
        """Add ``K`` observations of each number, ``(K, ...)``."""
        exact = values.detach().cpu().double()
        new = exact.sum(0), exact.square().sum(0)
        self._count += len(exact)
        self._sums = new if self._sums is None else (self._sums[0] + new[0], self._sums[1] + new[1])

    def deviations(self) -> torch.Tensor:
        """Return the standard deviation of each number, ``(...)`` fp32; 1 for a constant number.

        Raises:
            HskdError: no values were added.
        """
        if self._sums is None or not self._count:
            raise HskdError("standard deviations: there are no values to compute them from.")
        mean, square = (total / self._count for total in self._sums)
        variance = (square - mean.square()).clamp(min=0)
        # Rounding gives a constant number a tiny variance, by which a loss must not divide.
        constant = variance <= 1e-12 * square
        return torch.where(constant, 1.0, variance.sqrt()).float()


def kept_neurons(spec: HSKSpec, layers: Sequence[Layer], states: TeacherStates) -> torch.Tensor:
    """Return all neurons of the kept tokens, ``(K, n, d_T)`` fp32."""
    return torch.stack([_kept_view(spec, layer, states).hidden for layer in layers], dim=1)


def _kept_view(spec: HSKSpec, layer: Layer, states: TeacherStates) -> LayerView:
    """Return a view of the tokens that ``spec`` keeps in a layer."""
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
