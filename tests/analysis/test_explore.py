"""``hskd.results.explore``: what it says is what the report says, with and without widgets."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.trial_tables import table

from hskd.analysis.explore import Explorer
from hskd.analysis.report.page import _Maker
from hskd.analysis.table import only_study
from hskd.errors import HskdError
from hskd.results import explore

RESULTS = Path(__file__).resolve().parents[2] / "results"
DEMO = RESULTS / "demo-3-seeds"
JOINT = RESULTS / "mr-joint"
SCORES = {"none": [0.74, 0.75, 0.74], "1l_8t_0.1w": [0.77, 0.79, 0.78], "full": [0.79, 0.80, 0.79]}


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return explore(DEMO)


@pytest.fixture
def two_students(tmp_path: Path) -> Path:
    """A folder with the table of two students, one of them with two training sets."""
    changes: list[dict[str, Any]] = [{"student": "small"}, {"student": "large"}]
    changes.append({"student": "large", "train_examples": 500})
    pd.concat([table(SCORES, **one) for one in changes]).to_csv(tmp_path / "trials.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "margin", "axis"), [(JOINT, 0.5, "bytes"), (DEMO, 0.25, "bytes"), (DEMO, 2, "values")]
)
def test_the_verdict_is_that_of_the_report(folder: Path, margin: float, axis: str, tmp_path: Path) -> None:
    answers = dict(_Maker(only_study(folder), tmp_path, margin / 100, 0.95, axis).answers)
    explorer = explore(folder, margin=margin, axis=axis)
    assert explorer.verdict.splitlines() == answers["On these very test examples"]
    explorer.choose(new_examples=True)
    assert explorer.verdict.splitlines() == answers["For new test examples like these"]


def test_the_margin_moves_the_verdict() -> None:
    explorer = explore(DEMO)
    answers = {margin: explorer.choose(margin=margin).answers[0] for margin in (0, 0.25, 0.5, 2)}
    assert [one.verdict for one in answers.values()] == ["all", "undetermined", "sufficient", "sufficient"]
    assert (answers[0.5].name, answers[2].name) == ("2l_8t_0.5w", "2l_8t_0.1w")
    assert "undetermined" in explore(JOINT, margin=1).answers[0].verdict  # none itself may be enough


def test_the_table_has_a_row_for_each_point(explorer: Explorer) -> None:
    explorer.choose(margin=0.5)
    rows = explorer.table.set_index("name")
    assert len(rows) == len(explorer.study.points)
    assert rows.at["full", "verdict"] == "full" and np.isnan(rows.at["full", "loss"])
    assert rows.at["none", "verdict"] == "insufficient" and rows.at["2l_8t_0.5w", "verdict"] == "sufficient"
    assert (rows.at["2l_8t_0.5w", "loss_high"] < 0.005) and rows.at["full", "bytes_share"] == 1


def test_strategies_share_the_test_of_none_if_they_share_full() -> None:
    length = explore(RESULTS / "mr-length")
    assert len(length.answers) > 1 and length.verdict.count("\n") == len(length.answers) - 1
    assert length.table["name"].is_unique
    assert length.table.set_index("name").at["none", "verdict"] == "insufficient"
    several_fulls = explore(RESULTS / "mr-depth").table.set_index("name")
    assert several_fulls.at["none", "verdict"] == ""  # there is a test of it for each full


def test_a_terminal_gets_verdict_and_table(explorer: Explorer) -> None:
    text = repr(explorer.choose(margin=0.5))
    assert "Enough: 2l_8t_0.5w" in text and "1l_1t_0.1w" in text and explorer.study.title in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_moved_minimum_gives_the_picture_that_is_drawn_anew(explorer: Explorer) -> None:
    explorer.choose(margin=0.25, figure="curve")
    assert pixels(explorer.picture).size  # of another verdict, and moved from here on
    enough = explorer.choose(margin=0.5).picture
    assert explorer.choose(margin=0.51).picture is enough  # the same verdict
    moved = explorer.choose(margin=2).picture
    assert (pixels(moved) == pixels(explore(DEMO, margin=2).picture)).all()


def test_results_without_specs_say_so() -> None:
    assert explore(RESULTS / "mr-controls").verdict.startswith("No trial of the arm spec is done")
    with pytest.raises(HskdError, match="no trial of the arm spec"):
        explore(RESULTS / "mr-controls").figure  # noqa: B018


def test_a_folder_of_folders_and_several_folders_are_choices() -> None:
    explorer = explore(RESULTS)
    assert {"mr-joint", "mr-depth"} <= set(explorer.folders) and "rates" not in explorer.folders
    assert explorer.choose(results="mr-depth").study.dimension == "depth"
    assert list(explore([JOINT, str(DEMO)]).folders) == ["mr-joint", "demo-3-seeds"]


def test_a_student_is_chosen_by_its_name_or_with_what_else_differs(two_students: Path) -> None:
    explorer = explore(two_students)
    small, large, fewer = explorer.students
    assert (small, fewer) == ("small · 2,000 training examples", "large · 500 training examples")
    assert explorer.choice.student == small
    assert explorer.choose(student="large").choice.student == large
    assert explorer.choose(student=fewer).study.train_examples == 500
    assert explorer.choose(margin=1).choice.student == fewer


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"student": "huge"}, "student: 'huge' is not in demo-3-seeds; choose rosita-3l-2h-96ffn."),
        ({"margin": -0.1}, "margin: -0.1 is out of range; expected points of score from 0 on, such as 0.5."),
        ({"margin": float("nan")}, "margin: nan is out of range"),
        ({"margin": "0.5"}, "margin: '0.5' is out of range"),
        ({"axis": "layers"}, "axis: 'layers' is unknown; choose bytes or values."),
        ({"figure": "pie"}, "figure: 'pie' is unknown; choose curve, curve_relative, sufficiency or surface."),
    ],
)
def test_a_choice_that_is_none_is_refused_and_changes_nothing(
    explorer: Explorer, choice: dict[str, Any], says: str
) -> None:
    before = explorer.choice
    for attempt in (lambda: explore(DEMO, **choice), lambda: explorer.choose(**choice)):
        with pytest.raises(HskdError) as error:
            attempt()
        assert says in str(error.value) and "\n" not in str(error.value)
    assert explorer.choice == before


def test_a_folder_that_is_none_is_refused(tmp_path: Path, explorer: Explorer) -> None:
    with pytest.raises(HskdError, match=r"folder: .*no-such does not exist"):
        explore(tmp_path / "no-such")
    with pytest.raises(HskdError, match=r"folder: .* holds no results"):
        explore(tmp_path)
    with pytest.raises(HskdError, match="folder: none is given"):
        explore([])
    with pytest.raises(HskdError, match="results: 'mr-joint' is not among the folders; choose demo-3-seeds"):
        explorer.choose(results="mr-joint")


def test_answers_that_are_not_kept_cannot_speak_of_new_examples(two_students: Path) -> None:
    with pytest.raises(HskdError, match="new_examples: the predictions or labels"):
        explore(two_students, new_examples=True)


def test_the_widgets_follow_the_choice_and_make_it(tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets", reason="needs hskd[notebook]")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trials.csv").touch()
    explorer = explore([DEMO, RESULTS / "mr-depth", broken], margin=0.25)
    bundle = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} == set(bundle)
    controls: Any = explorer._controls
    inputs, first = controls.inputs, bytes(controls.picture.value)
    assert "Undetermined" in controls.verdict.value and "not resolved" in controls.table.value
    assert first.startswith(b"\x89PNG")

    inputs["margin"].value = 0.5
    assert explorer.choice.margin == 0.5 and "Enough: 2l_8t_0.5w" in controls.verdict.value
    assert bytes(controls.picture.value) != first and "0.5 points" in controls.caption.value
    explorer.choose(margin=7)  # beyond the slider's end
    assert inputs["margin"].value == 7

    inputs["results"].value = "mr-depth"
    assert explorer.study.dimension == "depth" and controls.verdict.value.count("<p>") == 4
    inputs["figure"].value = "surface"
    assert "only depth varies" in controls.caption.value and controls.picture.layout.display == "none"
    inputs["figure"].value = "sufficiency"
    assert controls.picture.layout.display is None

    inputs["results"].value = "broken"
    assert "the file is empty" in controls.message.value and inputs["results"].value == "mr-depth"
    inputs["axis"].value = "values"
    assert controls.message.value == "" and explorer.choice.axis == "values"


def test_without_ipywidgets_it_is_text_and_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "hskd.analysis.widgets", raising=False)
    explorer = explore(DEMO)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "Enough: 2l_8t_0.5w" in bundle["text/html"] and "data:image/png;base64," in bundle["text/html"]
    with pytest.raises(HskdError, match=r"widgets: need ipywidgets.*hskd\[notebook\]"):
        explorer.widgets  # noqa: B018


def test_importing_results_imports_none_of_it_and_text_needs_no_matplotlib() -> None:
    code = f"""
import sys
import hskd.results
assert not {{"hskd.analysis", "ipywidgets", "matplotlib"}} & set(sys.modules)
assert "explore" in dir(hskd.results)
sys.modules |= dict.fromkeys(["ipywidgets", "matplotlib", "seaborn", "jinja2"])
explorer = hskd.results.explore({str(DEMO)!r})
print(explorer)
assert "figure: needs matplotlib" in explorer._repr_mimebundle_()["text/html"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Enough: 2l_8t_0.5w" in done.stdout, done.stderr
