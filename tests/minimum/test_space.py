"""Spaces of specs: files, constraints, candidates and their axes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hskd.errors import HskdError
from hskd.minimum.space import Space, axes, candidates, default_space, load_space, paper_space, with_constraints
from hskd.spec import HSKSpec, Shape

SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=384, vocab_size=1000)


def _size(spec: HSKSpec) -> float:
    """Return a size that grows with everything that is kept."""
    layers = len(spec.layers(SHAPE))
    k = getattr(spec.length, "k", 1)
    return (
        layers * (30.0 if k == "all" else k) * spec.width.count(384) * (1 if spec.precision.selector == "int4" else 4)
    )


def _space(**fields: object) -> Space:
    return Space.model_validate({"sweeps": [{"n": [1, 2], "k": [1, 3, "all"], "w": [0.1, "all"]}], **fields})


def test_candidates_come_from_cheap_to_dear_each_once() -> None:
    chosen = candidates(_space(), SHAPE, _size)
    assert len({one.name for one in chosen}) == len(chosen) == 12
    sizes = [one.bytes_per_example for one in chosen]
    assert sizes == sorted(sizes)


def test_what_is_kept_whole_is_written_one_way() -> None:
    names = {one.name for one in candidates(_space(), SHAPE, _size)}
    assert "1l_all_all" in names and "1l_3t_all" in names


def test_full_hsk_itself_is_no_candidate_but_in_another_precision_it_is() -> None:
    space = Space.model_validate({"sweeps": [{"precision": ["fp16", "int4"]}]})
    assert [one.name for one in candidates(space, SHAPE, _size)] == ["all_all_all,precision=int4"]


def test_constraints() -> None:
    every = candidates(_space(), SHAPE, _size)
    cheap = candidates(_space(most_bytes=500), SHAPE, _size)
    assert 0 < len(cheap) < len(every)
    assert all(one.bytes_per_example <= 500 for one in cheap)
    assert {one.fields["depth.n"] for one in candidates(_space(most_layers=1), SHAPE, _size)} == {1}
    free = candidates(_space(attention=False), SHAPE, _size)
    assert {one.fields["length.selector"] for one in free} == {"left"}


def test_constraints_that_leave_nothing_are_refused() -> None:
    with pytest.raises(HskdError, match="no spec is left"):
        candidates(_space(most_bytes=1), SHAPE, _size)


def test_axes_are_the_fields_that_differ_and_do_not_follow_from_others() -> None:
    named = {axis.name: axis for axis in axes(candidates(_space(), SHAPE, _size))}
    assert named["length.k"].values == (1, 3, "all") and named["length.k"].ordered
    assert "length.selector" not in named, "it follows from the amount"
    assert set(named) == {"depth.n", "length.k", "width.w"}


def test_fields_that_only_some_selectors_have_are_axes_too() -> None:
    space = Space.model_validate(
        {"sweeps": [{"n": [1], "k": [1], "w": [0.1], "width": ["random", "uniform"], "width.seed": [0, 1, 2]}]}
    )
    named = {axis.name: axis for axis in axes(candidates(space, SHAPE, _size))}
    assert set(named["width.seed"].values) == {0, 1, 2, None}


def test_the_default_space_follows_the_sizes() -> None:
    small = default_space(Shape(1, 2, 32, 100), tokens=4)
    assert {one.fields["length.k"] for one in candidates(small, Shape(1, 2, 32, 100), lambda _: 1.0)} == {1, 2, "all"}
    large = candidates(default_space(SHAPE, tokens=27), SHAPE, _size)
    assert {one.family for one in large} == {"neurons", "pca"}
    assert {one.fields["precision.selector"] for one in large} == {"fp16", "int4"}


def test_the_papers_space_keeps_its_selectors() -> None:
    chosen = candidates(paper_space(SHAPE), SHAPE, _size)
    assert {one.fields["width.selector"] for one in chosen} == {"magnitude", "uniform"}
    assert "1l_10t_0.1w" in {one.name for one in chosen}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweeps: [", "not valid YAML"),
        ("- 1", "expected keys"),
        ("swps: []", "unknown key"),
        ("sweeps: [{n: [0]}]", "sweeps.0"),
        ("sweeps: [{n: [1]}]\nmost_bytes: -1", "most_bytes"),
        ("sweeps: [{n: [1]}]\nmost_bytes: .inf", "most_bytes"),
        ("sweeps: []", "sweeps"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(HskdError, match=message) as error:
        load_space(str(file))
    assert str(file) in str(error.value)


def test_a_constraint_of_the_command_line_replaces_that_of_the_file() -> None:
    space = with_constraints(_space(most_bytes=10), {"most_bytes": 600.0, "most_layers": None, "attention": None})
    assert space.most_bytes == 600 and space.most_layers is None
    with pytest.raises(HskdError, match="most_layers"):
        with_constraints(space, {"most_layers": 0})
