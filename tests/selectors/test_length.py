"""Length: the kept tokens of ragged batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskd.errors import HskdError
from hskd.selectors import LENGTH, LayerView, LengthSelector, Tokens

CLS_ID, SEP_ID = 2, 3
BY_TOKEN = ("attention", "attention_no_sep", "cls", "left", "random")
"""Selectors that need no hidden states. tests/test_knowledge.py covers norm, test_pool.py covers pool."""

Batch = tuple[Tokens, np.ndarray]


def make_tokens(sequences: list[list[int]], example_ids: list[int]) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
    return Tokens(np.array(example_ids, np.int64), offsets, np.concatenate(sequences).astype(np.int64), SEP_ID)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Generate examples ``[CLS] ... [SEP]`` with further ``[SEP]`` inside, and attention with many ties."""
    middles = draw(st.lists(st.lists(st.sampled_from([SEP_ID, 7, 8]), max_size=8), min_size=1, max_size=5))
    sequences = [[CLS_ID, *middle, SEP_ID] for middle in middles]
    ids = st.integers(0, 2**40)
    example_ids = draw(st.lists(ids, min_size=len(sequences), max_size=len(sequences), unique=True))
    count = sum(map(len, sequences))
    attention = draw(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=count, max_size=count))
    return make_tokens(sequences, example_ids), np.array(attention, np.float32)


def view_of(tokens: Tokens, layer: int, attention: np.ndarray | None = None) -> LayerView:
    """Return the view of ``tokens`` that a selector gets. No selector here reads hidden states."""
    return LayerView(tokens, layer, torch.empty(len(tokens.input_ids), 0), attention)


@st.composite
def selectors(draw: st.DrawFn) -> LengthSelector:
    fields: dict[str, Any] = {"selector": draw(st.sampled_from(BY_TOKEN))}
    if fields["selector"] != "cls":
        fields["k"] = draw(st.one_of(st.integers(1, 12), st.just("all")))
    if fields["selector"] == "random":
        fields["seed"] = draw(st.integers(0, 2**63 - 1))
    return LENGTH.parse(fields)


