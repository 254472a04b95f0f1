"""Selection of examples: the selected examples, and its effect on batches and bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskd.errors import HskdError
from hskd.heads import IGNORED, SequenceClassification, SequenceRegression, TokenClassification, head_of
from hskd.heads.scores import entropies_of_tokens, example_means, require_ranks
from hskd.selectors import EXAMPLES, ExampleScores, Tokens
from hskd.spec import HSKSpec, Shape
from hskd.store.amount import measure
from hskd.store_format.layout import ArraySpec
from hskd.tasks.batches import BucketedBatchSampler

IDS = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=30, unique=True)


@given(IDS, st.sampled_from(["random", "disagree", "entropy"]), st.integers(1, 100), st.randoms())
def test_the_best_are_kept_in_whatever_order_they_come(ids: list[int], name: str, hundredths: int, rng: object) -> None:
    selector = EXAMPLES.parse({"selector": name, "e": hundredths / 100})
    scores = np.random.default_rng(len(ids)).integers(0, 4, len(ids)) / 4  # many ties

    def kept(order: list[int]) -> list[int]:
        numbers = np.array([ids[i] for i in order])
        view = ExampleScores(numbers, losses=scores[order], entropies=scores[order])
        rows = selector.select(view)
        assert (np.diff(rows) > 0).all()
        return sorted(numbers[rows].tolist())

    order = list(range(len(ids)))
    chosen = kept(order)
    assert len(chosen) == max(1, len(ids) * hundredths // 100)
    rng.shuffle(order)  # type: ignore[attr-defined]
    assert kept(order) == chosen
    if name != "random" and hundredths < 100:
        ranked = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
        assert chosen == sorted(ids[i] for i in ranked[: len(chosen)])


@given(IDS, st.integers(1, 100), st.integers(0, 2**63 - 1))
def test_a_larger_share_adds_to_a_smaller_one(ids: list[int], hundredths: int, seed: int) -> None:
    view = ExampleScores(np.array(ids))
    few, more = (
        EXAMPLES.parse({"selector": "random", "e": share, "seed": seed}).select(view)
        for share in (hundredths / 200, hundredths / 100)
    )
    assert set(few) <= set(more)


def test_what_is_not_known_is_named() -> None:
    for name, what in (("disagree", "the loss of the gold label"), ("entropy", "the entropy of the prediction")):
        selector = EXAMPLES.parse({"selector": name, "e": 0.5})
        with pytest.raises(HskdError, match=f"examples={name}: ranks examples by {what}, and it is not known here"):
            selector.select(ExampleScores(np.arange(4)))


def test_losses_and_entropies_of_heads() -> None:
    rows = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-500.0, 500.0, 0.0]])
    head = SequenceClassification(("a", "b", "c"))
    probabilities = [[math.exp(x - math.log(sum(map(math.exp, row)))) for x in row] for row in rows[:2].tolist()]
    entropies = [-sum(p * math.log(p) for p in row) for row in probabilities]
    assert head.entropies(rows).tolist() == pytest.approx([*entropies, 0.0], abs=1e-12)
    assert head.entropies(rows)[1].item() == pytest.approx(math.log(3))
    losses = head.gold_losses(rows, torch.tensor([1, 2, 0])).tolist()
    assert losses == pytest.approx([-math.log(probabilities[0][1]), math.log(3), 1000.0])
    number = SequenceRegression()
    assert number.gold_losses(torch.tensor([[1.5], [0.0]]), torch.tensor([1.0, 2.0])).tolist() == [0.25, 4.0]
    tags = TokenClassification(("O", "B-x", "I-x"))
    of_words = tags.gold_losses(rows, torch.tensor([1, IGNORED, 1]))
    assert of_words[:1].tolist() == pytest.approx(losses[:1]) and of_words[1].isnan() and of_words[2] == 0
    # Two words of which one has a label; no word; one word.
    assert example_means(of_words, np.array([2, 0, 1])).tolist() == pytest.approx([losses[0], 0.0, 0.0])
    starts = np.array([False, True, False, True, True])
    assert entropies_of_tokens(tags, rows, starts).tolist() == pytest.approx([0, entropies[0], 0, entropies[1], 0])


@pytest.mark.parametrize(
    ("text", "kind", "refused"),
    [
        ("1l_all_all_0.5e,examples=entropy", "regression", "predicts no distribution; use examples=random"),
        ("1l_all_all_0.5e,examples=entropy", "embedding", "predicts no distribution; use examples=random"),
        ("1l_all_all_0.5e,examples=disagree", "embedding", "has none; use examples=random"),
        ("1l_2t_all,length=entropy", "classification", "has none for each token; use another length selector"),
        ("1l_2t_all,length=entropy", "embedding", "has none for each token; use another length selector"),
        ("1l_all_all_0.5e,examples=disagree", "regression", None),
        ("1l_all_all_0.5e,examples=disagree", "token_classification", None),
        ("1l_2t_all_0.5e,length=entropy,examples=entropy", "token_classification", None),
        ("1l_all_all_0.5e", "embedding", None),
    ],
)
def test_heads_without_such_a_quantity_refuse(text: str, kind: str, refused: str | None) -> None:
    spec, head = HSKSpec.parse(text), head_of(kind)
    if refused is None:
        require_ranks(spec, head)
    else:
        with pytest.raises(HskdError, match=refused):
            require_ranks(spec, head)


def test_a_spec_that_keeps_all_is_what_it_was() -> None:
    for text in ("1l_10t_0.1w_1e", "1l_10t_0.1w_all", "1l_10t_0.1w_1.0e,examples=disagree"):
        spec = HSKSpec.parse(text)
        assert spec.label == "1l_10t_0.1w" and spec.fingerprint == "efa53abc4db08b49"
    share = HSKSpec.parse("1l_10t_0.1w_0.25e")
    assert '"examples":{"e":0.25,"seed":0,"selector":"random"}' in share.canonical
    assert share.full() == HSKSpec.parse("1l_10t_0.1w").full()
    with pytest.raises(HskdError, match=r"has no effect if all examples are kept; give their share after the width"):
        HSKSpec.parse("1l_10t_0.1w,examples=disagree")


def test_amounts_count_the_kept_examples() -> None:
    lengths = np.arange(3, 43)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.arange(40) * 7919, offsets, np.zeros(offsets[-1], np.int64), sep_id=1)
    shape = Shape(student_layers=2, teacher_layers=4, teacher_width=32, vocab_size=100)
    target = ArraySpec("example", torch.float32, 2)

    def amount(text: str, chosen: np.ndarray | None = None) -> tuple[int, float]:
        counted = measure(HSKSpec.parse(text), tokens, shape, 64, target, chosen=chosen)
        assert counted.fraction == counted.kept_values / counted.full_values
        return counted.kept_values, counted.bytes_per_example * 40

    values, size = amount("1l_all_all")
    spec = HSKSpec.parse("1l_all_all_0.25e")
    chosen = spec.examples.select(ExampleScores(tokens.example_ids))
    kept = int(lengths[chosen].sum())
    assert len(chosen) == 10 and kept != lengths.sum() / 4
    # One byte per example stores the number of kept tokens.
    assert amount("1l_all_all_0.25e") == (32 * kept, size - 2 * 32 * (lengths.sum() - kept) + 40)
    # Before the teacher ranks the examples, the selected ones are assumed to have the average length.
    expected = round(int(lengths.sum()) * 10 / 40)
    for name in ("disagree", "entropy"):
        assert amount(f"1l_all_all_0.25e,examples={name}")[0] == 32 * expected
        assert amount(f"1l_all_all_0.25e,examples={name}", chosen)[0] == 32 * kept
    assert values == 32 * lengths.sum()


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 9), st.booleans())
def test_fewer_examples_come_in_as_many_steps(few: int, more: int, batch: int, whole_only: bool) -> None:
    lengths, every = np.arange(few) % 7 + 1, few + more
    whole_only = whole_only and few >= batch

    def sampler(epoch: int, epoch_examples: int | None) -> BucketedBatchSampler:
        made = BucketedBatchSampler(lengths, batch, 5, whole_only=whole_only, epoch_examples=epoch_examples)
        made.set_epoch(epoch)
        return made

    steps = every // batch if whole_only else -(-every // batch)
    epochs = [list(sampler(epoch, every)) for epoch in range(3)]
    assert [len(rows) for rows in epochs] == [steps] * 3 and len(sampler(0, every)) == steps
    # One stream of passes over the few examples, divided into epochs.
    stream = [rows for epoch in epochs for rows in epoch]
    passes = [rows for epoch in range(3 * steps) for rows in sampler(epoch, None)][: 3 * steps]
    assert stream == passes
    draws = [rows.draw for rows in stream]
    assert len(set(draws)) == len(draws)
