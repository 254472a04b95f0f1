"""Selection equals a plain loop over examples, layers, tokens and neurons, for every selector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hskd.errors import HskdError
from hskd.knowledge import TeacherStates, select_hsk
from hskd.selectors import LENGTH, PRECISION, LayerView, Tokens
from hskd.spec import HSKSpec, Shape

SHAPE = Shape(student_layers=3, teacher_layers=5, teacher_width=16, vocab_size=10)
CLS_ID, SEP_ID = 2, 3
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STEPS = {"int8": 127, "int4": 7}
TOKENS = tuple(name for name in LENGTH if name != "pool")
"""The selectors that keep tokens unchanged; tests/selectors/test_pool.py covers means."""
NEURONS = ("magnitude", "random", "uniform")
"""The selectors that keep neurons; tests/selectors/test_codecs.py covers those that keep other numbers."""
EXAMPLES = ((40, 6), (7, 2), (1_000_003, 11), (8, 3))
"""Id and length of each example."""

# round_half_even(l * L_top / 3), by hand, for L_top 5 and 4.
MAPPED = {"1.0": [0, 2, 3, 5], "4": [0, 1, 3, 4]}


def make_states() -> TeacherStates:
    generator = torch.Generator().manual_seed(0)
    ids, lengths = zip(*EXAMPLES, strict=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = int(offsets[-1])
    input_ids = torch.randint(SEP_ID, 6, (count,), generator=generator).numpy()  # [SEP] may also be inside
    input_ids[offsets[:-1]], input_ids[offsets[1:] - 1] = CLS_ID, SEP_ID

    def hidden() -> torch.Tensor:
        # Many ties in |h| after rounding, none before.
        coarse = (torch.randn(count, 16, generator=generator) * 4).round() / 4
        return coarse + 1e-6 * torch.randn(count, 16, generator=generator)

    word_starts = (torch.rand(count, generator=generator) < 0.7).numpy() & (input_ids != SEP_ID)
    word_starts[offsets[:-1]] = False
    return TeacherStates(
        tokens=Tokens(np.array(ids), offsets, input_ids, SEP_ID, word_starts=word_starts),
        hidden={layer: hidden() for layer in range(6)},
        attention={layer: (torch.randint(0, 5, (count,), generator=generator) / 8).numpy() for layer in range(1, 6)},
        gradient={layer: (torch.randint(0, 5, (count,), generator=generator) / 8).numpy() for layer in range(6)},
        received={layer: (torch.randint(0, 5, (count,), generator=generator) / 8).numpy() for layer in range(1, 6)},
        entropy=(torch.randint(0, 5, (count,), generator=generator) / 8).numpy(),
    )


def plain_positions(spec: HSKSpec, states: TeacherStates, b: int, layer: int, teacher: int) -> list[int]:
    """Return the kept positions of example ``b`` in student layer ``layer``, which learns from ``teacher``."""
    tokens, name = states.tokens, spec.length.selector
    start, stop = tokens.offsets[b : b + 2].tolist()
    places = list(range(stop - start))
    if name in ("attention_no_sep", "received"):
        places = [place for place in places if tokens.input_ids[start + place] != SEP_ID]
    if name == "cls":
        return [0]
    if name == "entropy":
        assert tokens.word_starts is not None and states.entropy is not None
        certain = (-states.entropy[start:stop]).tolist()
        places = [place for place in places if tokens.word_starts[start + place]]
        places.sort(key=lambda place: (certain[place], place))
        return sorted(places if spec.length.k == "all" else places[: spec.length.k])
    if name in ("norm", "gradient"):
        places = [place for place in places if tokens.input_ids[start + place] != SEP_ID]
        rounded = spec.precision.ranked(states.hidden[teacher][start:stop]).double().norm(dim=1).tolist()
        score = states.gradient[teacher][start:stop].tolist() if name == "gradient" else rounded
        places.sort(key=lambda place: (-score[place], place))
    if spec.length.k == "all":
        return places
    if name == "random":  # tests/selectors/test_length.py compares the draw with plain integers
        alone = Tokens(tokens.example_ids[[b]], np.array([0, stop - start]), tokens.input_ids[start:stop], SEP_ID)
        return spec.length.select(LayerView(alone, layer, torch.empty(stop - start, 0))).tolist()  # type: ignore[no-any-return]
    if name == "received":
        paid = states.received[max(teacher, 1)]
        places.sort(key=lambda place: (-paid[start + place], place))
    if name.startswith("attention"):
        ranking = teacher if spec.length.att_map == "same" else MAPPED["1.0"][layer]  # type: ignore[attr-defined]
        paid = states.attention[max(ranking, 1)]
        places.sort(key=lambda place: (-paid[start + place], place))
    return sorted(places[: spec.length.k])


def plain_neurons(spec: HSKSpec, values: list[float]) -> list[int]:
    count = max(1, int(round(spec.width.w * 100) * len(values) // 100))
    if spec.width.selector == "magnitude":
        return sorted(sorted(range(len(values)), key=lambda j: (-abs(values[j]), j))[:count])
    if spec.width.selector == "uniform":
        return [i * len(values) // count for i in range(count)]
    return sorted(np.random.default_rng(spec.width.seed).choice(16, count, replace=False).tolist())  # type: ignore[attr-defined]


def plain_two_bits(values: torch.Tensor) -> torch.Tensor:
    """Encode in two bits: evenly spaced levels by the root mean square, then the scale of least squared error."""
    step = 0.9957 * values.square().mean().sqrt()
    sizes = torch.where(values.abs() < step, 0.5, 1.5)
    levels = torch.where(values < 0, -sizes, sizes)
    return levels * ((values * levels).sum() / levels.square().sum()).half().float()


def check(spec: HSKSpec) -> None:
    states, teachers = make_states(), MAPPED[str(spec.depth.l_top)]  # type: ignore[attr-defined]
    n = 4 if spec.depth.n == "all" else spec.depth.n  # type: ignore[attr-defined]
    students = list(range(4))[-n:]
    kept = select_hsk(spec, spec.layers(SHAPE), states)

    assert kept.layers == tuple(students)
    assert kept.values.dtype == torch.float32
    assert kept.positions.dtype == kept.counts.dtype == torch.int64
    row = 0
    for b in range(len(EXAMPLES)):
        of_layer = [plain_positions(spec, states, b, layer, teachers[layer]) for layer in students]
        assert kept.counts[b] == len(of_layer[0])
        for t in range(len(of_layer[0])):
            for i, layer in enumerate(students):
                place = of_layer[i][t]
                assert kept.positions[row, i] == place
                hidden = states.hidden[teachers[layer]][states.tokens.offsets[b] + place]
                rounded = hidden.to(DTYPES.get(spec.precision.selector, torch.float32)).tolist()
                neurons = plain_neurons(spec, rounded)
                values = torch.tensor([rounded[j] for j in neurons])
                if spec.precision.selector in STEPS:
                    scale = (values.abs().max() / STEPS[spec.precision.selector]).half().float()
                    values = (values / scale).round() * scale
                if spec.precision.selector == "int2":
                    values = plain_two_bits(values)
                assert kept.values[row, i].tolist() == values.tolist()
                if kept.neurons is None:
                    assert neurons == list(range(16))
                else:
                    assert (kept.neurons if kept.neurons.dim() == 1 else kept.neurons[row, i]).tolist() == neurons
            row += 1
    assert len(kept.values) == len(kept.positions) == row


@pytest.mark.parametrize(("length", "width", "precision"), list(itertools.product(TOKENS, NEURONS, PRECISION)))
def test_every_selector_equals_a_plain_loop(length: str, width: str, precision: str) -> None:
    k = 1 if length == "cls" else 4
    check(HSKSpec.parse(f"2l_{k}t_0.3w,length={length},width={width},precision={precision}"))


@pytest.mark.parametrize(
    "text",
    [
        "all_all_all",
        "all_all_all,precision=fp32",
        "all_all_all,width=magnitude",
        "all_all_0.3w",
        "all_4t_all",
        "all_20t_0.01w",
        "all_all_0.5w,length=attention_no_sep",
        "all_4t_0.3w,l_top=4",
        "all_4t_0.3w,l_top=4,att_map=top",
        "3l_2t_0.9w,l_top=4,length=attention,att_map=top",
        "3l_2t_0.5w,length=random,width=random,length.seed=5,width.seed=6",
        "1l_1t_0.01w",
    ],
)
def test_amounts_and_mappings_equal_a_plain_loop(text: str) -> None:
    check(HSKSpec.parse(text))


def test_all_neurons_are_not_listed_and_fixed_ones_only_once() -> None:
    states = make_states()
    dims = []
    for text in ("2l_all_all", "2l_all_0.3w,width=uniform", "2l_all_0.3w"):
        spec = HSKSpec.parse(text)
        neurons = select_hsk(spec, spec.layers(SHAPE), states).neurons
        dims.append(None if neurons is None else tuple(neurons.shape))
    assert dims == [None, (4,), (22, 2, 4)]


def test_what_the_states_lack() -> None:
    states, spec = make_states(), HSKSpec.parse("1l_2t_all")
    unranked = [layer._replace(attention=None) for layer in spec.layers(SHAPE)]
    with pytest.raises(HskdError, match="length=attention_no_sep ranks tokens by attention"):
        select_hsk(spec, unranked, states)
    with pytest.raises(KeyError):
        select_hsk(spec, [layer._replace(teacher=6) for layer in spec.layers(SHAPE)], states)


def test_to_moves_every_tensor() -> None:
    for text in ("2l_2t_0.3w", "2l_2t_all", "2l_2t_0.3w,width=projection"):
        spec = HSKSpec.parse(text)
        kept = select_hsk(spec, spec.layers(SHAPE), make_states())
        moved = kept.to(torch.device("meta"))
        tensors = [moved.counts, moved.positions, moved.values]
        if kept.neurons is not None:
            assert moved.neurons is not None
            tensors.append(moved.neurons)
        if kept.basis is not None:
            assert moved.basis is not None
            tensors += [moved.basis.directions, moved.basis.origin]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert (moved.layers, moved.values.shape) == (kept.layers, kept.values.shape)
