"""Stores return what was written, for any rows, any spec and any number of shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from store.conftest import SMALL_SHARD, Setting
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from hskd.errors import HskdError, MismatchError
from hskd.heads import SequenceClassification
from hskd.knowledge import KeptHSK, select_hsk
from hskd.selectors import WIDTH as WIDTHS
from hskd.spec import HSKSpec, Shape
from hskd.store import derive as derive_module
from hskd.store.amount import measure
from hskd.store.decode import pack_neurons, unpack_neurons
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.tasks import Task, TokenizedSplit
from hskd.teachers.forward import teacher_forward
from hskd.teachers.loading import Teacher, model_fingerprint

LAYERS, WIDTH = 3, 32
CLS, SEP, PAD = 2, 3, 0
TASK = Task("toy", ("text",), "label", SequenceClassification(("negative", "positive"), ("accuracy",)), 1, 512)


@cache
def teacher() -> Teacher:
    model = make_bert(num_hidden_layers=LAYERS)
    return Teacher("tiny", model, _NoTokenizer(), TASK.head, model_fingerprint(model))  # type: ignore[arg-type]


class _NoTokenizer:
    """Placeholder for a tokenizer, as examples are drawn as token ids. Has the attributes that a fingerprint reads."""

    cls_token_id, sep_token_id, pad_token_id = CLS, SEP, PAD

    def __call__(self, *texts: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [CLS, *(token for _ in texts for token in (SEP + 1, SEP))]}

    class backend_tokenizer:
        @staticmethod
        def to_str() -> str:
            return "{}"


def make_split(lengths: list[int], max_length: int, seed: int) -> TokenizedSplit:
    """Return examples of random tokens, some with a second ``[SEP]`` inside, and ids of both signs."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(SEP, 12, offsets[-1]).astype(np.int32)
    tokens[offsets[1:] - 1] = SEP
    tokens[offsets[:-1]] = CLS
    ids = rng.choice(np.iinfo(np.int64).max, len(lengths), replace=False) * rng.choice([-1, 1], len(lengths))
    return TokenizedSplit(ids, offsets, tokens, None, None, CLS, SEP, PAD, max_length)


@st.composite
def specs(draw: st.DrawFn, student_layers: int, widths: tuple[str, ...]) -> HSKSpec:
    """Generate specs: any selector in every dimension, with any amount that this student and teacher have."""
    layer = st.integers(0, LAYERS)
    pairs = st.dictionaries(st.integers(0, student_layers), layer, min_size=1).map(
        lambda chosen: tuple(sorted(chosen.items()))
    )
    l_top: Any = draw(st.one_of(st.integers(1, LAYERS), st.sampled_from([0.5, 1.0]), pairs))
    mapped = len(l_top) if isinstance(l_top, tuple) else student_layers + 1
    width = draw(st.sampled_from(widths))
    precisions = (
        ["fp32", "fp16", "bf16"] if width in ("pq", "rvq") else ["fp32", "fp16", "bf16", "int8", "int4", "int2"]
    )
    length = {"selector": draw(st.sampled_from(LENGTHS))}
    if length["selector"] != "cls":
        length["k"] = draw(st.one_of(st.just("all"), st.integers(1, 9)))
    if length["selector"] == "random":
        length["seed"] = draw(st.integers(0, 3))
    if length["selector"].startswith("attention"):
        length["att_map"] = draw(st.sampled_from(["same", "top"]))
    return HSKSpec.parse(
        {
            "depth": {
                "selector": "top_n",
                "n": draw(st.one_of(st.just("all"), st.integers(1, mapped))),
                "l_top": l_top,
            },
            "length": length,
            "width": {
                "selector": width,
                "w": draw(st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 0.99, 1.0])),
            },
            "precision": {"selector": draw(st.sampled_from(precisions))},
        }
    )


@dataclass(frozen=True)
class Case:
    lengths: list[int]
    max_length: int
    seed: int
    student_layers: int
    spec: HSKSpec
    own_precision: bool
    """Whether the superset has the spec's precision instead of fp32."""
    shard_bytes: int
    derived_shard_bytes: int


