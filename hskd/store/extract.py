"""Extraction: one pass of the teacher over the data writes a superset, from which specs are derived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hskd import processes
from hskd.errors import HskdError, MismatchError
from hskd.heads import Head
from hskd.heads.scores import example_means, require_labels
from hskd.io import format_bytes
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.selectors import PRECISION
from hskd.spec import HSKSpec, Shape
from hskd.store.extend import in_order_of, place_shards, plan_parts, require_extends
from hskd.store.reader import Store
from hskd.store.writer import Shard, misfit, write_store
from hskd.store_format.layout import (
    GOLD_LOSS,
    HAS_TARGET,
    MANIFEST,
    SHARD_BYTES,
    TARGET,
    WORD_STARTS,
    ArraySpec,
    example_of_row,
    ragged_rows,
    superset_arrays,
    total_bytes,
    with_alignment,
    with_scores,
)
from hskd.store_format.manifest import MAX_LENGTH, AlignmentNote, Manifest, Origin, TargetArray
from hskd.tasks import Task, TokenizedSplit, sequential_batches
from hskd.tasks.alignment import carried
from hskd.tasks.content import labelled
from hskd.tasks.positions import require_positions
from hskd.teachers.fitting import require_fit
from hskd.teachers.forward import ForwardOptions, NotFiniteError, teacher_forward
from hskd.teachers.loading import Teacher


@dataclass(frozen=True)
class Superset:
    """The contents of a superset: what it must hold so that every spec of a study can be derived from it.

    Attributes:
        layers: teacher layers, ascending.
        attention_layers: attention layers (1-based) whose ``[CLS]`` row is needed.
        precision: name of the precision. fp32 serves every spec; fp16 and bf16 serve specs of the same precision.
        gradient_layers: teacher layers with a score of how much the prediction depends on each token. Computing it
            takes a backward pass.
        received_layers: attention layers (1-based) with a score of how much attention each token receives.
        gold_losses: whether the superset holds the teacher's loss on each example's gold label.
    """

    layers: tuple[int, ...]
    attention_layers: tuple[int, ...]
    precision: str = "fp32"
    gradient_layers: tuple[int, ...] = ()
    received_layers: tuple[int, ...] = ()
    gold_losses: bool = False

    @classmethod
    def of(cls, specs: Iterable[HSKSpec], shape: Shape) -> Superset:
        """Return the union of what ``specs`` need.

        Raises:
            HskdError: a spec names a layer that the student or the teacher lacks.
        """
        specs = list(specs)
        kept = [layer for spec in specs for layer in spec.layers(shape)]
        precisions = {spec.precision.superset for spec in specs}
        return cls(
            layers=tuple(sorted({layer.teacher for layer in kept})),
            attention_layers=tuple(sorted({layer.attention for layer in kept if layer.attention is not None})),
            precision=precisions.pop() if len(precisions) == 1 else "fp32",
            gradient_layers=tuple(sorted({layer.gradient for layer in kept if layer.gradient is not None})),
            received_layers=tuple(sorted({layer.received for layer in kept if layer.received is not None})),
            gold_losses=any(spec.examples.needs_losses and not spec.examples.keeps_all for spec in specs),
        )

    @classmethod
    def held_by(cls, manifest: Manifest) -> Superset:
        """Return the contents of an existing superset."""
        return cls(
            layers=manifest.layers,
            attention_layers=manifest.attention_layers,
            precision=manifest.precision,
            gradient_layers=manifest.gradient_layers,
            received_layers=manifest.received_layers,
            gold_losses=manifest.gold_labels is not None,
        )

    @classmethod
    def union(cls, parts: Iterable[Superset]) -> Superset:
        """Return the union of ``parts``; an empty superset in fp16 if there are none."""
        parts = list(parts)
        precisions = {part.precision for part in parts} or {"fp16"}

        def every(name: str) -> tuple[int, ...]:
            return tuple(sorted({layer for part in parts for layer in getattr(part, name)}))

        return cls(
            layers=every("layers"),
            attention_layers=every("attention_layers"),
            precision=precisions.pop() if len(precisions) == 1 else "fp32",
            gradient_layers=every("gradient_layers"),
            received_layers=every("received_layers"),
            gold_losses=any(part.gold_losses for part in parts),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """The contents as JSON. Absent scores are left out, so that recipes of earlier versions stay valid."""
        further = ("gradient_layers", "received_layers", "gold_losses")
        return {name: value for name, value in asdict(self).items() if name not in further or value}

    def arrays(self, shape: Shape, target: ArraySpec, max_length: int, aligned: bool = False) -> dict[str, ArraySpec]:
        """Return the arrays of this superset for a teacher and a target of these sizes (see ``superset_arrays``)."""
        arrays = superset_arrays(
            len(self.layers),
            len(self.attention_layers),
            shape.teacher_width,
            target,
            PRECISION[self.precision](),  # type: ignore[call-arg]
            max_length,
            shape.vocab_size,
        )
        arrays = with_scores(arrays, len(self.gradient_layers), len(self.received_layers), self.gold_losses)
        return with_alignment(arrays, max_length) if aligned else arrays


@dataclass(frozen=True, eq=False)
class ExtractOptions:
    """Options of an extraction.

    Attributes:
        dtype: resolved precision of the teacher's forward pass: fp32, or bf16 for autocast.
        batch_size: examples per forward pass. It changes the stored values only by rounding.
        shard_bytes: size of a shard in bytes.
        extend: a superset with the same teacher and contents that holds some of the examples. Its shards become the
            first shards of the new store, and the teacher runs only on the other examples. The old store is not
            changed.
    """

    dtype: str = "fp32"
    batch_size: int = 32
    shard_bytes: int = SHARD_BYTES
    extend: Store | None = None


def extract(
    teacher: Teacher,
    task: Task,
    split: TokenizedSplit,
    superset: Superset,
    folder: Path,
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
) -> Store:
    """Run the teacher over ``split`` once, write a superset store into ``folder``, and return it.

    A killed extraction resumes after the last complete shard and ends with the same bytes. A finished store is
    reused.

    Args:
        teacher: the fine-tuned teacher.
        task: its task.
        split: the tokenised examples. If they are aligned (:func:`hskd.tasks.align`), the teacher runs on its own
            tokens, and its hidden states are stored for the student's tokens.
        superset: the contents of the store.
        folder: where to write the store.
        options: precision, sizes, and a store to extend [default: those of :class:`ExtractOptions`].
        progress: receives the number of finished examples, and the bytes needed and free.

    Raises:
        HskdError: a layer is out of range, texts are too long, labels are missing, a value is not finite or does not
            fit into the precision (the message names the example), or the disk is too full.
        MismatchError: ``folder`` holds another store, the store to extend has another teacher, superset or data, or
            the examples are aligned with another tokenizer than the teacher's.
        CorruptionError: a shard of the store to extend is damaged.
    """
    options, progress = options or ExtractOptions(), progress or Silent()
    extend = options.extend
    config = teacher.model.config
    aligned = split.aligned
    if aligned is not None and aligned.teacher_tokenizer != teacher.tokenizer_fingerprint:
        raise MismatchError(f"{teacher.name}: the examples are aligned with the tokens of another tokenizer.")
    require_positions(config, {"train": _run_on(split)}, f"teacher {teacher.name}")
    for what, layers, first in (
        ("", superset.layers, 0),
        ("attention ", superset.attention_layers, 1),
        ("gradient ", superset.gradient_layers, 0),
        ("received ", superset.received_layers, 1),
    ):
        if not set(layers) <= set(range(first, config.num_hidden_layers + 1)):
            raise HskdError(
                f"{what}layers {list(layers)}: out of range: the teacher has {what}layers "
                f"{first}..{config.num_hidden_layers}."
            )
    precision = PRECISION[superset.precision]()  # type: ignore[call-arg]
    if precision.superset != superset.precision:
        raise HskdError(
            f"precision {superset.precision}: a superset cannot have it, because its scale depends on which neurons "
            f"are kept; extract with --precision {precision.superset}."
        )
    if extend is not None:
        split = in_order_of(extend, split)
    run_on, kept_offsets = _run_on(split), split.with_targets.offsets
    gold_labels = None
    if superset.gold_losses:
        require_labels(split.labels, "examples=disagree")
        gold_labels = labelled(task.head, split)
        if extend is not None and extend.manifest.gold_labels is not None:
            known = labelled(task.head, split.take(np.arange(len(extend))))
            if extend.manifest.gold_labels != known:
                raise MismatchError(
                    f"{extend.folder}: cannot be extended: it holds the losses of other gold labels than its examples "
                    "have now; extract without --extend."
                )
    target = task.head.target()
    shape = teacher.shape(config.num_hidden_layers)
    if aligned is not None:
        shape = replace(shape, vocab_size=aligned.vocabulary)
        progress.say(aligned.describe())
    arrays = superset.arrays(shape, target, split.max_length, aligned is not None)
    if split.max_length > MAX_LENGTH:
        raise HskdError(f"texts of up to {split.max_length} tokens: a store holds those of up to {MAX_LENGTH}.")
    plan = Manifest(
        kind="superset",
        origin=Origin(
            teacher=teacher.fingerprint,
            tokenizer=teacher.tokenizer_fingerprint if aligned is None else aligned.student_tokenizer,
            data=split.fingerprint,
            task=task.name,
            head=task.head.kind,
            label_names=task.label_names,
            max_length=split.max_length,
            dtype=options.dtype,
            alignment=_note(split),
        ),
        teacher_layers=config.num_hidden_layers,
        teacher_width=config.hidden_size,
        vocab_size=shape.vocab_size,
        special_ids={"cls": split.cls_id, "sep": split.sep_id, "pad": split.pad_id},
        layers=superset.layers,
        mapped=superset.layers,
        attention_layers=superset.attention_layers,
        gradient_layers=superset.gradient_layers,
        received_layers=superset.received_layers,
        gold_labels=gold_labels,
        target=TargetArray.of(target),
        precision=superset.precision,
        examples=len(split),
        made_by=provenance() | ({} if extend is None else {"extends": extend.manifest.fingerprint}),
    )
    if extend is not None:
        require_extends(extend, plan, split)

    forward = ForwardOptions(options.dtype, gradients=superset.gradient_layers, received=superset.received_layers)

    def make_shard(span: range) -> Shard:
        shard = empty_shard(arrays, split, span)
        starts = kept_offsets[span.start : span.stop] - kept_offsets[span.start]
        for order in sequential_batches(run_on.lengths[span.start : span.stop], options.batch_size):
            try:
                output = teacher_forward(
                    teacher.model,
                    run_on.collate(order + span.start),
                    run_on.sep_id,
                    superset.layers,
                    superset.attention_layers,
                    head=task.head,
                    options=forward,
                )
            except NotFiniteError as error:
                example = int(order[error.example]) + span.start
                raise HskdError(f"{_named(teacher, run_on, example)}: {error}") from None
            states = output.states if aligned is None else carried(output.states, split, order + span.start)
            rows = torch.from_numpy(ragged_rows(starts[order], states.tokens.lengths))
            for i, layer in enumerate(superset.layers):
                for name, tensor in precision.encode(states.hidden[layer].cpu()).items():
                    shard[name].unflatten(1, (len(superset.layers), -1))[:, i].index_copy_(0, rows, tensor)
            for name, columns, held_layers in (
                ("attention", states.attention, superset.attention_layers),
                ("gradient", states.gradient, superset.gradient_layers),
                ("received", states.received, superset.received_layers),
            ):
                if held_layers:
                    shard[name][rows] = torch.from_numpy(np.stack([columns[layer] for layer in held_layers], axis=1))
            assert output.target is not None
            place = torch.from_numpy(order)
            if target.per == "token":
                place = torch.from_numpy(split.first_tokens(order + span.start) - split.offsets[span.start])
            shard[TARGET][place] = output.target.cpu().to(target.dtype)
            if superset.gold_losses:
                labelled_batch, counts = split.collate(order + span.start), split.row_counts(order + span.start)
                losses = gold_losses(task.head, output.target.cpu(), labelled_batch, counts)
                shard[GOLD_LOSS][torch.from_numpy(order), 0] = torch.from_numpy(losses).float()
            progress.advance(len(order) * processes.count())  # The other processes advance at about the same rate.
        fault = misfit(shard)
        if fault is not None:
            name, row = fault
            example = span.start + example_of_row(arrays[name], row, shard)
            which = _named(teacher, run_on, example)
            if name in precision.layout(1):
                raise HskdError(
                    f"a hidden state of {which} does not fit into {superset.precision}; extract with --precision bf16 "
                    "or fp32."
                )
            raise HskdError(
                f"the teacher's {_SAID.get(name, name)} for {which} is not finite; train the teacher again."
            )
        return shard

    needed = total_bytes(arrays, len(split), int(split.offsets[-1]), int(kept_offsets[-1]))
    ranges = plan_parts(arrays, split, options.shard_bytes, extend)
    place = (lambda unfinished: None) if extend is None else partial(place_shards, extend)
    if not processes.by_main((folder / MANIFEST).is_file):
        require_fit(teacher.name, teacher.model, [run_on])
        progress.begin("extract", len(split) - (0 if extend is None else len(extend)))
    manifest = write_store(folder, plan, ranges, needed, make_shard, progress.say, place)
    progress.say(f"{folder}: {manifest.examples} examples, {format_bytes(manifest.bytes)}")
    return Store.open(folder)


def _run_on(split: TokenizedSplit) -> TokenizedSplit:
    """Return the examples in the teacher's tokens."""
    return split if split.aligned is None else split.aligned.teacher


