from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support import simulated
from support.legible import require_apart, require_legible
from typer.testing import CliRunner

from hskd.analysis.figures.overview import Line, overview_figure
from hskd.analysis.table import Study
from hskd.cli.app import app
from hskd.errors import HskdError

JOINT = Study.of(simulated.simulate("joint"))
LENGTH = Study.of(simulated.simulate("length"))


def test_every_line_goes_from_its_least_amount_to_full() -> None:
    figure = overview_figure([Line(JOINT, ""), Line(LENGTH, "left"), Line(LENGTH, "random")])
    require_legible(figure)
    require_apart(figure)
    [axes] = figure.axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert {"joint", "length, left", "length, random", "full", "none", "teacher"} <= set(drawn)
    steps, full = JOINT.ladder("")
    heights = [100 * JOINT.scores[name].mean() for name in (*steps, full)]
    assert list(drawn["joint"].get_ydata()) == pytest.approx(heights)
    assert max(drawn["joint"].get_xdata()) == pytest.approx(JOINT.points.at[full, "bytes_per_example"], rel=0.1)


def test_a_line_is_named_by_the_dimension_that_varies_along_it() -> None:
    table = simulated.simulate("length")
    specs = table[table["arm"] == "spec"].drop_duplicates("seed")
    one = specs.assign(spec="1l_1t_all,length=cls", n="1", length="cls", k="1", trial="cls" + specs["trial"])
    made = Study.of(pd.concat([table, one], ignore_index=True))
    assert made.dimension == "joint"
    assert Line(made, "left").label == "length, left"


def test_against_values() -> None:
    assert "bytes" in overview_figure([Line(JOINT, "")]).axes[0].get_xlabel()
    figure = overview_figure([Line(JOINT, "")], "fraction")
    assert "values" in figure.axes[0].get_xlabel()
    assert max(figure.axes[0].get_lines()[0].get_xdata()) == pytest.approx(100, rel=0.1)


def test_what_has_no_place_in_one_picture_is_refused() -> None:
    other = Study.of(simulated.simulate("length", task="rte"))
    with pytest.raises(HskdError, match="task: mr and rte"):
        overview_figure([Line(JOINT, ""), Line(other, "left")])
    with pytest.raises(HskdError, match="both length, left"):
        overview_figure([Line(LENGTH, "left"), Line(LENGTH, "left")])
    with pytest.raises(HskdError, match="no results"):
        overview_figure([])


def test_the_command(tmp_path: Path) -> None:
    joint = simulated.write(tmp_path / "joint", simulated.simulate("joint"))
    length = simulated.write(tmp_path / "length", simulated.simulate("length"))
    out = tmp_path / "picture.svg"
    result = CliRunner().invoke(app, ["overview", str(joint), f"{length}:left", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 5000
    result = CliRunner().invoke(app, ["overview", str(joint), str(length)])
    assert isinstance(result.exception, HskdError)
    assert "say which strategy" in str(result.exception) and "attention_no_sep, left" in str(result.exception)