def random_score(*keys: int) -> int:
    """Return the draw of ``random`` in plain integers: splitmix64's finaliser, key by key, 53 bits kept."""
    state = 0
    for key in keys:
        state = ((state ^ key) + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 11


def plain_positions(selector: LengthSelector, tokens: Tokens, layer: int, attention: np.ndarray) -> list[list[int]]:
    """Return the kept positions of each example, computed by loops."""
    kept = []
    for b, example_id in enumerate(tokens.example_ids.tolist()):
        start, stop = tokens.offsets[b : b + 2].tolist()
        scored = []
        for position in range(stop - start):
            token = start + position
            score = {
                "attention": float(attention[token]),
                "attention_no_sep": float(attention[token]),
                "left": -position,
                "cls": -position,
                "random": random_score(getattr(selector, "seed", 0), layer, example_id, position),
            }[selector.selector]
            excluded = selector.selector == "attention_no_sep" and tokens.input_ids[token] == SEP_ID
            if not excluded and not (selector.selector == "cls" and position > 0):
                scored.append((-score, position))  # sorted by score, then by position
        k = len(scored) if selector.k == "all" else selector.k
        kept.append(sorted(position for _, position in sorted(scored)[:k]))
    return kept


def positions(selector: LengthSelector, tokens: Tokens, layer: int, attention: np.ndarray | None) -> list[list[int]]:
    """Return the positions that the selector keeps, by example."""
    chosen = selector.select(view_of(tokens, layer, attention))
    parts = np.split(chosen, np.cumsum(selector.counts(tokens))[:-1])
    return [(part - start).tolist() for part, start in zip(parts, tokens.offsets[:-1], strict=True)]


@given(batches(), selectors(), st.integers(0, 12))
def test_equals_a_plain_loop(batch: Batch, selector: LengthSelector, layer: int) -> None:
    tokens, attention = batch
    assert positions(selector, tokens, layer, attention) == plain_positions(selector, tokens, layer, attention)


@given(batches(), selectors(), st.integers(0, 12))
def test_counts_order_and_bounds(batch: Batch, selector: LengthSelector, layer: int) -> None:
    tokens, attention = batch
    chosen = selector.select(view_of(tokens, layer, attention))
    eligible = np.add.reduceat(selector.eligible(tokens).astype(int), tokens.offsets[:-1])
    expected = eligible if selector.k == "all" else np.minimum(selector.k, eligible)
    assert selector.counts(tokens).tolist() == expected.tolist()
    assert (np.diff(chosen) > 0).all()  # in text order, without duplicates
    assert np.bincount(tokens.example[chosen], minlength=len(expected)).tolist() == expected.tolist()


@given(batches(), st.one_of(st.integers(1, 12), st.just("all")))
def test_sep_is_never_kept(batch: Batch, k: int | str) -> None:
    tokens, attention = batch
    attention = np.where(tokens.input_ids == SEP_ID, np.float32(0.9), attention)  # much attention, but never kept
    chosen = LENGTH.parse({"selector": "attention_no_sep", "k": k}).select(view_of(tokens, 1, attention))
    assert SEP_ID not in tokens.input_ids[chosen]


def test_ties_go_to_the_earlier_token() -> None:
    tokens = make_tokens([[CLS_ID, 7, 7, 7, SEP_ID], [CLS_ID, 7, SEP_ID]], [0, 1])
    attention = np.array([0.1, 0.2, 0.3, 0.2, 0.2, 0.3, 0.3, 0.3], np.float32)
    assert positions(LENGTH.parse({"selector": "attention", "k": 2}), tokens, 1, attention) == [[1, 2], [0, 1]]
    assert positions(LENGTH.parse({"selector": "attention_no_sep", "k": 9}), tokens, 1, attention) == [
        [0, 1, 2, 3],
        [0, 1],
    ]


@given(batches(), st.integers(1, 6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_random_does_not_depend_on_batch_mates(batch: Batch, k: int, layer: int, shuffler: Any) -> None:
    tokens, _ = batch
    selector = LENGTH.parse({"selector": "random", "k": k, "seed": 5})
    together = positions(selector, tokens, layer, None)
    order = list(range(len(together)))
    shuffler.shuffle(order)
    sequences = [part.tolist() for part in np.split(tokens.input_ids, tokens.offsets[1:-1])]
    ids = tokens.example_ids.tolist()
    shuffled = make_tokens([sequences[b] for b in order], [ids[b] for b in order])
    assert positions(selector, shuffled, layer, None) == [together[b] for b in order]
    for b in order:
        assert positions(selector, make_tokens([sequences[b]], [ids[b]]), layer, None) == [together[b]]


def test_random_is_roughly_uniform_and_independent_across_seeds_layers_and_examples() -> None:
    examples, length, k = 4000, 10, 3
    tokens = make_tokens([[CLS_ID, *[7] * (length - 2), SEP_ID]] * examples, list(range(examples)))

    def picked(seed: int, layer: int) -> np.ndarray:
        mask = np.zeros(examples * length, bool)
        mask[LENGTH.parse({"selector": "random", "k": k, "seed": seed}).select(view_of(tokens, layer))] = True
        return mask.reshape(examples, length)

    base = picked(0, 1)
    five_deviations = 5 * np.sqrt(examples * 0.3 * 0.7)
    assert np.abs(base.sum(axis=0) - examples * 0.3).max() < five_deviations
    for other in (picked(1, 1), picked(0, 2), picked(1, 0), np.roll(base, 1, axis=0)):
        # Independent draws share k * k / length = 0.9 of 3 tokens; the deviation is 0.7 per example.
        assert abs((base & other).sum() / examples - 0.9) < 5 * 0.7 / np.sqrt(examples)
    assert (picked(0, 1) == base).all()


@given(batches(), st.integers(1, 12))
def test_left_and_cls(batch: Batch, k: int) -> None:
    tokens, _ = batch
    lengths = tokens.lengths.tolist()
    assert positions(LENGTH.parse({"selector": "left", "k": k}), tokens, 0, None) == [
        list(range(min(k, length))) for length in lengths
    ]
    assert positions(LENGTH.parse({"selector": "cls"}), tokens, 0, None) == [[0]] * len(lengths)


def test_cls_has_no_other_amount() -> None:
    with pytest.raises(HskdError, match=r"length=cls: field k.*got 2"):
        LENGTH.parse({"selector": "cls", "k": 2})


@given(batches())
def test_all_needs_no_ranking(batch: Batch) -> None:
    tokens, _ = batch
    everything = list(range(len(tokens.input_ids)))
    for name in ("attention", "left", "random"):
        assert LENGTH.parse({"selector": name, "k": "all"}).select(view_of(tokens, 1)).tolist() == everything
    no_sep = LENGTH.parse({"selector": "attention_no_sep", "k": "all"}).select(view_of(tokens, 1))
    assert no_sep.tolist() == [i for i in everything if tokens.input_ids[i] != SEP_ID]


@pytest.mark.parametrize("name", ["attention", "attention_no_sep"])
def test_ranking_by_attention_without_attention(name: str) -> None:
    tokens = make_tokens([[CLS_ID, 7, SEP_ID]], [0])
    with pytest.raises(HskdError, match=f"length={name} ranks tokens by attention"):
        LENGTH.parse({"selector": name, "k": 1}).select(view_of(tokens, 1))


@pytest.mark.parametrize(
    ("att_map", "same_layer", "top_layer", "expected"),
    [("same", 8, 12, 8), ("top", 8, 12, 12), ("same", 0, 0, 1), ("top", 0, 0, 1)],
)
def test_the_attention_layer_that_ranks(att_map: str, same_layer: int, top_layer: int, expected: int) -> None:
    selector = LENGTH.parse({"selector": "attention_no_sep", "k": 1, "att_map": att_map})
    assert selector.attention_layer(same_layer, top_layer) == expected
    assert LENGTH.parse({"selector": "left", "k": 1}).attention_layer(same_layer, top_layer) is None
