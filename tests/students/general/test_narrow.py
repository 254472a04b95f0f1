"""Cutting a narrow BERT out of a teacher's body."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_bert
from support.encoders import TINY, tiny
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hskd.errors import HskdError
from hskd.fast import LeanEncoder
from hskd.students import Importance, prune_rosita
from hskd.students.general import narrow as narrow_module
from hskd.students.general.narrow import Start, _choose_basis, _resize, least_squares, narrow
from hskd.tasks import TokenizedSplit, model_inputs


@pytest.fixture(scope="module")
def split() -> TokenizedSplit:
    """Random tokens in examples of different lengths."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(6, 20, 96)
    return TokenizedSplit(
        ids=np.arange(96),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        input_ids=draw.integers(0, 200, lengths.sum()).astype(np.int32),
        token_type_ids=None,
        labels=None,
        cls_id=2,
        sep_id=3,
        pad_id=0,
        max_length=20,
    )


@pytest.fixture(scope="module")
def body() -> torch.nn.Module:
    """A body of four layers and width 32, with LayerNorms that are not all ones."""
    model = make_bert(num_hidden_layers=4).bert
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def cut(body: torch.nn.Module, split: TokenizedSplit, *sizes: int) -> Start:
    torch.manual_seed(7)
    return narrow(body, *sizes, split)


def states(model: torch.nn.Module, split: TokenizedSplit, top: int) -> list[Tensor]:
    batch = split.collate(range(len(split)))
    with torch.no_grad():
        every = LeanEncoder(model).hidden_states(model_inputs(batch), top)
    return [state[batch["attention_mask"].bool()] for state in every]


def share_missed(start: Start, body: torch.nn.Module, split: TokenizedSplit, mapped: list[int]) -> list[float]:
    """Return, for each student layer, the share of the teacher's variance that its states miss."""
    mine = states(start.student, split, len(mapped) - 1)
    theirs = states(body, split, max(mapped))
    missed = []
    for state, layer in zip(mine, mapped, strict=True):
        got = state if start.projection is None else start.projection(state).detach()
        missed.append(float((got - theirs[layer]).square().mean() / theirs[layer].var(0).mean()))
    return missed


def test_at_full_size_it_is_the_teacher(body: torch.nn.Module, split: TokenizedSplit) -> None:
    start = cut(body, split, 4, 32, 4, 64)
    assert start.projection is None
    for mine, theirs in zip(states(start.student, split, 4), states(body, split, 4), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)


def test_heads_of_another_size_hold_the_teachers(body: torch.nn.Module, split: TokenizedSplit) -> None:
    """Two layers of four heads of 8 fit into a layer of two heads of 16. The rest of each head is zero, not noise."""
    start = cut(body, split, 4, 32, 2, 64)
    assert max(share_missed(start, body, split, [0, 1, 2, 3, 4])) < 0.5


def test_a_narrow_student_follows_the_teacher(body: torch.nn.Module, split: TokenizedSplit) -> None:
    """It is far closer than any constant (1.0) or a random student of the same size with the best projection."""
    start = cut(body, split, 2, 24, 3, 48)
    assert start.student.config.hidden_size == 24
    assert start.student.config.num_hidden_layers == 2
    assert start.student.encoder.layer[0].intermediate.dense.out_features == 48
    missed = share_missed(start, body, split, [0, 2, 4])
    assert missed[0] < 0.3
    torch.manual_seed(0)
    random = type(start.student)(start.student.config).eval()
    theirs = states(body, split, 4)
    for layer, mine, ours in zip((2, 4), states(random, split, 2)[1:], missed[1:], strict=True):
        weight, bias = least_squares(mine, theirs[layer])
        best = (mine.double() @ weight.T + bias - theirs[layer]).square().mean() / theirs[layer].var(0).mean()
        assert ours < best