def _note(split: TokenizedSplit) -> AlignmentNote | None:
    if split.aligned is None:
        return None
    counts = split.aligned.counts
    return AlignmentNote(
        teacher_tokenizer=split.aligned.teacher_tokenizer,
        tokens=len(counts),
        with_target=int((counts > 0).sum()),
        means=int((counts > 1).sum()),
    )


_SAID = {TARGET: "output", GOLD_LOSS: "loss of the gold label"}


def gold_losses(head: Head, rows: torch.Tensor, batch: Mapping[str, torch.Tensor], counts: np.ndarray) -> np.ndarray:
    """Return the teacher's loss on each example's gold label, ``(B,)``; the mean over words if words have labels.

    Args:
        head: defines the loss.
        rows: the teacher's outputs, ``(R, C)``, on the CPU.
        batch: the examples, with labels.
        counts: rows of each example, ``(B,)``.

    Raises:
        HskdError: the head defines no such loss.
    """
    return example_means(head.gold_losses(rows, head.labels(batch)), counts)


def _named(teacher: Teacher, split: TokenizedSplit, example: int) -> str:
    """Return a description of an example for messages: its index, its id and the beginning of its text."""
    ids = split.input_ids[split.offsets[example] : split.offsets[example + 1]]
    text = teacher.tokenizer.decode(ids[:40].tolist(), skip_special_tokens=True)
    return f"example {example} of {len(split)} (id {int(split.ids[example])}: {text[:60]!r})"


def empty_shard(arrays: dict[str, ArraySpec], split: TokenizedSplit, span: range) -> Shard:
    """Return the arrays of a shard for the examples of ``span``: ids and lengths are filled in, knowledge is zero."""
    tokens = slice(int(split.offsets[span.start]), int(split.offsets[span.stop]))
    kept = split.with_targets.offsets[span.start : span.stop + 1]
    rows = {"example": len(span), "token": tokens.stop - tokens.start, "kept": int(kept[-1] - kept[0])}
    shard = {name: torch.zeros((rows[array.per], array.elements), dtype=array.dtype) for name, array in arrays.items()}
    filled = {
        "example_ids": split.ids[span.start : span.stop],
        "lengths": split.lengths[span.start : span.stop],
        "token_ids": split.input_ids[tokens],
    }
    if WORD_STARTS in arrays:
        assert split.word_starts is not None
        filled[WORD_STARTS] = split.word_starts[tokens]
    if split.aligned is not None:
        filled[HAS_TARGET] = split.aligned.counts[tokens] > 0
        filled["counts"] = np.diff(kept)
    return shard | {name: torch.from_numpy(np.array(array)).to(arrays[name].dtype) for name, array in filled.items()}
