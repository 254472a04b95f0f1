"""Make random examples with the lengths of real ones, and random stores of them. Neither data nor network is needed.

Length settings: ``cola``, ``sst2``, ``rte`` (lengths as in the training set, padded to the longest of a batch),
``pad64`` (CoLA's, padded to 64, as in the paper), ``pad128`` (RTE's, padded to 128), ``short`` (always 12 tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from hskd.benchmarks.models import HEAD
from hskd.io import read_json
from hskd.selectors import ExampleScores
from hskd.spec import HSKSpec, Shape
from hskd.store.decode import pack_neurons
from hskd.store.reader import Store
from hskd.store.writer import Shard, place_once, write_store
from hskd.store_format.layout import ArraySpec, derived_arrays, plan_shards, ragged_rows, total_bytes
from hskd.store_format.manifest import Manifest, Origin, TargetArray
from hskd.tasks import TokenizedSplit
from hskd.tasks.token_cache import read_arrays, write_arrays

LENGTHS_FILE = Path(__file__).with_name("lengths.json")
TASK_OF = {"pad64": "cola", "pad128": "rte", "short": "cola"}
PADDED = {"pad64": 64, "pad128": 128}
CLS, SEP, PAD, FIRST = 101, 102, 0, 1000
EPOCH_BATCHES = 50
"""Batches that the engine sorts by length together. :func:`epoch_lengths` picks a few that represent them all."""
_POOL = 1024  # different rows of random values in a store: more take longer to draw, and reading costs the same
TARGET = HEAD.target()
"""Array of the prediction targets in a random store."""


def draw_lengths(setting: str, count: int) -> np.ndarray:
    """Return ``count`` ascending lengths at even quantiles of the setting's task, ``(count,)`` int64."""
    if setting == "short":
        return np.full(count, 12)
    table = read_json(LENGTHS_FILE)[TASK_OF.get(setting, setting)]["lengths"]
    lengths = np.repeat([int(length) for length in table], list(table.values()))
    return np.sort(lengths)[((np.arange(count) + 0.5) / count * len(lengths)).astype(np.int64)]


def epoch_lengths(setting: str, batch: int, batches: int) -> np.ndarray:
    """Return the lengths of a short epoch of ``batches`` that represent a real epoch, ``(batches * batch,)``.

    The batches of a real epoch, sorted by length, are divided into that many parts. Of each part, the batch nearest to
    the part's mean is taken. Sorting these examples again gives the same batches, with as little padding as in a real
    epoch.
    """
    real = draw_lengths(setting, EPOCH_BATCHES * batch).reshape(EPOCH_BATCHES, batch)
    parts = np.array_split(real, batches)
    return np.concatenate([part[np.abs(part.max(1) - part.max(1).mean()).argmin()] for part in parts])