def test_the_basis_holds_the_principal_components() -> None:
    torch.manual_seed(0)
    states = torch.randn(500, 6) * torch.tensor([5.0, 4.0, 3.0, 0.1, 0.1, 0.1]) + 2
    mean, basis = _choose_basis([states[:250], states[250:]], 4)
    assert basis is not None
    torch.testing.assert_close(mean, states.mean(0))
    reduced = (states - mean) @ basis
    torch.testing.assert_close(reduced.sum(1), torch.zeros(500), atol=1e-4, rtol=0)
    # Three directions in four neurons whose sum is 0: only the small ones are lost.
    torch.testing.assert_close((reduced @ basis.T)[:, :3], (states - mean)[:, :3], atol=0.2, rtol=0)
    assert _choose_basis([states], 6)[1] is None


def test_the_heads_and_neurons_that_do_most_are_kept(body: torch.nn.Module, split: TokenizedSplit) -> None:
    """The reference measures how far the layer's output moves without each head or neuron."""
    fit = narrow_module._Fit(body, narrow_module._empty(body, 4, 16, 2, 16), split)
    fit._mapped_states()
    fit.basis = None
    with torch.no_grad():
        seen = fit._run_teacher(range(1, 2))
        block = body.encoder.layer[0]
        active = seen["active1"]
        torch.testing.assert_close(active, block.intermediate.intermediate_act_fn(seen["neurons1"]))
        moved = []
        for neuron in range(64):
            without = active.clone()
            without[:, neuron] = active[:, neuron].mean()
            moved.append(float((block.output.dense(without) - block.output.dense(active)).square().sum()))
        expected = sorted(sorted(range(64), key=lambda i: -moved[i])[:16])
        [neurons] = fit._choose_neurons(range(1, 2), seen)
        torch.testing.assert_close(neurons, seen["neurons1"][:, expected])

        context, dense = seen["context1"], block.attention.output.dense
        by_head = []
        for head in range(4):
            without = context.clone()
            without[:, 8 * head : 8 * head + 8] = context[:, 8 * head : 8 * head + 8].mean(0)
            by_head.append(float((dense(without) - dense(context)).square().sum()))
        kept = sorted(sorted(range(4), key=lambda i: -by_head[i])[:2])
        columns = [column for head in kept for column in range(8 * head, 8 * head + 8)]
        torch.testing.assert_close(fit._choose_heads(range(1, 2), seen)[1], seen["key1"][:, columns])


def test_a_head_of_low_rank_loses_nothing() -> None:
    """Scores and outputs of a head that uses 3 of its 8 columns' directions survive with 3 columns."""
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(8, 8)).Q[:3]
    query, key, value = (torch.randn(50, 3) @ mix for _ in range(3))
    outward = torch.randn(16, 8)
    q, k, v = _resize(query, key, value, outward, 3)
    torch.testing.assert_close(q @ k.T / 3**0.5, query @ key.T / 8**0.5, atol=1e-2, rtol=1e-2)
    weight, bias = least_squares(v, value @ outward.T)
    torch.testing.assert_close((v.double() @ weight.T + bias).float(), value @ outward.T, atol=1e-2, rtol=1e-2)
    q, k, v = _resize(query, key, value, outward, 12)
    torch.testing.assert_close(q @ k.T / 12**0.5, query @ key.T / 8**0.5, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v[:, :8], value)


