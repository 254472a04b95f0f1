"""Knowledge sources. A student trains from a source, never from a teacher directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from typing_extensions import override

from hskd.distill.fixed import FixedKnowledge, FixedStore, FixedTeacher, ranks_on_device
from hskd.errors import HskdError, MismatchError
from hskd.heads.scores import example_means, require_labels, require_ranks
from hskd.knowledge import KeptHSK, Spread, TeacherStates, fit_codec, kept_neurons, select_hsk
from hskd.selectors import ExampleScores
from hskd.spec import HSKSpec
from hskd.store.extract import gold_losses
from hskd.store.on_device import PlacedStore
from hskd.store.reader import Store
from hskd.tasks import TokenizedSplit, sequential_batches
from hskd.tasks.alignment import carried
from hskd.teachers.forward import ForwardOptions, TeacherOutput, teacher_forward
from hskd.teachers.loading import Teacher

Batch = Mapping[str, torch.Tensor]


class KnowledgeSource(Protocol):
    """Provides the targets for the examples of a batch.

    A source that worker processes can read has an attribute ``in_workers`` that is True. A source may have a method
    ``in_shape(split)``, which returns the same knowledge in fixed shapes (:class:`~hskd.distill.fixed.FixedKnowledge`)
    for batches of ``split``, or None if shapes vary. Without it, no step that trains from the source is captured.
    """

    def kept(self, batch: Batch) -> KeptHSK:
        """Return the targets of the HSK stage."""

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return the targets of the prediction stage: the rows ``(R, C)`` of the teacher's head."""


