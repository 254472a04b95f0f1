"""Derivation: write the compact store of one spec from a superset, without the teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hskd import processes
from hskd.artifacts import partial_of
from hskd.errors import HskdError, MismatchError
from hskd.heads.scores import require_ranks
from hskd.knowledge import SelectedHSK, TeacherStates, fit_codec, select
from hskd.progress import Progress, Silent
from hskd.provenance import provenance
from hskd.spec import HSKSpec, Shape
from hskd.store.decode import pack_neurons
from hskd.store.reader import Store
from hskd.store.writer import Shard, finished_store, misfit, place_once, write_store
from hskd.store_format.layout import (
    CODEC,
    HAS_TARGET,
    SHARD_BYTES,
    TARGET,
    WORD_STARTS,
    ArraySpec,
    codec_bytes,
    derived_arrays,
    example_of_row,
    plan_shards,
    total_bytes,
)
from hskd.store_format.manifest import Manifest

_CHUNK_TOKENS = 2**15


def derive(
    superset: Store,
    spec: HSKSpec,
    student_layers: int,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Store:
    """Write what ``spec`` keeps of ``superset`` into ``folder``, and return the derived store.

    A killed run resumes, and a finished store is reused, as for an extraction.

    Derive only from a superset of the training examples. A spec's share of the examples is taken from all examples of
    the superset. A width selector that learns (``pca``, ``pq``, ...) learns from all kept examples, in one more pass.

    Args:
        superset: an open superset store.
        spec: what to keep.
        student_layers: ``L_S``, on which the layer mapping depends.
        folder: where to write the store.
        shard_bytes: size of a shard in bytes.
        progress: receives the number of finished examples, and the bytes needed and free.

    Raises:
        HskdError: the superset lacks a layer, a score or the precision that the spec needs, a value does not fit into
            that precision, or the disk is too full.
        MismatchError: ``folder`` holds another store, or ``superset`` is not a superset.
        CorruptionError: a shard of the superset is damaged.
    """
    progress = progress or Silent()
    manifest = superset.manifest
    shape = manifest.shape(student_layers)
    require_served(superset, spec, shape)
    layers = spec.layers(shape)
    arrays = derived_arrays(spec, shape, manifest.origin.max_length, manifest.target.array, manifest.is_aligned)
    mask = spec.width.fixed(manifest.teacher_width)
    plan = Manifest(
        kind="derived",
        origin=manifest.origin,
        teacher_layers=manifest.teacher_layers,
        teacher_width=manifest.teacher_width,
        vocab_size=manifest.vocab_size,
        special_ids=manifest.special_ids,
        layers=tuple(layer.student for layer in layers),
        mapped=tuple(layer.teacher for layer in layers),
        student_layers=student_layers,
        target=manifest.target,
        precision=spec.precision.selector,
        spec=spec.model_dump(mode="json"),
        fixed_neurons=None if mask is None or len(mask) == manifest.teacher_width else tuple(int(i) for i in mask),
        gold_labels=manifest.gold_labels if spec.examples.needs_losses and not spec.examples.keeps_all else None,
        examples=len(superset),
        made_by=provenance() | {"superset": manifest.fingerprint},
    )

    def states_of(rows: np.ndarray) -> TeacherStates:
        return superset.states(rows, spec.length.needs_entropy)

    learns = bool(spec.width.codec_layout(spec.precision, manifest.teacher_width))
    codec: dict[str, torch.Tensor] = {}

    def place_codec(partial: Path) -> None:
        if learns:
            place_once(partial, fit)

    def fit(path: Path) -> None:
        progress.say(f"width={spec.width.selector} learns from {len(chosen)} examples")
        states = map(states_of, chunks(chosen, superset.lengths))
        fitted = fit_codec(spec, layers, manifest.teacher_width, states)
        assert fitted is not None
        if not all(bool(array.isfinite().all()) for array in fitted.values()):
            raise HskdError(
                f"spec {spec.label}: the codec that width={spec.width.selector} learns does not fit into "
                f"{spec.precision.selector}; ask for precision=bf16 or precision=fp32."
            )
        save_file(fitted, path)

    def make_shard(span: range) -> Shard:
        if learns and not codec:
            codec.update(load_file(partial_of(folder) / CODEC))
        rows = np.arange(span.start, span.stop)
        kept: dict[str, list[torch.Tensor]] = {
            # The spec may keep none of the examples in the span, and torch.cat needs at least one tensor.
            name: [torch.empty((0, array.elements), dtype=array.dtype)]
            for name, array in arrays.items()
            if array.per == "kept"
        }
        for part in chunks(rows[counts[rows] > 0], superset.lengths):
            selected = select(spec, layers, states_of(part), codec)
            for name, array in _arrays_of(selected, arrays, manifest.teacher_width).items():
                kept[name].append(array)
        addresses = _addresses(superset, rows, arrays)
        if "counts" in arrays:
            addresses["counts"] = torch.from_numpy(counts[rows]).to(arrays["counts"].dtype)
        shard = {name: addresses[name] if name in addresses else torch.cat(kept[name]) for name in arrays}
        fault = misfit(shard)
        if fault is not None:
            _refuse(spec, superset, span, fault, arrays, shard)
        progress.advance(len(span))
        return shard

    if processes.by_main(lambda: finished_store(folder, plan, progress.say) is not None):
        return Store.open(folder)
    chosen = spec.examples.select(superset.example_scores(spec.examples))
    # Every shard is verified when its hidden states are read below, so it need not be verified here.
    counts = np.zeros(len(superset), np.int64)
    counts[chosen] = spec.length.counts(superset.tokens(np.arange(len(superset)), whole=False))[chosen]
    needed = total_bytes(arrays, len(superset), int(superset.lengths.sum()), int(counts.sum()))
    needed += codec_bytes(spec, shape)
    ranges = plan_shards(arrays, superset.lengths, counts, shard_bytes)
    progress.begin("derive", len(superset))
    processes.by_main(lambda: write_store(folder, plan, ranges, needed, make_shard, progress.say, place_codec))
    return Store.open(folder)


def _refuse(
    spec: HSKSpec,
    superset: Store,
    span: range,
    fault: tuple[str, int],
    arrays: dict[str, ArraySpec],
    shard: Shard,
) -> None:
    """Raise an error that names the example with a non-finite number, or a number too large for the precision."""
    name, row = fault
    example = span.start + example_of_row(arrays[name], row, shard)
    which = f"example {example} (id {int(superset.example_ids[example])})"
    if name == TARGET:
        raise HskdError(f"{superset.folder}: the teacher's outputs for {which} are not finite; extract it again.")
    raise HskdError(
        f"spec {spec.label}: a hidden state of {which} does not fit into {spec.precision.selector}; "
        "ask for precision=bf16 or precision=fp32."
    )


def require_served(superset: Store, spec: HSKSpec, shape: Shape) -> None:
    """Check that the superset holds everything that the spec needs.

    Raises:
        HskdError: names what the superset lacks, and says how to extract a superset that has it.
        MismatchError: the store is not a superset.
    """
    manifest = superset.manifest
    if manifest.kind != "superset":
        raise MismatchError(
            f"{superset.folder}: is the store of the spec {superset.spec.label if superset.spec else '?'}, not a "
            "superset; derive from its superset."
        )
    if spec.length.needs_entropy or spec.examples.needs_teacher:
        require_ranks(spec, superset.head)
    layers = spec.layers(shape)
    lacking = sorted({layer.teacher for layer in layers} - set(manifest.layers))
    attention = {layer.attention for layer in layers if layer.attention is not None}
    if lacking:
        raise HskdError(
            f"spec {spec.label}: needs teacher layers {lacking}, which {superset.folder} does not hold (it holds "
            f"{list(manifest.layers)}); extract a superset with --layers {_listed({*manifest.layers, *lacking})}."
        )
    if not attention <= set(manifest.attention_layers):
        raise HskdError(
            f"spec {spec.label}: ranks tokens by attention layers {_listed(attention)}, and {superset.folder} holds "
            f"{list(manifest.attention_layers)}; extract a superset with --attention-layers "
            f"{_listed({*manifest.attention_layers, *attention})}."
        )
    gradients = {layer.gradient for layer in layers if layer.gradient is not None}
    if not gradients <= set(manifest.gradient_layers):
        raise HskdError(
            f"spec {spec.label}: ranks tokens by the gradient in teacher layers {_listed(gradients)}, and "
            f"{superset.folder} holds it for {list(manifest.gradient_layers)}; extract a superset with "
            f"--gradient-layers {_listed({*manifest.gradient_layers, *gradients})}."
        )
    received = {layer.received for layer in layers if layer.received is not None}
    if not received <= set(manifest.received_layers):
        raise HskdError(
            f"spec {spec.label}: ranks tokens by the attention that they receive in layers {_listed(received)}, and "
            f"{superset.folder} holds it for {list(manifest.received_layers)}; extract a superset with "
            f"--received-layers {_listed({*manifest.received_layers, *received})}."
        )
    if manifest.precision not in ("fp32", spec.precision.selector):
        raise HskdError(
            f"spec {spec.label}: keeps values in {spec.precision.selector}, and {superset.folder} holds "
            f"{manifest.precision}; extract a superset with --precision fp32, or ask for "
            f"precision={manifest.precision}."
        )


def _listed(layers: set[int]) -> str:
    return ",".join(map(str, sorted(layers)))


def chunks(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Split ``rows`` into chunks whose tokens fit in memory at full width; an empty list if there are no rows."""
    if not len(rows):
        return []
    running = np.cumsum(lengths[rows])
    cuts = np.flatnonzero(np.diff((running - lengths[rows]) // _CHUNK_TOKENS)) + 1
    return np.split(rows, cuts)


def _addresses(superset: Store, rows: np.ndarray, arrays: dict[str, ArraySpec]) -> Shard:
    addresses = {
        "example_ids": torch.from_numpy(superset.example_ids[rows]),
        "lengths": torch.from_numpy(superset.lengths[rows]),
        "token_ids": torch.from_numpy(superset.token_ids(rows)),
    }
    starts = superset.word_starts(rows)
    if starts is not None:
        addresses[WORD_STARTS] = torch.from_numpy(starts)
    has_target = superset.has_target(rows)
    if has_target is not None:
        addresses[HAS_TARGET] = torch.from_numpy(has_target)
    return {name: tensor.to(arrays[name].dtype) for name, tensor in addresses.items()} | {
        TARGET: superset.target_array(rows)
    }


def _arrays_of(selected: SelectedHSK, arrays: dict[str, ArraySpec], width: int) -> Shard:
    shard = {name: array.flatten(1) for name, array in selected.arrays.items()}
    if "positions" in arrays:
        shard["positions"] = selected.positions.to(arrays["positions"].dtype)
    if "neurons" in arrays:
        assert selected.neurons is not None
        shard["neurons"] = pack_neurons(selected.neurons, width, arrays["neurons"].dtype == torch.uint8)
    return shard
