"""Depth: the mapping of student layers to teacher layers, and the kept layers."""

from __future__ import annotations

import pytest

from hskd.errors import HskdError
from hskd.selectors import DEPTH
from hskd.selectors.depth import Reverse, Same, TopN

# By hand: round_half_even(l * L_top / L_S), so 2.5 -> 2 and 7.5 -> 8.
MAPPED = {
    (4, 8): [0, 2, 4, 6, 8],
    (4, 10): [0, 2, 5, 8, 10],
    (4, 12): [0, 3, 6, 9, 12],
    (6, 8): [0, 1, 3, 4, 5, 7, 8],
    (6, 10): [0, 2, 3, 5, 7, 8, 10],
    (6, 12): [0, 2, 4, 6, 8, 10, 12],
}


@pytest.mark.parametrize(("student_layers", "l_top"), MAPPED)
def test_mapping_by_number(student_layers: int, l_top: int) -> None:
    expected = tuple(enumerate(MAPPED[student_layers, l_top]))
    assert TopN(l_top=l_top).mapping(student_layers, 12) == expected
    assert TopN(l_top=l_top).kept(student_layers, 12) == expected


@pytest.mark.parametrize(
    ("share", "teacher_layers", "top"),
    [
        (1.0, 12, 12),
        (0.5, 12, 6),
        (0.375, 12, 4),  # 4.5
        (0.625, 12, 8),  # 7.5
        (0.575, 100, 58),  # exactly 57.5, and 57.49... in floating point
        (0.05, 12, 1),
    ],
)
def test_share_of_the_teacher(share: float, teacher_layers: int, top: int) -> None:
    assert TopN(l_top=share).mapping(1, teacher_layers) == ((0, 0), (1, top))


def test_one_is_a_layer_and_one_point_zero_is_everything() -> None:
    assert TopN(l_top=1).mapping(2, 12)[-1] == (2, 1)
    assert TopN(l_top=1.0).mapping(2, 12)[-1] == (2, 12)


def test_pairs_are_sorted_and_need_not_cover_every_layer() -> None:
    depth = DEPTH.parse({"selector": "top_n", "n": 2, "l_top": [[4, 3], [0, 12], [2, 7]]})
    assert depth.mapping(4, 12) == ((0, 12), (2, 7), (4, 3))
    assert depth.kept(4, 12) == ((2, 7), (4, 3))


@pytest.mark.parametrize("n", range(1, 6))
def test_the_top_n_are_kept(n: int) -> None:
    assert TopN(n=n, l_top=10).kept(4, 12) == tuple(enumerate([0, 2, 5, 8, 10]))[5 - n :]


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (TopN(n=6), "n = 6 is out of range: 5 student layers"),
        (TopN(n=2, l_top=((4, 12),)), "n = 2 is out of range: 1 student layers"),
        (TopN(l_top=13), r"l_top = 13 is out of range: the teacher has layers 1\.\.12"),
        (TopN(l_top=0.04), r"l_top = 0.04 is out of range"),
        (TopN(l_top=((5, 1),)), r"pair \(5, 1\) is out of range: student layers are 0\.\.4"),
        (TopN(l_top=((-1, 1),)), r"pair \(-1, 1\) is out of range"),
        (TopN(l_top=((1, 13),)), r"pair \(1, 13\) is out of range.*teacher layers 0\.\.12"),
        (TopN(l_top=((1, 2), (1, 3))), "each once"),
        (TopN(l_top=()), "one or more student layers"),
    ],
)
def test_layers_that_do_not_exist(depth: TopN, message: str) -> None:
    with pytest.raises(HskdError, match=message):
        depth.kept(4, 12)


@pytest.mark.parametrize("fields", [{"n": 0}, {"n": "some"}, {"l_top": 0}, {"l_top": 0.0}, {"l_top": 1.5}])
def test_amounts_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(HskdError, match=f"depth=top_n: field {next(iter(fields))}"):
        DEPTH.parse({"selector": "top_n", **fields})


def test_reverse_keeps_the_same_layers_the_other_way_round() -> None:
    whole = TopN(l_top=10).mapping(4, 12)
    for n in (1, 2, 3, 5):
        kept = Reverse(n=n, l_top=10).kept(4, 12)
        assert [student for student, _ in kept] == [student for student, _ in whole[-n:]]
        assert [teacher for _, teacher in kept] == [teacher for _, teacher in whole[-n:]][::-1]
    assert Reverse(l_top=10).mapping(4, 12) == Reverse(l_top=10).kept(4, 12)
    assert Reverse(n=2, l_top=((1, 3), (2, 7), (4, 9))).kept(4, 12) == ((2, 9), (4, 7))
    assert Reverse(n=2, l_top=5).all_layers() == Reverse(l_top=5)


def test_same_learns_from_one_layer() -> None:
    assert Same(n=2, l_top=10).kept(4, 12) == ((3, 10), (4, 10))
    assert Same(l_top=0.5).mapping(2, 12) == ((0, 6), (1, 6), (2, 6))
    assert Same(n=2, l_top=5).all_layers() == Same(l_top=5)
    with pytest.raises(HskdError, match=r"depth=same: field l_top: .*expected one teacher layer"):
        DEPTH.parse({"selector": "same", "l_top": [[1, 2]]})
    with pytest.raises(HskdError, match="n = 6 is out of range: 5 student layers"):
        Same(n=6).kept(4, 12)