LENGTHS = ("attention", "attention_no_sep", "left", "cls", "random", "norm", "gradient", "pool")
NEURONS = ("magnitude", "random", "uniform")


@st.composite
def cases(draw: st.DrawFn, widths: tuple[str, ...] = NEURONS) -> Case:
    student_layers = draw(st.integers(1, LAYERS))
    shard = st.sampled_from([1, 3000, 10_000, 10**9])  # from one example per shard to a single shard
    return Case(
        lengths=draw(st.lists(st.integers(2, 12), min_size=1, max_size=9)),
        max_length=draw(st.sampled_from([12, 255, 256, 257, 512])),  # where the types of lengths and positions change
        seed=draw(st.integers(0, 2**16)),
        student_layers=student_layers,
        spec=draw(specs(student_layers, widths)),
        own_precision=draw(st.booleans()),
        shard_bytes=draw(shard),
        derived_shard_bytes=draw(shard),
    )


@contextmanager
def stores(case: Case) -> Iterator[tuple[Store, Store, Shape]]:
    """Return the superset of a case and the store of its spec."""
    everything = Superset(
        tuple(range(LAYERS + 1)),
        tuple(range(1, LAYERS + 1)),
        case.spec.precision.superset if case.own_precision else "fp32",
        tuple(range(LAYERS + 1)) if case.spec.length.needs_gradient else (),
    )
    split = make_split(case.lengths, case.max_length, case.seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        superset = extract(
            teacher(),
            TASK,
            split,
            everything,
            folder / "superset",
            ExtractOptions(batch_size=3, shard_bytes=case.shard_bytes),
        )
        derived = derive(
            superset, case.spec, case.student_layers, folder / "derived", shard_bytes=case.derived_shard_bytes
        )
        yield superset, derived, teacher().shape(case.student_layers)


def assert_same(found: KeptHSK, expected: KeptHSK) -> None:
    assert found.layers == expected.layers
    for name in ("counts", "values") if found.members else ("counts", "positions", "values"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    if found.neurons is None or expected.neurons is None:
        assert found.neurons is expected.neurons
    else:
        assert torch.equal(found.neurons, expected.neurons)
    if found.members is None or expected.members is None:
        assert found.members is expected.members
    else:
        assert all(map(torch.equal, found.members, expected.members))


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_derived_rows_are_what_selection_gives(case: Case, data: st.DataObject) -> None:
    with stores(case) as (superset, derived, shape):
        order = data.draw(st.permutations(range(len(superset))))
        rows = np.array(order[: data.draw(st.integers(1, len(order)))])
        expected = select_hsk(case.spec, case.spec.layers(shape), superset.states(rows))
        assert_same(derived.kept(rows), expected)
        assert torch.equal(derived.targets(rows), superset.targets(rows))
        assert np.array_equal(derived.token_ids(rows), superset.token_ids(rows))
        assert np.array_equal(derived.rows(superset.example_ids[rows]), rows)
        assert derived.spec == case.spec


@settings(max_examples=30)
@given(case=cases(tuple(WIDTHS)))
def test_measured_amounts_are_those_on_disk(case: Case) -> None:
    with stores(case) as (_, derived, shape):
        split = make_split(case.lengths, case.max_length, case.seed)
        amount = measure(case.spec, split.tokens, shape, case.max_length, TASK.head.target())
        shards = [load_file(path) for path in sorted(derived.folder.glob("*.safetensors"))]
        stored = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        assert amount.bytes_per_example * len(split) == pytest.approx(stored, abs=1e-6)
        if case.spec.precision.selector not in ("int4", "int2"):  # these pack several values into an element
            assert amount.kept_values == sum(shard["values"].numel() for shard in shards if "values" in shard)
        mapped = len(case.spec.depth.mapping(case.student_layers, LAYERS))
        real = sum(case.lengths)
        assert amount.full_values == real * mapped * WIDTH
        assert amount.fraction == amount.kept_values / (real * mapped * WIDTH)
        padded = len(case.lengths) * case.max_length * mapped * WIDTH
        assert amount.fraction_padded == amount.kept_values / padded
        whole = measure(case.spec.full(), split.tokens, shape, case.max_length, TASK.head.target())
        assert whole.kept_values == whole.full_values == amount.full_values


@pytest.mark.parametrize("text", ["2l_3t_0.1w", "all_all_0.5w", "1l_4t_0.3w,width=random,length=left"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_rounded_superset_derives_the_same_bytes(setting: Setting, tmp_path: Path, text: str, precision: str) -> None:
    spec = HSKSpec.parse(f"{text},precision={precision}")
    checksums = []
    for held in ("fp32", precision):
        superset = setting.extract(tmp_path / held, Superset((0, 1, 2), (1, 2), held))
        store = derive(superset, spec, 2, tmp_path / f"{held}-derived")
        checksums.append([shard.sha256 for shard in store.manifest.shards])
    assert checksums[0] == checksums[1]


def test_chunks_leave_no_seam(superset: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = HSKSpec.parse("2l_3t_0.05w")  # 16-bit indices, which torch supports least
    whole = derive(superset, spec, 2, tmp_path / "whole")
    monkeypatch.setattr(derive_module, "_CHUNK_TOKENS", 50)
    chunked = derive(superset, spec, 2, tmp_path / "chunked")
    assert chunked.manifest.shards == whole.manifest.shards


def test_token_ids_of_a_large_vocabulary(tmp_path: Path) -> None:
    model = make_bert(vocab_size=2**16 + 10, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    large = Teacher("large", model, _NoTokenizer(), TASK.head, "large")  # type: ignore[arg-type]
    split = make_split([5, 3], 8, 0)
    split.input_ids[1] = 2**16 + 5
    store = extract(large, TASK, split, Superset((1,), (1,)), tmp_path / "superset")
    derived = derive(store, HSKSpec.parse("1l_2t_0.5w,length=left"), 1, tmp_path / "derived")
    for found in (store, derived):
        assert found.token_ids(np.array([0, 1])).tolist() == split.input_ids.tolist()


@pytest.mark.parametrize("length", [255, 256, 257, 300])
def test_lengths_and_positions_at_the_end_of_a_byte(tmp_path: Path, length: int) -> None:
    model = make_bert(max_position_embeddings=300, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    long = Teacher("long", model, _NoTokenizer(), TASK.head, "long")  # type: ignore[arg-type]
    split = make_split([length, 3, length], length, 0)
    store = extract(long, TASK, split, Superset((1,), (1,)), tmp_path / "superset")
    assert store.lengths.tolist() == [length, 3, length]
    for text in ("1l_400t_0.5w,length=left", "1l_256t_0.5w,length=random"):
        spec = HSKSpec.parse(text)
        derived = derive(store, spec, 1, tmp_path / spec.fingerprint)
        rows = np.array([2, 0, 1])
        assert_same(derived.kept(rows), select_hsk(spec, spec.layers(long.shape(1)), store.states(rows)))
        assert derived.kept(rows).positions.max() >= min(length - 1, 255)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_states_are_the_teachers(setting: Setting, tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    store = setting.extract(tmp_path / "store", Superset((0, 1, 2), (1, 2), precision), shard_bytes=SMALL_SHARD)
    rows = np.random.default_rng(0).permutation(len(store))[:20]
    batch = setting.train.collate(rows)
    head = setting.task.head
    expected = teacher_forward(setting.teacher.model, batch, setting.train.sep_id, (0, 1, 2), (1, 2), head=head)
    found = store.states(rows)
    step = {"fp32": 2e-6, "fp16": 2**-10, "bf16": 2**-7}[precision]  # half a unit in the last place, twice
    for layer, hidden in expected.states.hidden.items():
        torch.testing.assert_close(found.hidden[layer], hidden, atol=2e-6, rtol=step)
        assert torch.equal(found.hidden[layer], found.hidden[layer].to(dtype).float())
        np.testing.assert_allclose(found.attention[max(layer, 1)], expected.states.attention[max(layer, 1)], atol=1e-6)
    torch.testing.assert_close(store.targets(rows), expected.target, atol=2e-6, rtol=1e-6)
    assert np.array_equal(found.tokens.input_ids, expected.states.tokens.input_ids)
    assert np.array_equal(found.tokens.example_ids, setting.train.ids[rows])
    assert np.array_equal(found.tokens.position, expected.states.tokens.position)


def test_states_and_attention_are_those_of_an_eager_forward_pass(setting: Setting, superset: Store) -> None:
    eager = AutoModelForSequenceClassification.from_pretrained(
        setting.teacher_folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rows = np.random.default_rng(1).permutation(len(superset))
    found, start = superset.states(rows), 0
    for row in rows:  # one by one, so without padding
        batch = setting.train.collate([row])
        with torch.no_grad():
            output = eager(
                input_ids=batch["input_ids"],
                token_type_ids=batch["token_type_ids"],
                output_attentions=True,
                output_hidden_states=True,
            )
        stop = start + batch["input_ids"].shape[1]
        for layer in (1, 2):
            expected = output.attentions[layer - 1][0, :, 0].mean(0).numpy()
            np.testing.assert_allclose(found.attention[layer][start:stop], expected, atol=1e-6)
            assert found.attention[layer][start:stop].sum() == pytest.approx(1, abs=1e-5)
        for layer in (0, 1, 2):
            torch.testing.assert_close(
                found.hidden[layer][start:stop], output.hidden_states[layer][0], atol=5e-6, rtol=1e-5
            )
        torch.testing.assert_close(superset.targets(np.array([row])), output.logits, atol=5e-6, rtol=1e-5)
        start = stop
    assert start == len(found.tokens.input_ids)


def test_rows_finds_every_example(setting: Setting, superset: Store) -> None:
    assert len(superset.manifest.shards) > 3
    order = np.random.default_rng(2).permutation(len(setting.train))
    assert np.array_equal(superset.example_ids[superset.rows(setting.train.ids[order])], setting.train.ids[order])
    assert np.array_equal(superset.rows(setting.train.ids[[3, 3]]), [3, 3])
    for unknown in (np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0):
        with pytest.raises(MismatchError, match=rf"1 of 2 examples are not in this store .*id {unknown}\)"):
            superset.rows(np.array([setting.train.ids[0], unknown]))


def test_a_superset_keeps_nothing_and_a_derived_store_has_no_states(superset: Store, tmp_path: Path) -> None:
    derived = derive(superset, HSKSpec.parse("1l_1t_0.1w"), 2, tmp_path / "derived")
    with pytest.raises(HskdError, match="is a superset; derive a spec"):
        superset.kept(np.array([0]))
    with pytest.raises(HskdError, match="holds one spec only"):
        derived.states(np.array([0]))


@given(data=st.data(), width=st.sampled_from([1, 7, 8, 9, 32, 384]), tokens=st.integers(1, 5))
def test_packed_neurons_round_trip(data: st.DataObject, width: int, tokens: int) -> None:
    count = data.draw(st.integers(1, width))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    chosen = np.sort([[rng.choice(width, count, replace=False) for _ in range(2)] for _ in range(tokens)], axis=2)
    neurons = torch.from_numpy(chosen)
    for as_mask, elements in ((True, -(-width // 8)), (False, count)):
        packed = pack_neurons(neurons, width, as_mask)
        assert packed.dtype == (torch.uint8 if as_mask else torch.uint16)
        assert packed.shape == (tokens, 2 * elements)
        assert torch.equal(unpack_neurons(packed.unflatten(1, (2, -1)), width, count), neurons)


def test_indices_beyond_15_bits() -> None:
    neurons = torch.tensor([[[1, 40_000, 65_535]]])
    packed = pack_neurons(neurons, 2**16, as_mask=False)
    assert torch.equal(unpack_neurons(packed.unflatten(1, (1, -1)), 2**16, 3), neurons)


def test_the_tokenizer_decides_the_fingerprint(setting: Setting, superset: Store, tokenizer: BertTokenizerFast) -> None:
    origin = superset.manifest.origin
    assert origin.teacher == setting.teacher.fingerprint
    assert origin.tokenizer == setting.teacher.tokenizer_fingerprint
    assert origin.data == setting.train.fingerprint
    assert origin.label_names == ("negative", "positive")
