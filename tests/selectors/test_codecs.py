"""Width codecs, which keep codes in place of neurons, equal plain references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hskd.distill.losses import hsk_loss
from hskd.errors import HskdError
from hskd.knowledge import KeptHSK, TeacherStates, fit_codec, select_hsk
from hskd.selectors import Tokens
from hskd.selectors.basis import random_orthogonal
from hskd.spec import HSKSpec, Shape

SEP = 3


def shape(width: int) -> Shape:
    return Shape(student_layers=2, teacher_layers=2, teacher_width=width, vocab_size=10)


def make_states(lengths: list[int], width: int, seed: int = 0) -> TeacherStates:
    """Return correlated states around a mean, whose spread differs strongly between neurons."""
    generator = torch.Generator().manual_seed(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = int(offsets[-1])
    ids = np.full(count, 7)
    ids[offsets[1:] - 1] = SEP
    tokens = Tokens(np.arange(len(lengths)), offsets, ids, SEP)

    def hidden() -> torch.Tensor:
        spread = torch.logspace(0.5, -1.5, width)
        mixed = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        return torch.randn(count, width, generator=generator) * spread @ mixed + torch.randn(width, generator=generator)

    return TeacherStates(tokens, {1: hidden(), 2: hidden()}, {})


def kept_of(text: str, states: TeacherStates) -> KeptHSK:
    spec = HSKSpec.parse(text)
    width = states.hidden[2].shape[1]
    layers = spec.layers(shape(width))
    return select_hsk(spec, layers, states, fit_codec(spec, layers, width, [states]))


def student_states(states: TeacherStates, width: int, seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (len(states.tokens.lengths), int(states.tokens.lengths.max()), width)
    return [torch.randn(size, generator=generator) for _ in range(3)]


@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=25)
def test_a_random_basis_is_orthogonal_and_follows_from_its_seed(width: int, seed: int) -> None:
    basis = random_orthogonal(width, seed)
    torch.testing.assert_close(basis.T @ basis, torch.eye(width, dtype=torch.float64))
    random_orthogonal.cache_clear()
    assert torch.equal(random_orthogonal(width, seed), basis)
    assert width == 1 or not torch.equal(random_orthogonal(width, seed + 1), basis)


@given(
    width=st.integers(2, 12),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    codec=st.sampled_from(["projection", "pca", "pca,rotate=true"]),
    projected=st.booleans(),
)
@settings(max_examples=40)
def test_a_full_basis_gives_the_loss_of_full_hsk(width: int, lengths: list[int], codec: str, projected: bool) -> None:
    """This holds even with fewer tokens than the basis has directions."""
    states = make_states(lengths, width)
    hidden = student_states(states, 3 if projected else width)
    projection = nn.Linear(3, width) if projected else None
    full = hsk_loss(hidden, kept_of("2l_all_all,precision=fp32", states), projection)
    kept = kept_of(f"2l_all_all,width={codec},precision=fp32", states)
    assert kept.basis is not None and kept.neurons is None
    assert hsk_loss(hidden, kept, projection).item() == pytest.approx(full.item(), rel=1e-4)


@pytest.mark.parametrize("codec", ["projection", "projection,width.seed=3", "pca", "pca,rotate=true"])
@pytest.mark.parametrize("projected", [False, True])
def test_the_loss_equals_a_plain_one(codec: str, projected: bool) -> None:
    width, states = 12, make_states([5, 2, 9], 12)
    kept = kept_of(f"2l_4t_0.34w,length=left,width={codec}", states)
    hidden = student_states(states, 5 if projected else width)
    projection = nn.Linear(5, width) if projected else None
    total = 0.0
    for i, layer in enumerate(kept.layers):
        assert kept.basis is not None
        directions, origin = kept.basis.directions[i].double(), kept.basis.origin[i].double()
        assert directions.shape == (12, 4)
        row = 0
        for b, count in enumerate(kept.counts.tolist()):
            errors = []
            for place in range(count):  # the first tokens
                state = hidden[layer][b, place]
                state = (state if projection is None else projection(state)).double()
                errors.append((directions.T @ state - origin - kept.values[row, i]).square().mean())
                row += 1
            total += float(torch.stack(errors).mean().detach()) / len(kept.counts)
    assert hsk_loss(hidden, kept, projection).item() == pytest.approx(total, rel=1e-5)


def test_principal_components_are_those_of_the_kept_tokens() -> None:
    states = make_states([30, 5, 40], 16)
    kept = kept_of("2l_4t_0.25w,length=left,width=pca,precision=fp32", states)
    first = np.concatenate([np.arange(start, start + 4) for start in states.tokens.offsets[:-1]])
    for i, layer in enumerate((1, 2)):
        tokens = states.hidden[layer][first].double().numpy()
        _, _, components = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
        components = components[:4].T
        components *= np.sign(components[np.abs(components).argmax(0), range(4)])  # the largest element is positive
        expected = (tokens - tokens.mean(0)) @ components
        np.testing.assert_allclose(kept.values[:, i].numpy(), expected, atol=1e-5)


def test_components_do_not_depend_on_how_tokens_are_dealt_out() -> None:
    spec, states = HSKSpec.parse("2l_all_0.25w,width=pca,precision=fp32"), make_states([4] * 20, 16)
    layers = spec.layers(shape(16))
    whole = fit_codec(spec, layers, 16, [states])

    def example(i: int) -> TeacherStates:
        rows = slice(4 * i, 4 * i + 4)
        tokens = Tokens(np.array([i]), np.array([0, 4]), states.tokens.input_ids[rows], SEP)
        return TeacherStates(tokens, {layer: hidden[rows] for layer, hidden in states.hidden.items()}, {})

    parts = fit_codec(spec, layers, 16, (example(i) for i in range(20)))
    assert whole is not None and parts is not None
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])
    torch.set_num_threads(4)
    threaded = fit_codec(spec, layers, 16, [states])
    assert torch.get_num_threads() == 4
    assert threaded is not None and all(torch.equal(threaded[name], whole[name]) for name in whole)


def test_a_rotation_changes_nothing_but_what_rounding_does() -> None:
    states = make_states([40] * 10, 64)
    hidden = student_states(states, 64)
    for precision, gain in (("fp32", None), ("int4", 1.5), ("int2", 1.5)):
        errors = []
        for rotate in ("false", "true"):
            exact = kept_of(f"1l_all_0.5w,width=pca,rotate={rotate},precision=fp32", states)
            kept = kept_of(f"1l_all_0.5w,width=pca,rotate={rotate},precision={precision}", states)
            errors.append(float((kept.values - exact.values).square().mean()))
            if gain is None:
                errors[-1] = hsk_loss(hidden, kept).item()
        if gain is None:
            assert errors[1] == pytest.approx(errors[0], rel=1e-5)
        else:
            assert errors[1] * gain < errors[0]


def test_gradients_reach_the_projection_through_the_small_product() -> None:
    states = make_states([5, 2, 9], 12)
    kept = kept_of("1l_all_0.34w,width=pca,precision=fp32", states)
    assert kept.basis is not None
    gradients = []
    for fused in (True, False):
        torch.manual_seed(0)
        projection = nn.Linear(5, 12)
        hidden = student_states(states, 5)
        if fused:
            hsk_loss(hidden, kept, projection).backward()
        else:
            mapped = [projection(layer) @ kept.basis.directions[0] - kept.basis.origin[0] for layer in hidden]
            hsk_loss(mapped, replace(kept, basis=None)).backward()
        assert projection.weight.grad is not None and projection.bias.grad is not None
        gradients.append((projection.weight.grad, projection.bias.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_what_has_to_learn_is_refused_before_it_has() -> None:
    spec = HSKSpec.parse("1l_all_0.5w,width=pca")
    with pytest.raises(HskdError, match="width=pca: has to learn from the training examples"):
        select_hsk(spec, spec.layers(shape(12)), make_states([3], 12))


@given(
    width=st.integers(1, 10),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    codec=st.sampled_from(["pq", "rvq"]),
    w=st.sampled_from([0.01, 0.3, 0.5, 0.7, 1.0]),
)
@settings(max_examples=30)
def test_a_codebook_of_as_many_entries_as_vectors_is_exact(
    width: int, lengths: list[int], codec: str, w: float
) -> None:
    states = make_states(lengths, width)
    kept = kept_of(f"2l_all_{w}w,width={codec},width.entries=12,precision=fp32", states)
    full = kept_of("2l_all_all,precision=fp32", states)
    assert kept.neurons is None and kept.basis is None
    torch.testing.assert_close(kept.values, full.values, rtol=0, atol=1e-6)
    hidden = student_states(states, width)
    assert hsk_loss(hidden, kept).item() == pytest.approx(hsk_loss(hidden, full).item(), rel=1e-5)


@pytest.mark.parametrize("w", [0.125, 0.3, 1.0])  # 2 runs of 8; 5 runs of 4 and 3; each neuron alone
def test_product_codes_equal_a_plain_loop(w: float) -> None:
    width, states = 16, make_states([30, 40, 20], 16)
    spec = HSKSpec.parse(f"2l_all_{w}w,width=pq,width.entries=8,precision=fp32")
    layers = spec.layers(shape(width))
    codec = fit_codec(spec, layers, width, [states])
    assert codec is not None
    kept = select_hsk(spec, layers, states, codec)
    runs = np.array_split(np.arange(width), spec.width.count(width))  # the longer ones first
    for i, layer in enumerate((1, 2)):
        for row in (0, 17, 89):
            vector = states.hidden[layer][row].double().numpy()
            expected = []
            for run in runs:
                entries = codec["codebook"][i][:, run].double().numpy()
                expected += entries[((entries - vector[run]) ** 2).sum(1).argmin()].tolist()
            assert kept.values[row, i].tolist() == pytest.approx(expected, abs=1e-6)


def test_residual_codes_equal_a_plain_loop() -> None:
    width, states = 16, make_states([30, 40, 20], 16)
    spec = HSKSpec.parse("2l_all_0.2w,width=rvq,width.entries=8,precision=fp16")
    layers = spec.layers(shape(width))
    codec = fit_codec(spec, layers, width, [states])
    assert codec is not None and codec["codebook"].shape == (2, 3, 8, 16)
    kept = select_hsk(spec, layers, states, codec)
    for row in (0, 17, 89):
        left = states.hidden[2][row].half().double().numpy()
        decoded = np.zeros(width)
        for entries in codec["codebook"][1].double().numpy():
            chosen = entries[((entries - left) ** 2).sum(1).argmin()]
            left, decoded = left - chosen, decoded + chosen
        assert kept.values[row, 1].tolist() == pytest.approx(decoded.tolist(), abs=1e-5)


@pytest.mark.parametrize("codec", ["pq", "rvq"])
def test_more_codes_and_more_entries_are_nearer(codec: str) -> None:
    states = make_states([40] * 20, 16)
    full = kept_of("1l_all_all", states).values

    def error(w: float, entries: int) -> float:
        kept = kept_of(f"1l_all_{w}w,width={codec},width.entries={entries}", states)
        return float((kept.values - full).square().mean())

    assert error(0.0625, 16) > error(0.25, 16) > error(0.5, 16)
    assert error(0.125, 4) > error(0.125, 16) > error(0.125, 64)
    # One code is ordinary k-means, which is much better than the mean.
    assert error(0.0625, 16) < 0.8 * float((full - full.mean(0)).square().mean())


def test_codebooks_learn_from_a_sample_that_does_not_depend_on_the_order() -> None:
    spec, width = HSKSpec.parse("1l_all_0.25w,width=pq,width.entries=2"), 8  # a sample of 128 of 400 tokens
    states = make_states([4] * 100, width)
    layers = spec.layers(shape(width))

    def example(i: int) -> TeacherStates:
        rows = slice(4 * i, 4 * i + 4)
        tokens = Tokens(np.array([i]), np.array([0, 4]), states.tokens.input_ids[rows], SEP)
        return TeacherStates(tokens, {layer: hidden[rows] for layer, hidden in states.hidden.items()}, {})

    whole = fit_codec(spec, layers, width, [states])
    backwards = fit_codec(spec, layers, width, (example(i) for i in reversed(range(100))))
    assert whole is not None and backwards is not None
    assert torch.equal(whole["codebook"], backwards["codebook"])


def test_codes_have_no_precision_of_their_own() -> None:
    for precision in ("int8", "int4", "int2"):
        with pytest.raises(HskdError, match=rf"width=pq keeps codes of one byte, .*\(got {precision}\)"):
            HSKSpec.parse(f"1l_all_0.1w,width=pq,precision={precision}")