class OnlineSource(KnowledgeSource):
    """Knowledge source that runs the teacher on every batch.

    Args:
        teacher: the fine-tuned teacher.
        sep_id: the tokenizer's id of ``[SEP]``.
        spec: the HSK to keep; None if only targets of the prediction stage are needed.
        student_layers: ``L_S``.
        dtype: resolved precision of the teacher's forward pass (fp32 or bf16).
        aligned: the student's examples if the teacher has another tokenizer (:func:`hskd.tasks.align`). The teacher
            then runs on its own tokens of these examples.
    """

    def __init__(
        self,
        teacher: Teacher,
        sep_id: int,
        spec: HSKSpec | None,
        student_layers: int,
        dtype: str = "fp32",
        aligned: TokenizedSplit | None = None,
    ) -> None:
        self._aligned = aligned
        require_ranks(spec, teacher.head)
        self._model = teacher.model
        self._head = teacher.head
        self._sep_id = sep_id
        self._spec = spec
        self._depths = student_layers, int(teacher.model.config.num_hidden_layers)
        self._layers = spec.layers(teacher.shape(student_layers)) if spec else ()
        self._width = teacher.model.config.hidden_size
        self._codec: dict[str, torch.Tensor] | None = None
        self._options = ForwardOptions(dtype)
        gradients = {layer.gradient for layer in self._layers if layer.gradient is not None}
        received = {layer.received for layer in self._layers if layer.received is not None}
        # Requested from the teacher whenever hidden states are requested.
        self._scores: dict[str, Any] = {
            "gradients": tuple(sorted(gradients)),
            "received": tuple(sorted(received)),
            "entropies": spec is not None and spec.length.needs_entropy,
        }

    def rows_with_hsk(self, split: TokenizedSplit, batch_size: int = 32) -> np.ndarray:
        """Return the row numbers, ascending, of the training examples for which the spec keeps HSK.

        Train the HSK stage on these examples. If the choice depends on the teacher, the teacher runs once over all
        examples. Up to rounding, the choice uses the same numbers as with a superset that was extracted in batches of
        this size.

        Raises:
            HskdError: examples are ranked by their gold labels, and there are none.
        """
        if self._spec is None or self._spec.examples.keeps_all:
            return np.arange(len(split))
        selector = self._spec.examples
        if selector.needs_losses:
            require_labels(split.labels, f"examples={selector.selector}")
        losses, entropies = np.zeros((2, len(split)))
        for order in sequential_batches(split.lengths, batch_size) if selector.needs_teacher else ():
            batch = split.collate(order)
            rows, counts = self.targets(batch).cpu(), split.row_counts(order)
            if selector.needs_losses:
                # A superset holds them in float32.
                losses[order] = gold_losses(self._head, rows, batch, counts).astype(np.float32)
            if selector.needs_entropies:
                entropies[order] = example_means(self._head.entropies(rows), counts)
        return selector.select(ExampleScores(split.ids, losses, entropies))

    def fit(self, split: TokenizedSplit, batch_size: int = 32) -> None:
        """Fit the width selector on ``split``, the examples with HSK, in one pass of the teacher.

        Up to rounding, it is fitted on the same numbers as with a superset that was extracted in batches of this size.
        If the selector needs no fitting, the teacher does not run.
        """
        spec = self._spec
        if spec is None or not spec.width.codec_layout(spec.precision, self._width):
            return
        layers, attention = self._asked
        batches = (split.collate(order) for order in sequential_batches(split.lengths, batch_size))
        states = (self._forward(batch, layers, attention).states for batch in batches)
        self._codec = fit_codec(spec, self._layers, self._width, states)

    def spread(self, split: TokenizedSplit, batch_size: int = 32) -> torch.Tensor:
        """Return the teacher's standard deviations (:func:`hskd.store.spread.spread_of`), in one pass of the teacher.

        Raises:
            HskdError: the source was made without a spec.
        """
        spread = Spread()
        for order in sequential_batches(split.lengths, batch_size):
            batch = split.collate(order)
            if self._spec is not None and self._spec.width.fixed(self._width) is None:
                spread.add(kept_neurons(self._spec, self._layers, self._forward(batch, *self._asked).states))
            else:
                spread.add(self._every_layer(batch).values)
        return spread.deviations()

    @property
    def _asked(self) -> tuple[list[int], list[int]]:
        """Layers and attention layers of the teacher that the spec needs."""
        attention = {layer.attention for layer in self._layers if layer.attention is not None}
        return sorted({layer.teacher for layer in self._layers}), sorted(attention)

    @override
    def kept(self, batch: Batch) -> KeptHSK:
        """Return the part of the teacher's hidden states that the spec keeps.

        Raises:
            HskdError: the source was made without a spec, or its width selector has to be fitted first (:meth:`fit`).
        """
        if self._spec is None:
            raise HskdError("the HSK stage needs a spec: give one with --spec.")
        return self._every_layer(batch).drawn(self._spec, *self._depths, batch)

    def _every_layer(self, batch: Batch) -> KeptHSK:
        """Return the kept HSK of all layers, even if a training batch learns from only some of them."""
        assert self._spec is not None
        return self._select(self._spec, self._forward(batch, *self._asked).states)

    @override
    def targets(self, batch: Batch) -> torch.Tensor:
        target = self._forward(batch, (), ()).target
        assert target is not None
        return target

    def in_shape(self, split: TokenizedSplit) -> FixedKnowledge | None:
        """Return the knowledge in fixed shapes; None if its shapes vary, or the spec ranks on the CPU."""
        spec = self._spec
        if self._aligned is not None or self._head.target().per == "token":
            return None
        if spec is not None and not ranks_on_device(spec, self._width):
            return None
        codec = {name: array.to(self._model.device) for name, array in (self._codec or {}).items()}
        return FixedTeacher(self._model, self._head, self._sep_id, spec, self._layers, self._options.dtype, codec)

    def _forward(self, batch: Batch, layers: Sequence[int], attention: Sequence[int]) -> TeacherOutput:
        options = replace(self._options, **self._scores) if layers else self._options
        if self._aligned is None or self._aligned.aligned is None:
            return teacher_forward(
                self._model, batch, self._sep_id, layers, attention, head=self._head, options=options
            )
        rows = self._aligned.rows(batch["example_ids"].cpu().numpy())
        run_on = self._aligned.aligned.teacher
        output = teacher_forward(
            self._model, run_on.collate(rows), run_on.sep_id, layers, attention, head=self._head, options=options
        )
        return replace(output, states=carried(output.states, self._aligned, rows))

    def _select(self, spec: HSKSpec, states: TeacherStates) -> KeptHSK:
        return select_hsk(spec, self._layers, states, self._codec)


