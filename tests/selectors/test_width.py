"""Width: the kept neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskd.errors import HskdError
from hskd.selectors import WIDTH, LayerView, Tokens
from hskd.selectors.width import Magnitude, RandomNeurons, UniformNeurons

HUNDREDTHS = st.integers(1, 100)
WIDTHS = st.integers(1, 800)


@pytest.mark.parametrize(
    ("w", "width", "count"),
    [
        (0.29, 100, 29),  # 0.29 * 100 is 28.99... in floating point
        (0.57, 100, 57),
        (0.1, 768, 76),
        (0.999, 100, 99),
        (0.01, 32, 1),  # at least one neuron
        (1e-9, 768, 1),
        (1.0, 768, 768),
    ],
)
def test_count_is_exact(w: float, width: int, count: int) -> None:
    assert [WIDTH.parse({"selector": name, "w": w}).count(width) for name in WIDTH] == [count] * len(list(WIDTH))


@given(HUNDREDTHS, WIDTHS)
def test_count_in_whole_numbers(hundredths: int, width: int) -> None:
    assert Magnitude(w=hundredths / 100).count(width) == max(1, hundredths * width // 100)


@given(HUNDREDTHS, WIDTHS, st.integers(0, 2**32))
def test_fixed_masks(hundredths: int, width: int, seed: int) -> None:
    for selector in (RandomNeurons(w=hundredths / 100, seed=seed), UniformNeurons(w=hundredths / 100)):
        mask = selector.fixed(width)
        assert len(mask) == max(1, hundredths * width // 100)
        assert (np.diff(mask) > 0).all()  # ascending, without duplicates
        assert mask[0] >= 0 and mask[-1] < width


@given(HUNDREDTHS, WIDTHS)
def test_uniform_has_even_distances(hundredths: int, width: int) -> None:
    mask = UniformNeurons(w=hundredths / 100).fixed(width)
    gaps = np.diff([*mask, mask[0] + width])
    assert gaps.max() - gaps.min() <= 1


def test_random_mask_depends_on_its_seed_alone() -> None:
    masks = [RandomNeurons(w=0.1, seed=seed).fixed(768) for seed in (0, 0, 1)]
    assert (masks[0] == masks[1]).all()
    assert not (masks[0] == masks[2]).all()
    drawn = np.bincount(np.concatenate([RandomNeurons(w=0.25, seed=seed).fixed(20) for seed in range(2000)]))
    assert np.abs(drawn - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def view_of(hidden: torch.Tensor) -> LayerView:
    """Return a view of one example's tokens with these hidden states."""
    count = len(hidden)
    return LayerView(Tokens(np.array([0]), np.array([0, count]), np.arange(count), sep_id=-1), 1, hidden)


@given(
    st.integers(1, 12).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    ),
    HUNDREDTHS,
)
def test_magnitude_equals_a_plain_loop(rows: list[list[float]], hundredths: int) -> None:
    count = max(1, hundredths * len(rows[0]) // 100)
    expected = [sorted(sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[:count]) for row in rows]
    assert Magnitude(w=hundredths / 100).neurons(view_of(torch.tensor(rows))).tolist() == expected


def test_magnitude_ties_go_to_the_lower_index_in_a_wide_layer() -> None:
    # Wide enough for an unstable sort to change the order.
    values = torch.tensor([1.0, -1.0]).repeat(2, 400)
    values[1, 700] = 3.0
    picked = Magnitude(w=0.5).neurons(view_of(values))
    assert picked[0].tolist() == list(range(400))
    assert picked[1].tolist() == [*range(399), 700]


def test_magnitude_has_no_fixed_mask_unless_all_is_kept() -> None:
    assert Magnitude(w=0.5).fixed(10) is None
    everything = Magnitude(w=1.0).fixed(10)
    assert everything is not None and everything.tolist() == list(range(10))


@pytest.mark.parametrize("w", [0, 0.0, -0.1, 1.01, 2, float("nan"), "some"])
@pytest.mark.parametrize("name", sorted(WIDTH))
def test_share_out_of_range(name: str, w: object) -> None:
    with pytest.raises(HskdError, match=f"width={name}: field w"):
        WIDTH.parse({"selector": name, "w": w})


def test_all_is_a_share_of_one() -> None:
    assert WIDTH.parse({"selector": "magnitude", "w": "all"}) == Magnitude(w=1.0)