def test_the_same_seed_gives_the_same_student(body: torch.nn.Module, split: TokenizedSplit) -> None:
    one, two = (cut(body, split, 2, 24, 3, 48).student.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 24, 3, 48), "layers: 5 is out of range; this teacher allows 1 to 4"),
        ((2, 40, 4, 48), "width: 40 is out of range"),
        ((2, 24, 12, 48), "heads: 12 is out of range; this teacher allows 1 to 8"),  # two layers of four
        ((2, 24, 3, 129), "ffn: 129 is out of range; this teacher allows 1 to 128"),
    ],
)
def test_sizes_that_the_teacher_cannot_fill_are_refused(
    body: torch.nn.Module, split: TokenizedSplit, sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(HskdError, match=message):
        cut(body, split, *sizes)


OTHERS = [name for name in TINY if name != "bert"]


def tiny_body(model_type: str) -> PreTrainedModel:
    """A body of four layers and width 32 of another type, with norms and biases that are not the initial ones."""
    layers = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
    more = {"embedding_size": 32} if model_type == "electra" else {}
    return tiny(model_type, vocab_size=200, pad_token_id=0, **{layers: 4}, **more).base_model


@pytest.mark.parametrize("model_type", OTHERS)
def test_at_full_size_every_type_is_the_teacher(model_type: str, split: TokenizedSplit) -> None:
    body = tiny_body(model_type)
    start = cut(body, split, 4, 32, 4, 24)
    assert start.projection is None and type(start.student) is type(body)
    for own, other in zip(states(start.student, split, 4), states(body, split, 4), strict=True):
        torch.testing.assert_close(own, other, atol=1e-2, rtol=0)


@pytest.mark.parametrize("model_type", OTHERS)
def test_a_narrow_student_of_every_type_follows_the_teacher(model_type: str, split: TokenizedSplit) -> None:
    body = tiny_body(model_type)
    start = cut(body, split, 2, 24, 3, 20)
    assert type(start.student) is type(body) and start.student.config.hidden_size == 24
    missed = share_missed(start, body, split, [0, 2, 4])
    assert missed[0] < 0.4
    torch.manual_seed(0)
    drawn = type(start.student)(start.student.config).eval()
    every = states(body, split, 4)
    for layer, own, ours in zip((2, 4), states(drawn, split, 2)[1:], missed[1:], strict=True):
        weight, bias = least_squares(own, every[layer])
        best = (own.double() @ weight.T + bias - every[layer]).square().mean() / every[layer].var(0).mean()
        assert ours < best


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "modernbert"])
def test_a_pruned_body_is_cut_as_well(model_type: str, split: TokenizedSplit) -> None:
    importance = Importance(torch.rand(3, 4), torch.rand(3, 24))
    whole = tiny(model_type, vocab_size=200, pad_token_id=0)
    body = prune_rosita(whole, importance, layers=3, heads=3, ffn=20, rank=16).base_model
    start = cut(body, split, 3, 24, 3, 20)
    assert start.student.config.model_type == model_type and not hasattr(start.student.config, "embedding_rank")
    assert share_missed(start, body, split, [0, 1, 2, 3])[1] < 0.5


@pytest.mark.parametrize("width", [16, 24])
def test_embeddings_of_another_width_are_projected(width: int, split: TokenizedSplit) -> None:
    """ELECTRA's small model projects its embeddings; a student as wide as the embeddings needs no projection."""
    body = tiny("electra", vocab_size=200, pad_token_id=0, num_hidden_layers=4).base_model
    assert body.config.embedding_size == 16
    start = cut(body, split, 2, width, 2, 20)
    assert hasattr(start.student, "embeddings_project") == (width != 16)
    assert share_missed(start, body, split, [0, 2, 4])[0] < 0.6


@pytest.mark.parametrize("model_type", ["modernbert", "nomic_bert"])
def test_heads_that_are_turned_keep_their_size(model_type: str, split: TokenizedSplit) -> None:
    with pytest.raises(HskdError, match=r"heads: 2 of 12 each.* of size 8\. Give a width of 16"):
        cut(tiny_body(model_type), split, 2, 24, 2, 20)


def test_another_encoder_gives_its_word_embeddings(split: TokenizedSplit) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "roformer", vocab_size=200, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    other = AutoModel.from_config(config).eval()
    start = cut(other, split, 2, 24, 3, 48)
    table = other.get_input_embeddings().weight.detach().double()
    mine = start.student.embeddings.word_embeddings.weight.detach().double()
    assert mine.shape == (200, 24)
    # Angles between words are kept as far as 24 directions allow.
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    best = (u[:, :24] * s[:24]) @ vh[:24]
    torch.testing.assert_close(mine @ mine.T, best @ best.T, atol=1e-4, rtol=1e-3)