class StoreSource(KnowledgeSource):
    """Knowledge source that reads a store. No teacher is loaded.

    Args:
        store: a derived store of one spec. A superset serves only the targets of the prediction stage.
        split: the training examples, all of which must be in the store with the same tokens.
        student_layers: ``L_S``, which must be the number for which the store was derived.
        device: a device to place the store on, where batches are gathered by indexing; None to read it from disk.

    Raises:
        MismatchError: examples are missing or have other tokens, or the store is for a student of another depth.
        CorruptionError: a shard of the store is damaged.
    """

    def __init__(
        self, store: Store, split: TokenizedSplit, student_layers: int, device: torch.device | None = None
    ) -> None:
        derived_for = store.manifest.student_layers
        if derived_for is not None and derived_for != student_layers:
            raise MismatchError(
                f"{store.folder}: was derived for a student of {derived_for} layers, and this one has "
                f"{student_layers}; derive the spec again for this student."
            )
        store.require_tokens(split.tokens)
        store.require_words(split)
        store.require_whole(store.rows(split.ids))  # Verified once, not in each worker of a loader.
        self._store = store
        self._device = device
        self._read = store if device is None else PlacedStore(store, device)
        self.in_workers = device is None

    @override
    def kept(self, batch: Batch) -> KeptHSK:
        return self.kept_of(_ids(batch), batch)

    def kept_of(self, example_ids: np.ndarray, batch: Batch) -> KeptHSK:
        """Return the targets of the examples with these ids, in the layers that ``batch`` learns from."""
        return drawn_of(self._store, self._read.kept(self._store.rows(example_ids)), batch)

    @override
    def targets(self, batch: Batch) -> torch.Tensor:
        return self._read.targets(self._store.rows(_ids(batch)))

    def in_shape(self, split: TokenizedSplit, hsk_ids: np.ndarray | None = None) -> FixedKnowledge | None:
        """Return the knowledge in fixed shapes; None if it is read from disk, or its shapes vary.

        Args:
            split: the examples of the batches.
            hsk_ids: ids of the examples whose hidden states they learn from, ``(N,)``; None for their own.
        """
        store, draws = self._store, self._store.spec is not None and self._store.spec.depth.draws
        if self._device is None or draws or store.manifest.target.per == "token":
            return None
        assert isinstance(self._read, PlacedStore)
        hsk_rows = None if hsk_ids is None else store.rows(hsk_ids)
        return FixedStore(self._read, self._device, split.lengths, store.rows(split.ids), hsk_rows)


def _ids(batch: Batch) -> np.ndarray:
    ids: np.ndarray = batch["example_ids"].cpu().numpy()
    return ids


def drawn_of(store: Store, kept: KeptHSK, batch: Batch) -> KeptHSK:
    """Return the part of ``kept`` that ``batch`` learns from, if layers are drawn for each batch; otherwise all of it.

    See :meth:`KeptHSK.drawn`.
    """
    assert store.spec is not None and store.manifest.student_layers is not None
    return kept.drawn(store.spec, store.manifest.student_layers, store.manifest.teacher_layers, batch)


class ShuffledSource(KnowledgeSource):
    """Control: gives each example the HSK of *another* training example, but its own prediction targets.

    The two examples have the same or nearly the same length, because each example gets the HSK of its neighbour in the
    order of lengths. Kept tokens beyond the example's own end are dropped.

    Args:
        store: a derived store of one spec.
        split: the training examples.
        student_layers: ``L_S``.
        seed: decides which examples are paired.
        device: see :class:`StoreSource`. A GPU is waited for in every batch, to count the dropped tokens.

    Raises:
        HskdError: there are fewer than two examples.
        MismatchError: see :class:`StoreSource`.
    """

    def __init__(
        self,
        store: Store,
        split: TokenizedSplit,
        student_layers: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        if len(split) < 2:
            raise HskdError("the arm shuffled needs at least two training examples.")
        self._right = StoreSource(store, split, student_layers, device)
        self.in_workers = self._right.in_workers
        shuffled = np.random.default_rng(seed).permutation(len(split))
        order = shuffled[np.argsort(split.lengths[shuffled], kind="stable")]
        # Each example takes the HSK of its successor in the order of lengths; the last takes its predecessor's.
        partner = np.concatenate([order[1:], order[-2:-1]])
        sorting = np.argsort(split.ids[order])
        self._ids, self._partner_ids = split.ids[order][sorting], split.ids[partner][sorting]

    @override
    def kept(self, batch: Batch) -> KeptHSK:
        other = self._right.kept_of(self._partners(_ids(batch)), batch)
        return other.within(batch["attention_mask"].sum(1).to(other.counts.device))

    @override
    def targets(self, batch: Batch) -> torch.Tensor:
        return self._right.targets(batch)

    def in_shape(self, split: TokenizedSplit) -> FixedKnowledge | None:
        """Return the knowledge in fixed shapes; None if it is read from disk, or its shapes vary."""
        return self._right.in_shape(split, self._partners(split.ids))

    def _partners(self, ids: np.ndarray) -> np.ndarray:
        return self._partner_ids[np.searchsorted(self._ids, ids)]