def make_split(setting: str, lengths: np.ndarray, cache: Path, seed: int = 0) -> TokenizedSplit:
    """Return random tokens of the given ``lengths``, in random order, memory-mapped from ``cache`` like real ones.

    The tokens are drawn from as many different ids as the real training set uses.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    vocabulary = read_json(LENGTHS_FILE)[TASK_OF.get(setting, setting)]["vocabulary"]
    tokens = rng.integers(FIRST, FIRST + vocabulary, offsets[-1]).astype(np.int32)
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = CLS, SEP
    cache.mkdir(parents=True)
    write_arrays(cache, {"offsets": offsets, "input_ids": tokens, "token_type_ids": np.zeros(len(tokens), np.uint8)})
    arrays = read_arrays(cache)
    scrambled = np.arange(len(lengths), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd, so all ids differ
    return TokenizedSplit(
        ids=scrambled.view(np.int64),
        offsets=arrays["offsets"],
        input_ids=arrays["input_ids"],
        token_type_ids=arrays["token_type_ids"],
        labels=rng.integers(2, size=len(lengths)),
        cls_id=CLS,
        sep_id=SEP,
        pad_id=PAD,
        max_length=int(PADDED.get(setting, 128)),
        pad_to=PADDED.get(setting),
    )


def vocabulary_of(setting: str) -> np.ndarray:
    """Return all token ids that the examples of a setting may use, as many as the real training set uses."""
    vocabulary = read_json(LENGTHS_FILE)[TASK_OF.get(setting, setting)]["vocabulary"]
    return np.concatenate([[PAD, CLS, SEP], np.arange(FIRST, FIRST + vocabulary)])


def spec_store(folder: Path, split: TokenizedSplit, spec: HSKSpec, shape: Shape) -> Store:
    """Write a derived store of random values for ``spec``, ``split`` and models of ``shape``, and return it."""
    arrays = derived_arrays(spec, shape, split.max_length, TARGET)
    layers = spec.layers(shape)
    mask = spec.width.fixed(shape.teacher_width)
    plan = _plan(split, shape, "derived").model_copy(
        update={
            "layers": tuple(layer.student for layer in layers),
            "mapped": tuple(layer.teacher for layer in layers),
            "student_layers": shape.student_layers,
            "precision": spec.precision.selector,
            "spec": spec.model_dump(mode="json"),
            "gold_labels": "random" if spec.examples.needs_losses and not spec.examples.keeps_all else None,
            "fixed_neurons": None
            if mask is None or len(mask) == shape.teacher_width
            else tuple(int(neuron) for neuron in mask),
        }
    )
    counts = np.zeros(len(split), np.int64)
    # Some selectors need a teacher's scores. Equal scores stand in for them, so the first examples are selected.
    scores = ExampleScores(split.ids, *np.zeros((2, len(split))))
    chosen = spec.examples.select(scores)
    counts[chosen] = spec.length.counts(split.tokens)[chosen]
    codec = spec.width.codec_layout(spec.precision, shape.teacher_width)

    def place_codec(partial: Path) -> None:
        if codec:
            place_once(partial, lambda path: save_file(_random_codec(codec, len(layers)), path))

    return _write(folder, split, plan, arrays, counts, spec.width.count(shape.teacher_width), place_codec)


def superset_store(folder: Path, split: TokenizedSplit, specs: list[HSKSpec], shape: Shape) -> Store:
    """Write a superset of random values that serves ``specs``, and return it."""
    from hskd.store.extract import Superset

    contents = Superset.of(specs, shape)
    arrays = contents.arrays(shape, TARGET, split.max_length)
    plan = _plan(split, shape, "superset").model_copy(
        update={
            "layers": contents.layers,
            "mapped": contents.layers,
            "attention_layers": contents.attention_layers,
            "gradient_layers": contents.gradient_layers,
            "received_layers": contents.received_layers,
            "gold_labels": "random" if contents.gold_losses else None,
            "precision": contents.precision,
        }
    )
    return _write(folder, split, plan, arrays, split.lengths, shape.teacher_width)


def examples_for(mebibytes: int, setting: str, spec: HSKSpec, shape: Shape) -> int:
    """Return how many examples of a length setting make a store of ``spec`` of this many MiB."""
    arrays = derived_arrays(spec, shape, 128, TARGET)
    lengths = draw_lengths(setting, 1000)
    kept = lengths if getattr(spec.length, "k", "all") == "all" else np.minimum(lengths - 1, spec.length.k)
    return int(1000 * mebibytes * 2**20 / total_bytes(arrays, 1000, int(lengths.sum()), int(kept.sum())))


def _plan(split: TokenizedSplit, shape: Shape, kind: Any) -> Manifest:
    origin = Origin(
        teacher="random",
        tokenizer="none",
        data=split.fingerprint,
        task="random",
        head=HEAD.kind,
        label_names=HEAD.label_names,
        max_length=split.max_length,
        dtype="fp32",
    )
    return Manifest(
        kind=kind,
        origin=origin,
        teacher_layers=shape.teacher_layers,
        teacher_width=shape.teacher_width,
        vocab_size=shape.vocab_size,
        target=TargetArray.of(TARGET),
        special_ids={"cls": CLS, "sep": SEP, "pad": PAD},
        layers=(),
        mapped=(),
        precision="fp16",
        examples=len(split),
    )


def _random_codec(layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], layers: int) -> dict[str, torch.Tensor]:
    """Return random arrays of a codec, for each of ``layers`` layers."""
    rng = np.random.default_rng(1)
    return {
        name: torch.from_numpy(rng.standard_normal((layers, *sizes), np.float32)).to(dtype)
        for name, (dtype, sizes) in layout.items()
    }


def _write(
    folder: Path,
    split: TokenizedSplit,
    plan: Manifest,
    arrays: dict[str, ArraySpec],
    counts: np.ndarray,
    neurons: int,
    place: Callable[[Path], None] = lambda partial: None,
) -> Store:
    rng = np.random.default_rng(0)
    pools = {name: _pool(rng, name, array, plan, neurons) for name, array in arrays.items()}

    def make_shard(span: range) -> Shard:
        examples = slice(span.start, span.stop)
        part = replace(split.take(np.arange(span.start, span.stop)), labels=None)
        kept = counts[examples]
        rank_in_example = ragged_rows(np.zeros(len(span), np.int64), kept)
        # Positions are spread over the example, without [SEP], and are the same in every layer.
        spread = rank_in_example * np.repeat(np.maximum(part.lengths - 1, 1), kept) // np.repeat(kept, kept)
        given = {
            "example_ids": part.ids,
            "lengths": part.lengths,
            "token_ids": part.input_ids,
            "counts": kept,
            "positions": np.repeat(spread[:, None], len(plan.layers), axis=1),
        }
        rows = {"example": len(span), "token": len(part.input_ids), "kept": int(kept.sum())}
        shard = {}
        for name, array in arrays.items():
            if name in given:
                shard[name] = torch.from_numpy(np.array(given[name])).to(array.dtype)
            else:
                shard[name] = pools[name][torch.from_numpy(rng.integers(_POOL, size=rows[array.per]))]
        return shard

    needed = total_bytes(arrays, len(split), int(split.offsets[-1]), int(counts.sum()))
    write_store(folder, plan, plan_shards(arrays, split.lengths, counts), needed, make_shard, place=place)
    return Store.open(folder)


def _pool(rng: np.random.Generator, name: str, array: ArraySpec, plan: Manifest, neurons: int) -> torch.Tensor:
    """Return random rows of an array."""
    if name == "neurons":
        layers = len(plan.layers)
        order = rng.random((_POOL, layers, plan.teacher_width)).argsort(axis=2)[:, :, :neurons]
        chosen = torch.from_numpy(np.sort(order, axis=2))
        return pack_neurons(chosen, plan.teacher_width, array.dtype == torch.uint8)
    if name == "values" and array.dtype == torch.uint8:
        # Either codes of a codebook, or packed bits, where any byte is valid.
        codes = getattr(HSKSpec.parse(plan.spec or {}).width, "entries", 256)
        return torch.from_numpy(rng.integers(codes, size=(_POOL, array.elements), dtype=np.uint8))
    return torch.from_numpy(rng.standard_normal((_POOL, array.elements), np.float32)).to(array.dtype)
