"""The HSK spec: short forms, canonical JSON, labels, layers, and its representation in a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskd.errors import HskdError
from hskd.selectors import DEPTH, EXAMPLES, LENGTH, PRECISION, WIDTH
from hskd.selectors.basis import PCA, Projection
from hskd.selectors.codebook import CodebookWidth, ProductCodes, ResidualCodes
from hskd.selectors.depth import RandomLayers, Reverse, Same, TopN
from hskd.selectors.examples import Disagree, EntropyOfExamples, RandomExamples
from hskd.selectors.length import (
    Attention,
    AttentionNoSep,
    Cls,
    Entropy,
    Gradient,
    Left,
    Norm,
    Pool,
    Random,
    Received,
)
from hskd.selectors.precision import BF16, FP16, FP32, Int2, Int4, Int8
from hskd.selectors.width import Magnitude, RandomNeurons, UniformNeurons
from hskd.spec import DIMENSIONS, HSKSpec, Layer, Shape
from hskd.store_format.layout import kept_arrays

ALL = st.just("all")
SEEDS = st.integers(0, 2**63 - 1)
KS = st.one_of(st.integers(1, 512), ALL)
WS = st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 100).map(lambda hundredths: hundredths / 100))
ATT_MAPS = st.sampled_from(["same", "top"])
L_TOPS = st.one_of(st.integers(1, 24), WS)
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=4).map(tuple)

QUANTISERS = (Int8, Int4, Int2)
BY_NAME: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "depth": {
        "top_n": st.builds(TopN, n=st.one_of(st.integers(1, 25), ALL), l_top=L_TOPS),
        "reverse": st.builds(Reverse, n=st.one_of(st.integers(1, 25), ALL), l_top=L_TOPS),
        "same": st.builds(Same, n=st.one_of(st.integers(1, 25), ALL), l_top=L_TOPS),
        "random": st.builds(RandomLayers, n=st.one_of(st.integers(1, 25), ALL), l_top=L_TOPS, seed=SEEDS),
    },
    "length": {
        "attention": st.builds(Attention, k=KS, att_map=ATT_MAPS),
        "attention_no_sep": st.builds(AttentionNoSep, k=KS, att_map=ATT_MAPS),
        "left": st.builds(Left, k=KS),
        "norm": st.builds(Norm, k=KS),
        "gradient": st.builds(Gradient, k=KS),
        "pool": st.builds(Pool, k=KS),
        "received": st.builds(Received, k=KS),
        "entropy": st.builds(Entropy, k=KS),
        "cls": st.builds(Cls),
        "random": st.builds(Random, k=KS, seed=SEEDS),
    },
    "width": {
        "magnitude": st.builds(Magnitude, w=WS),
        "random": st.builds(RandomNeurons, w=WS, seed=SEEDS),
        "uniform": st.builds(UniformNeurons, w=WS),
        "projection": st.builds(Projection, w=WS, seed=SEEDS),
        "pca": st.builds(PCA, w=WS, rotate=st.booleans()),
        "pq": st.builds(ProductCodes, w=WS, entries=st.integers(2, 256), seed=SEEDS),
        "rvq": st.builds(ResidualCodes, w=WS, entries=st.integers(2, 256), seed=SEEDS),
    },
    "precision": {
        "fp32": st.builds(FP32),
        "fp16": st.builds(FP16),
        "bf16": st.builds(BF16),
        "int8": st.builds(Int8),
        "int4": st.builds(Int4),
        "int2": st.builds(Int2),
    },
    "examples": {
        "random": st.builds(RandomExamples, e=WS, seed=SEEDS),
        "disagree": st.builds(Disagree, e=WS),
        "entropy": st.builds(EntropyOfExamples, e=WS),
    },
}


def together(parts: tuple[Any, ...]) -> HSKSpec:
    """Return a spec of selectors along every dimension, adapted where two are not compatible."""
    by_dimension = dict(zip(BY_NAME, parts, strict=True))
    # Codes are bytes, so the precision is that of the codebooks.
    if isinstance(by_dimension["width"], CodebookWidth) and isinstance(by_dimension["precision"], QUANTISERS):
        by_dimension["precision"] = FP16()
    # A student layer has no fixed teacher layer.
    if isinstance(by_dimension["depth"], RandomLayers) and isinstance(by_dimension["length"], Attention):
        by_dimension["length"] = by_dimension["length"].model_copy(update={"att_map": "same"})
    return HSKSpec(**by_dimension)


SPECS = st.tuples(*(st.one_of(*by_name.values()) for by_name in BY_NAME.values())).map(together)

GOLDEN = (
    '{"depth":{"l_top":1.0,"n":1,"selector":"top_n"},'
    '"length":{"att_map":"same","k":10,"selector":"attention_no_sep"},'
    '"precision":{"selector":"fp16"},'
    '"width":{"selector":"magnitude","w":0.1}}'
)


def test_every_selector_is_tested() -> None:
    assert {name: set(by_name) for name, by_name in BY_NAME.items()} == {
        name: set(registry) for name, registry in DIMENSIONS.items()
    }
    assert DIMENSIONS == {
        "depth": DEPTH,
        "length": LENGTH,
        "width": WIDTH,
        "precision": PRECISION,
        "examples": EXAMPLES,
    }


@given(SPECS)
def test_label_round_trip(spec: HSKSpec) -> None:
    again = HSKSpec.parse(spec.label)
    assert again == spec
    assert again.canonical == spec.canonical


@given(SPECS, PAIRS)
def test_canonical_round_trip(spec: HSKSpec, pairs: tuple[tuple[int, int], ...]) -> None:
    for one in (spec, spec.model_copy(update={"depth": TopN(l_top=pairs)})):
        again = HSKSpec.parse(one.canonical)
        assert again == one
        assert again.canonical == one.canonical
        assert again.fingerprint == one.fingerprint
        assert hash(again) == hash(one)
        assert HSKSpec.parse(json.loads(one.canonical)) == one


def test_canonical_is_golden() -> None:
    spec = HSKSpec.parse("1l_10t_0.1w")
    assert spec.canonical == GOLDEN
    # This names folders on disk, so it must never change for an existing spec.
    assert spec.fingerprint == "efa53abc4db08b49"


def test_distinct_specs_have_distinct_canonical_text_and_labels() -> None:
    texts = [
        "1l_10t_0.1w",
        "2l_10t_0.1w",
        "all_10t_0.1w",
        "1l_11t_0.1w",
        "1l_all_0.1w",
        "1l_10t_0.11w",
        "1l_10t_all",
        "1l_10t_0.1w,l_top=1",  # the first layer, not the share 1.0
        "1l_10t_0.1w,l_top=0.5",
        "1l_10t_0.1w,l_top=5",
        "1l_10t_0.1w,att_map=top",
        "1l_10t_0.1w,length=attention",
        "1l_10t_0.1w,length=attention,att_map=top",
        "1l_10t_0.1w_0.25e",
        "1l_10t_0.1w_0.25e,examples.seed=1",
        "1l_10t_0.1w_0.25e,examples=disagree",
        "1l_10t_0.1w_0.25e,examples=entropy",
        "1l_10t_0.1w_0.5e",
        "1l_10t_0.1w,depth=random",
        "1l_10t_0.1w,depth=random,seed=1",
        "1l_10t_0.1w,length=received",
        "1l_10t_0.1w,length=entropy",
        "1l_10t_0.1w,length=left",
        "1l_10t_0.1w,length=random",
        "1l_10t_0.1w,length=random,seed=1",
        "1l_10t_0.1w,width=random",
        "1l_10t_0.1w,width=random,seed=1",
        "1l_10t_0.1w,width=uniform",
        "1l_1t_0.1w",
        "1l_1t_0.1w,length=cls",
        "1l_10t_0.1w,precision=fp32",
        "1l_10t_0.1w,precision=bf16",
    ]
    specs = [HSKSpec.parse(text) for text in texts]
    for distinct in ({spec.canonical for spec in specs}, {spec.label for spec in specs}, set(specs)):
        assert len(distinct) == len(texts)
    assert len({spec.fingerprint for spec in specs}) == len(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1l_10t_0.1w", HSKSpec(depth=TopN(n=1), length=AttentionNoSep(k=10), width=Magnitude(w=0.1))),
        ("1l_10t_0.1h", HSKSpec(depth=TopN(n=1), length=AttentionNoSep(k=10), width=Magnitude(w=0.1))),
        ("1l_10t_.1w", HSKSpec(depth=TopN(n=1), length=AttentionNoSep(k=10), width=Magnitude(w=0.1))),
        (" 1l_10t_0.1w ", HSKSpec(depth=TopN(n=1), length=AttentionNoSep(k=10), width=Magnitude(w=0.1))),
        ("1l_10t_1w", HSKSpec(depth=TopN(n=1), length=AttentionNoSep(k=10), width=Magnitude(w=1.0))),
        ("all_all_all", HSKSpec()),
        ("alll_allt_allw", HSKSpec()),
        ("alll_allt_allh", HSKSpec()),
        ("3l_all_all", HSKSpec(depth=TopN(n=3))),
        ("all_2t_allh", HSKSpec(length=AttentionNoSep(k=2))),
        ("all_all_0.5w", HSKSpec(width=Magnitude(w=0.5))),
        ("2l_3t_0.00001w", HSKSpec(depth=TopN(n=2), length=AttentionNoSep(k=3), width=Magnitude(w=1e-5))),
    ],
)
def test_short_forms(text: str, expected: HSKSpec) -> None:
    assert HSKSpec.parse(text) == expected


def test_full_hsk_is_the_default() -> None:
    spec = HSKSpec()
    assert spec == HSKSpec(
        depth=TopN(n="all", l_top=1.0), length=Left(k="all"), width=UniformNeurons(w=1.0), precision=FP16()
    )
    assert spec.label == "all_all_all"
    assert HSKSpec.parse("{}") == HSKSpec.parse({}) == HSKSpec.parse(spec) == spec


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("1l_10t_0.1w,l_top=5", "depth", TopN(n=1, l_top=5)),
        ("1l_10t_0.1w,l_top=0.5", "depth", TopN(n=1, l_top=0.5)),
        ("1l_10t_0.1w,depth.l_top=5", "depth", TopN(n=1, l_top=5)),
        ("1l_10t_0.1w,length=left", "length", Left(k=10)),
        ("all_all_all,length=attention_no_sep", "length", AttentionNoSep(k="all")),
        ("1l_1t_0.1w,length=cls", "length", Cls()),
        ("1l_10t_0.1w,length=random,seed=3", "length", Random(k=10, seed=3)),
        ("1l_10t_0.1w, length=random , length.seed=3", "length", Random(k=10, seed=3)),
        ("1l_10t_0.1w,length=random,width=random,length.seed=3", "length", Random(k=10, seed=3)),
        ("1l_10t_0.1w,length=random,width=random,length.seed=3", "width", RandomNeurons(w=0.1, seed=0)),
        ("1l_10t_0.1w,att_map=top", "length", AttentionNoSep(k=10, att_map="top")),
        ("1l_10t_0.1w,width=uniform", "width", UniformNeurons(w=0.1)),
        ("all_all_all,width=magnitude", "width", Magnitude(w=1.0)),
        ("1l_10t_0.1w,precision=bf16", "precision", BF16()),
    ],
)
def test_changes(text: str, dimension: str, expected: object) -> None:
    changed = getattr(HSKSpec.parse(text), dimension)
    assert type(changed) is type(expected)
    assert changed.model_dump_json() == expected.model_dump_json()  # type: ignore[attr-defined]


def test_from_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"length": {"selector": "random", "k": 4, "seed": 9}}, indent=2), encoding="utf-8")
    assert HSKSpec.parse(str(path)) == HSKSpec(length=Random(k=4, seed=9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1l_10t", "expected layers_tokens_width such as 1l_10t_0.1w"),
        ("10t_1l_0.1w", "expected layers_tokens_width"),
        ("1l_10t_0.1w_", "expected layers_tokens_width"),
        ("[1, 2]", "expected layers_tokens_width"),
        ("", "expected layers_tokens_width"),
        ("{", "not valid JSON"),
        ("nowhere.json", "nowhere.json: no such file"),
        ("0l_10t_0.1w", "depth=top_n: field n"),
        ("1l_0t_0.1w", "length=attention_no_sep: field k"),
        ("1l_10t_0w", "width=magnitude: field w: Input should be greater than 0"),
        ("1l_10t_1.5w", "width=magnitude: field w: Input should be less than or equal to 1"),
        ("1l_10t_0.1w,l_top=0", "depth=top_n: field l_top"),
        ("1l_10t_0.1w,l_top=top", "depth=top_n: field l_top"),
        ("1l_10t_0.1w,length=cls", "length=cls: field k: .*got 10"),
        ("1l_10t_0.1w,length=random,seed=-1", "length=random: field seed"),
        ("1l_10t_0.1w,att_map=bottom", "length=attention_no_sep: field att_map: .*got 'bottom'"),
        ("1l_10t_0.1w,length=nope", "length: unknown selector 'nope'; known: attention, .*, random"),
        ("1l_10t_0.1w,precision=int3", "precision: unknown selector 'int3'; known: fp32, fp16, bf16"),
        ("1l_10t_0.1w,left", "'left': expected name=value"),
        ("1l_10t_0.1w,", "'': expected name=value"),
        ("1l_10t_0.1w,seed=3", "'seed' must name one of: depth, .*, depth.l_top, length.att_map"),
        ("1l_10t_0.1w,length=random,width=random,seed=3", "'seed' must name one of: length.seed, width.seed"),
        ({"dept": {}}, "field dept: Extra inputs"),
        ({"depth": 3}, 'depth: expected an object with a key "selector"'),
        (
            {"width": {"selector": "random", "w": 0.5, "sede": 1}},
            "width=random: field sede: .*fields: selector, w, seed",
        ),
    ],
)
def test_errors_name_the_field(text: Any, message: str) -> None:
    with pytest.raises(HskdError, match=message):
        HSKSpec.parse(text)


# round_half_even(l * L_top / 6) of 12 teacher layers, by hand.
TO_8, TO_12 = [0, 1, 3, 4, 5, 7, 8], [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("changes", "teacher", "attention"),
    [
        ("", TO_12, [1, 2, 4, 6, 8, 10, 12]),
        (",l_top=8", TO_8, [1, 1, 3, 4, 5, 7, 8]),
        (",l_top=8,att_map=top", TO_8, [1, 2, 4, 6, 8, 10, 12]),
        (",length=attention,l_top=8,att_map=top", TO_8, [1, 2, 4, 6, 8, 10, 12]),
        (",length=left,l_top=8", TO_8, [None] * 7),
        (",length=random", TO_12, [None] * 7),
    ],
)
@pytest.mark.parametrize("n", [1, 3, 7])
def test_layers(changes: str, teacher: list[int], attention: list[int | None], n: int) -> None:
    shape = Shape(student_layers=6, teacher_layers=12, teacher_width=768, vocab_size=100)
    expected = [Layer(*row) for row in zip(range(7), teacher, attention, strict=True)][-n:]
    assert HSKSpec.parse(f"{n}l_10t_0.1w{changes}").layers(shape) == tuple(expected)


def test_layers_of_explicit_pairs() -> None:
    shape = Shape(student_layers=6, teacher_layers=12, teacher_width=768, vocab_size=100)
    for att_map, expected in (("same", (3, 5)), ("top", (4, 10))):
        spec = HSKSpec(depth=TopN(l_top=((5, 5), (2, 3))), length=Attention(k=2, att_map=att_map))
        assert spec.layers(shape) == (Layer(2, 3, expected[0]), Layer(5, 5, expected[1]))


def test_layers_out_of_range() -> None:
    shape = Shape(student_layers=2, teacher_layers=4, teacher_width=8, vocab_size=100)
    with pytest.raises(HskdError, match="n = 4 is out of range: 3 student layers"):
        HSKSpec.parse("4l_all_all").layers(shape)


U8, U16, F16 = torch.uint8, torch.uint16, torch.float16


@pytest.mark.parametrize(
    ("text", "max_length", "expected"),
    [
        ("all_all_all", 64, {"values": (F16, 3 * 768)}),
        ("all_all_all,precision=fp32", 64, {"values": (torch.float32, 3 * 768)}),
        ("1l_all_all,precision=bf16", 512, {"values": (torch.bfloat16, 768)}),
        # 47 neurons: indices take 94 bytes, a mask 96. 48 neurons: 96 bytes either way, and the mask is used.
        ("1l_all_0.0612w", 64, {"values": (F16, 47), "neurons": (U16, 47)}),
        ("1l_all_0.0625w", 64, {"values": (F16, 48), "neurons": (U8, 96)}),
        ("2l_all_0.5w", 64, {"values": (F16, 768), "neurons": (U8, 192)}),
        ("2l_all_0.01w", 64, {"values": (F16, 14), "neurons": (U16, 14)}),
        ("all_all_all,width=magnitude", 64, {"values": (F16, 3 * 768)}),
        ("2l_all_0.01w,width=random", 64, {"values": (F16, 14)}),
        ("2l_all_0.01w,width=uniform", 64, {"values": (F16, 14)}),
        ("2l_9t_all", 256, {"values": (F16, 1536), "positions": (U8, 2)}),
        ("2l_9t_all", 257, {"values": (F16, 1536), "positions": (U16, 2)}),
        ("2l_9t_all,length=left", 64, {"values": (F16, 1536), "positions": (U8, 2)}),
        ("all_all_all,length=attention_no_sep", 64, {"values": (F16, 3 * 768), "positions": (U8, 3)}),
        ("2l_all_0.01w,width=projection", 64, {"values": (F16, 14)}),
        ("2l_all_0.01w,width=pca", 64, {"values": (F16, 14)}),
        ("2l_all_0.01w,width=pca,precision=int2", 64, {"values": (U8, 4), "scale": (F16, 2)}),
        ("2l_all_0.01w,width=pq", 64, {"values": (U8, 14)}),
        ("2l_all_0.01w,width=rvq,precision=fp32", 64, {"values": (U8, 14)}),
        ("2l_3t_all,length=pool", 64, {"values": (F16, 1536)}),
        ("1l_9t_0.01w", 512, {"values": (F16, 7), "positions": (U16, 1), "neurons": (U16, 7)}),
    ],
)
def test_kept_arrays(text: str, max_length: int, expected: dict[str, tuple[torch.dtype, int]]) -> None:
    shape = Shape(student_layers=2, teacher_layers=4, teacher_width=768, vocab_size=100)
    assert kept_arrays(HSKSpec.parse(text), shape, max_length) == expected


def test_mask_bytes_are_rounded_up() -> None:
    shape = Shape(student_layers=2, teacher_layers=4, teacher_width=33, vocab_size=100)
    assert kept_arrays(HSKSpec.parse("1l_all_0.5w"), shape, 64)["neurons"] == (U8, 5)
