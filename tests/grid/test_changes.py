"""Changes to a grid's file from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grid.conftest import Cli, Write
from support.grid_lab import OPTIONS

from hskd.errors import HskdError
from hskd.grid.changes import changed, differences, own_inputs, parse_changes
from hskd.grid.spec import GridSpec, load_grid

PRUNED: dict[str, Any] = {"layers": 2}
OLD: dict[str, Any] = {"kind": "tinybert", "checkpoint": "m"}
GENERAL: dict[str, Any] = {"kind": "tinybert", "general": {"layers": 2}}
WRITTEN: dict[str, Any] = {
    "name": "g",
    "task": {"name": "cola"},
    "students": [PRUNED, OLD, GENERAL],
    "sweeps": [{"k": [1, 3]}, {"n": [1], "w": [0.1]}],
}
GRID = GridSpec.model_validate(WRITTEN)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("task.data=somewhere", {"task": {"name": "cola", "data": "somewhere"}}),
        ("training.hsk_epochs=3", {"training": {"hsk_epochs": 3}}),
        ("teacher.settings.lr=3e-5", {"teacher": {"settings": {"lr": 3e-5}}}),
        ("seeds=[3, 5]", {"seeds": [3, 5]}),
        ("sweeps.0.k=[7]", {"sweeps": [{"k": [7]}, WRITTEN["sweeps"][1]]}),
        ("students.1.seed=4", {"students": [PRUNED, {**OLD, "seed": 4}, GENERAL]}),
        ("include=[1l_3t_0.1w]", {"include": ["1l_3t_0.1w"]}),
        ("sweeps=[]", {"sweeps": []}),
    ],
)  # fmt: skip
def test_a_change_is_as_if_the_file_said_so(text: str, change: dict[str, Any]) -> None:
    found = changed(GRID, parse_changes([text]))
    assert found == GridSpec.model_validate(WRITTEN | change)
    assert [spec.label for spec in found.specs()] == [
        spec.label for spec in GridSpec.model_validate(WRITTEN | change).specs()
    ]


def test_nothing_else_changes() -> None:
    assert changed(GRID, {}) is GRID
    assert changed(GRID, {"name": "g"}) == GRID
    assert [spec.label for spec in changed(GRID, {"seeds": 1}).specs()] == [spec.label for spec in GRID.specs()]


def test_students_that_python_made_stay_what_they_are() -> None:
    made = GridSpec(name="g", students=tuple(type(student)(**student.model_dump()) for student in GRID.students))
    assert changed(made, {"seeds": 2}).students == GRID.students


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task.data", ["--set task.data", "KEY=VALUE"]),
        ("=3", ["KEY=VALUE"]),
        ("training.hsk_epochs=[", ["--set training.hsk_epochs=[", "not valid YAML"]),
        ("training.epochs=3", ["--set training.epochs", "training.epochs"]),
        ("training.hsk_epochs=many", ["--set training.hsk_epochs", "integer", "'many'"]),
        ("students.3.seed=1", ["--set students.3.seed", "one of the 3 entries"]),
        ("students.x.seed=1", ["--set students.x.seed", "one of the 3 entries"]),
        ("name.first=h", ["--set name.first", "nothing below 'g'"]),
        ("training=", ["--set training", "dictionary"]),
        ("training.arm=gold", ["--set training.arm", "arms"]),
    ],
)
def test_a_mistake_is_answered(text: str, words: list[str]) -> None:
    with pytest.raises(HskdError) as raised:
        changed(GRID, parse_changes([text]))
    assert all(word in str(raised.value) for word in words), raised.value


def test_own_data_teacher_and_checkpoint_take_the_place_of_the_grids() -> None:
    assert own_inputs(GRID) == {}
    found = changed(GRID, own_inputs(GRID, data="folder", teacher="model"))
    assert (found.task.data, found.teacher.model) == ("folder", "model")
    assert found.students == GRID.students


def test_another_checkpoint_for_the_students_that_have_one() -> None:
    found = changed(GRID, own_inputs(GRID, checkpoint="mine"))
    assert [getattr(student, "checkpoint", None) for student in found.students] == [None, "mine", "mine"]
    with pytest.raises(HskdError, match="no student of kind tinybert"):
        own_inputs(load_grid("demo"), checkpoint="mine")


@pytest.mark.parametrize(
    "change", ["task.train_examples=5", "students.2.general.layers=3", "sweeps=[]", "seeds=[1, 2]"]
)
def test_differences_are_the_changes_that_make_them(change: str) -> None:
    other = changed(GRID, parse_changes([change]))
    found = differences(GRID.model_dump(mode="json"), other.model_dump(mode="json"))
    assert list(found) == [change.partition("=")[0]]
    assert changed(GRID, found).model_dump(mode="json") == other.model_dump(mode="json")


def test_the_command_line_plans_the_changed_grid(write: Write, data_folder: Path, body: Path, cli: Cli) -> None:
    file = write("task: {name: custom, data: nowhere, text_columns: [sentence], label_column: mood}")
    plan = ["plan", file, "--out", "out", "--work", "work", *OPTIONS]
    code, _, err = cli(*plan)
    assert code == 2
    assert "nowhere" in err
    code, out, err = cli(
        *plan, "--data", data_folder, "--teacher", body, "--set", "sweeps=[]", "--set", "training.hsk_epochs=1"
    )
    assert code == 0, err
    assert "tiny: 4 trials, 2 seeds" in out
    code, _, err = cli(*plan, "--checkpoint", body)
    assert code == 2
    assert "no student of kind tinybert" in err
