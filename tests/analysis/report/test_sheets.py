from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from support import simulated

from hskd.analysis.report import sheets
from hskd.analysis.stats import curves, joint, strategies
from hskd.analysis.stats.equal_bytes import equal_bytes
from hskd.analysis.stats.sufficiency import minimum_sufficient
from hskd.analysis.table import Study


def study(grid: str = "demo", seeds: int = 5) -> Study:
    return Study.of(simulated.simulate(grid, seeds=seeds))


def test_the_csv_holds_every_digit_and_the_page_rounds(tmp_path: Path) -> None:
    table = curves.points(study())
    sheet = sheets.points_sheet(table)
    path, _ = sheet.write(tmp_path)
    numbers = table.select_dtypes("number")
    pd.testing.assert_frame_equal(pd.read_csv(path)[numbers.columns], numbers, check_dtype=False, rtol=1e-9)
    row = table.set_index("name").loc["2l_8t_0.1w"]
    shown = sheet.text_table.set_index("point").loc["2l_8t_0.1w"]
    assert shown["score, %"] == f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    assert shown["bytes an example"] == "2,008"
    assert shown["share of full's values"] == "1.5 %"
    full_bytes = table.set_index("name").at["full", "bytes_per_example"]
    assert row["bytes_share"] == 2008 / full_bytes or row["bytes_share"] == row["bytes_per_example"] / full_bytes
    assert shown["share of full's bytes in fp16"] == f"{100 * row['bytes_share']:.2g} %"


def test_one_seed_has_means_without_intervals() -> None:
    shown = sheets.points_sheet(curves.points(study(seeds=1))).text_table
    assert not shown["score, %"].str.contains("to").any()


def test_no_share_of_a_gap_that_several_seeds_do_not_show() -> None:
    points = curves.points(study())
    hidden = (points["name"] == "2l_8t_0.1w") | (points["arm"] == "full")
    points.loc[hidden, ["relative_low", "relative_high"]] = math.nan
    shown = sheets.points_sheet(points).text_table.set_index("point")["gap closed, %"]
    assert shown["2l_8t_0.1w"] == shown["full"] == ""
    assert "to" in shown["1l_3t_0.1w"]
    alone = sheets.points_sheet(points.assign(n=1)).text_table.set_index("point")["gap closed, %"]
    assert alone["full"] == "100", "one seed has no intervals at all"


def test_a_column_that_says_nothing_is_left_out() -> None:
    assert "strategy" not in sheets.points_sheet(curves.points(study())).text_table
    assert "strategy" in sheets.points_sheet(curves.points(study("length"))).text_table


def test_latex_is_a_booktabs_table_with_escaped_text() -> None:
    sheet = sheets.points_sheet(curves.points(study("length")))
    text = sheet.latex()
    lines = text.splitlines()
    assert lines[0].startswith("% Scores.")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"all\_1t\_all,length=left" in text and r"score, \%" in text
    body = "\n".join(lines[1:]).replace(r"\_", "").replace(r"\%", "")
    assert "_" not in body and "%" not in body and "#" not in body
    columns = len(sheet.text_table.columns)
    assert len(lines[1].partition("{tabular}")[2].strip("{}")) == columns
    assert {line.count("&") for line in lines if line.endswith(r"\\")} == {columns - 1}
    assert lines[1].partition("{tabular}")[2] == "{ll" + "r" * (columns - 2) + "}"


def test_every_sheet_has_a_row_for_every_row_shown() -> None:
    trials, many = study("joint"), study("length")
    comparison = strategies.compare_strategies(many)
    made = [
        sheets.marginal_utility_sheet(curves.marginal_utility(trials)),
        sheets.minimum_sheet(minimum_sufficient(trials)),
        sheets.strategies_sheet(comparison),
        sheets.by_amount_sheet(strategies.by_amount(many)),
        sheets.surface_sheet(joint.surface(trials)),
        sheets.next_byte_sheet(joint.next_byte(trials)),
        sheets.equal_bytes_sheet(equal_bytes(trials)),
    ]
    assert len({sheet.name for sheet in made}) == len(made)
    for sheet in made:
        assert len(sheet.text_table) == len(sheet.data) > 0
        assert set(sheet.numeric) < set(sheet.text_table.columns)
        assert sheet.text_table.map(lambda cell: isinstance(cell, str) and "nan" not in cell).all(axis=None)
    front = sheets.pareto_sheet(joint.pareto(trials))
    assert len(front.text_table) == front.data["front"].sum() < len(front.data)


def test_tests_of_both_scopes_are_told_apart() -> None:
    answers = minimum_sufficient(study())
    data = sheets.minimum_sheet(answers).data
    assert set(data["scope"]) == {"these examples"}
    assert list(data["margin"].unique()) == [0.005]


@pytest.mark.parametrize(
    ("row", "digits", "text"),
    [
        ((0.756, 0.744, 0.7674), 1, "75.6 (74.4 to 76.7)"),
        ((0.756, math.nan, math.nan), 1, "75.6"),
        ((math.nan, math.nan, math.nan), 1, ""),
        ((-0.00001, -0.02, 0.02), 1, "0.0 (-2.0 to 2.0)"),
        ((0.0, 0.0, 0.0), 2, "0.00"),
    ],
)
def test_intervals_as_text(row: tuple[float, float, float], digits: int, text: str) -> None:
    assert sheets._interval(*row, digits) == text
