"""``hskd.results.explore``: what it says is what the report says, with and without widgets."""

from __future__ import annotations

import io
import re
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
DEMO, JOINT, DEPTH = (RESULTS / name for name in ("demo-3-seeds", "mr-joint", "mr-depth"))
SCORES = {"none": [0.74, 0.75, 0.74], "1l_8t_0.1w": [0.77, 0.79, 0.78], "full": [0.79, 0.80, 0.79]}


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return explore(DEMO)


@pytest.mark.parametrize(
    ("folder", "margin", "axis"), [(JOINT, 0.5, "bytes"), (DEMO, 0.25, "bytes"), (DEMO, 2, "values")]
)
def test_the_verdict_is_that_of_the_report(folder: Path, margin: float, axis: str, tmp_path: Path) -> None:
    answers = dict(_Maker(only_study(folder), tmp_path, "", margin / 100, 0.95, axis).answers)
    explorer = explore(folder, margin=margin, axis=axis)
    assert explorer.verdict.splitlines() == answers["On these very test examples"]
    explorer.choose(new_examples=True)
    assert explorer.verdict.splitlines() == answers["For new test examples like these"]


def test_the_margin_moves_the_verdict(explorer: Explorer) -> None:
    answers = {margin: explorer.choose(margin=margin).answers[0] for margin in (0, 0.25, 0.5, 2)}
    assert [one.verdict for one in answers.values()] == ["all", "undetermined", "sufficient", "sufficient"]
    assert (answers[0.5].name, answers[2].name) == ("2l_8t_0.5w", "2l_8t_0.1w")
    assert explore(JOINT, margin=1).answers[0].verdict == "undetermined"  # none itself may be enough


def test_table_and_text_have_a_row_for_each_point(explorer: Explorer) -> None:
    rows = explorer.choose(margin=0.5).table.set_index("name")
    assert len(rows) == len(explorer.study.points)
    assert rows.loc[["none", "2l_8t_0.5w", "full"], "verdict"].tolist() == ["insufficient", "sufficient", "full"]
    assert rows.at["2l_8t_0.5w", "loss_high"] < 0.005 and rows.at["full", "bytes_share"] == 1
    text = repr(explorer)
    assert "Enough: 2l_8t_0.5w" in text and "1l_1t_0.1w" in text and explorer.study.title in text
    assert max(map(len, text.splitlines())) <= 120


def test_strategies_share_the_test_of_none_if_they_share_full() -> None:
    length = explore(RESULTS / "mr-length")
    assert length.verdict.count("\n") == len(length.answers) - 1 > 0
    assert length.table.set_index("name").at["none", "verdict"] == "insufficient"
    assert explore(DEPTH).table.set_index("name").at["none", "verdict"] == ""  # a test for each of several fulls


def test_a_moved_minimum_gives_the_picture_that_is_drawn_anew(explorer: Explorer) -> None:
    assert explorer.choose(margin=0.25).picture
    enough = explorer.choose(margin=0.5).picture
    assert explorer.choose(margin=0.51).picture is enough  # the same verdict
    pictures = explorer.choose(margin=2).picture, explore(DEMO, margin=2).picture
    moved, anew = (np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures)
    assert (moved == anew).all()


def test_folders_and_students_are_choices(tmp_path: Path) -> None:
    every = explore(RESULTS)
    assert {"mr-joint", "mr-depth"} <= set(every.folders) and "rates" not in every.folders
    assert every.choose(results="mr-controls").verdict.startswith("No trial of the arm spec is done")
    studies = [table(SCORES, student=name, train_examples=n) for name, n in (("a", 900), ("b", 900), ("b", 1500))]
    pd.concat(studies).to_csv(tmp_path / "trials.csv", index=False)
    explorer = explore([tmp_path, str(DEMO)])
    assert explorer.students == [f"{name} training examples" for name in ("a · 900", "b · 900", "b · 1,500")]
    assert explorer.choose(student="b").study.train_examples == 900
    assert explorer.choose(student=explorer.students[2]).choose(margin=1).study.train_examples == 1500
    assert explorer.choose(results=DEMO.name).choice.student == "rosita-3l-2h-96ffn"
    with pytest.raises(HskdError, match="lacks predictions or labels"):
        explorer.choose(results=tmp_path.name, new_examples=True)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"student": "huge"}, "student: 'huge' is not in demo-3-seeds. Choose one of rosita-3l-2h-96ffn."),
        ({"margin": -0.1}, "margin: -0.1 is out of range. Expected points of score from 0 on, such as 0.5."),
        ({"margin": "0.5"}, "margin: '0.5' is out of range"),
        ({"axis": "layers"}, "axis: 'layers' is unknown. Choose one of bytes, values."),
        ({"figure": "pie"}, "figure: 'pie' is unknown. Choose one of curve, "),
    ],
)
def test_what_is_no_choice_is_refused_and_changes_nothing(
    explorer: Explorer, choice: dict[str, Any], says: str
) -> None:
    before = explorer.choice
    with pytest.raises(HskdError, match=re.escape(says)):
        explore(DEMO, **choice)
    with pytest.raises(HskdError, match=re.escape(says)):
        explorer.choose(**choice)
    assert explorer.choice == before


def test_a_folder_that_is_none_is_refused(tmp_path: Path, explorer: Explorer) -> None:
    for folder, says in ((tmp_path / "gone", "gone does not exist"), (tmp_path, "holds no results"), ([], "none is")):
        with pytest.raises(HskdError, match=f"folder: .*{says}"):
            explore(folder)
    with pytest.raises(HskdError, match="results: 'mr-joint' is no folder here"):
        explorer.choose(results="mr-joint")


def test_the_widgets_follow_the_choice_and_make_it(tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets", reason="needs hskd[notebook]")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trials.csv").touch()
    explorer = explore([DEMO, DEPTH, broken], margin=0.25)
    bundle = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} == set(bundle)
    controls: Any = explorer._controls
    inputs, first = controls.inputs, bytes(controls.picture.value)
    assert "Undetermined" in controls.verdict.value and "not resolved" in controls.table.value

    inputs["margin"].value = 0.5
    assert explorer.choice.margin == 0.5 and "Enough: 2l_8t_0.5w" in controls.verdict.value
    assert bytes(controls.picture.value) != first and "0.5 points" in controls.caption.value
    explorer.choose(margin=7)  # beyond the slider's end
    assert inputs["margin"].value == 7

    inputs["results"].value = "mr-depth"
    assert explorer.study.dimension == "depth" and controls.verdict.value.count("<p>") == 4
    inputs["figure"].value = "surface"
    assert "only depth varies" in controls.caption.value and controls.picture.layout.display == "none"
    inputs["results"].value = "broken"
    assert "the file is empty" in controls.message.value and inputs["results"].value == "mr-depth"
    inputs["axis"].value = "values"
    assert controls.message.value == "" and explorer.choice.axis == "values"


def test_without_ipywidgets_it_is_text_and_a_picture(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "hskd.analysis.widgets", raising=False)
    bundle = explorer.choose(margin=0.5)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and "data:image/png;base64," in bundle["text/html"]
    with pytest.raises(HskdError, match=r"widgets: ipywidgets is not installed.*hskd\[notebook\]"):
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
assert "figure: matplotlib is not installed" in explorer._repr_mimebundle_()["text/html"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Enough: 2l_8t_0.5w" in done.stdout, done.stderr
