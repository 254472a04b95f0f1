from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import style
from analysis.marginal_utility import draw, footnote, marginal_utility_figure, read_trials, summarise
from hskd.errors import HskdError

MEANS = [
    ("none", "", 0.0, 0.741),
    ("full", "", 1.0, 0.790),
    ("spec", "1l_all_all", 0.25, 0.777),
    ("spec", "1l_1t_0.1w", 0.001, 0.762),
    ("spec", "1l_3t_0.1w", 0.003, 0.771),
    ("spec", "2l_3t_0.1w", 0.006, 0.775),
    ("spec", "2l_8t_0.1w", 0.015, 0.786),
    ("spec", "4l_8t_0.05w", 0.015, 0.776),
    ("spec", "all_1t_all", 0.04, 0.774),
]


def table(seeds: int) -> pd.DataFrame:
    rows = [
        {
            "task": "mr",
            "student": "rosita3",
            "train_examples": 2000,
            "arm": arm,
            "spec": spec,
            "seed": seed,
            "fraction": fraction,
            "score": mean + 0.01 * (seed - (seeds - 1) / 2),
            "score_split": "test",
            "dev_score": mean,
            "teacher_score": 0.82,
        }
        for arm, spec, fraction, mean in MEANS
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    table(2).to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_trials(path), table(2), check_dtype=False)


def test_a_table_of_none_alone_still_has_text_labels(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    table(1).query("arm == 'none'").to_csv(path, index=False)
    assert read_trials(path)["spec"].tolist() == [""]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("score", math.nan, "column score is missing"),
        ("score", "failed", "column score is missing or not a number"),
        ("score", 79.0, "column score .79.0. is not a share"),
        ("teacher_score", math.inf, "column teacher_score"),
        ("task", None, "column task is missing"),
        ("fraction", 0.0, "column fraction .0.0. is not above 0"),
        ("spec", "", "column spec has no label"),
    ],
)
def test_a_bad_cell_is_refused_by_file_column_and_row(tmp_path: Path, column: str, value: Any, says: str) -> None:
    path = tmp_path / "trials.csv"
    trials = table(1).astype({column: object})
    trials.loc[2, column] = value
    trials.to_csv(path, index=False)
    with pytest.raises(HskdError, match=rf"trials\.csv: {says}.* 1 of 9 trials, first in data row 3"):
        read_trials(path)


def test_missing_file_columns_and_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    with pytest.raises(HskdError, match=r"trials\.csv: no such file"):
        read_trials(path)
    path.write_text("")
    with pytest.raises(HskdError, match=r"trials\.csv: the file is empty"):
        read_trials(path)
    path.write_text('a,b\n"1,2\n3,4,5,6\n')
    with pytest.raises(HskdError, match=r"trials\.csv: cannot be read"):
        read_trials(path)
    table(1).drop(columns=["score", "arm"]).to_csv(path, index=False)
    with pytest.raises(HskdError, match=r"trials\.csv: no column arm, score"):
        read_trials(path)
    table(1).head(0).to_csv(path, index=False)
    with pytest.raises(HskdError, match=r"trials\.csv: no trials"):
        read_trials(path)


def test_summary_equals_a_hand_computation() -> None:
    row = summarise(table(3)).set_index("spec").loc["1l_1t_0.1w"]
    # Scores 0.752, 0.762, 0.772: deviation 0.01; the 97.5 % quantile of t with 2 degrees of freedom is 4.302653.
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(0.762)
    assert row["low"] == pytest.approx(0.762 - half, abs=1e-8)
    assert row["high"] == pytest.approx(0.762 + half, abs=1e-8)


def test_summary_of_one_seed_has_no_interval_and_rises_in_fraction() -> None:
    summary = summarise(table(1))
    assert summary["low"].isna().all() and summary["high"].isna().all()
    assert summary["fraction"].is_monotonic_increasing
    assert summary["arm"].iloc[0] == "none" and summary["arm"].iloc[-1] == "full"


def test_two_trials_with_one_label_and_seed_are_not_averaged() -> None:
    with pytest.raises(HskdError, match=r"1l_1t_0.1w has two trials with seed 0"):
        summarise(pd.concat([table(1), table(1).query("spec == '1l_1t_0.1w'")]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_drawn_is_what_the_table_says(seeds: int) -> None:
    with style.figure() as (figure, axes):
        figure.subplots_adjust(right=0.8)
        draw(axes, table(seeds))
    lines = {line.get_label(): line for line in axes.get_lines()}
    expected = sorted((100 * fraction, 100 * mean) for arm, _, fraction, mean in MEANS if arm != "none")
    np.testing.assert_allclose(lines["mean per spec"].get_xydata(), expected)
    for name, level in (("teacher", 82.0), ("full", 79.0), ("none", 74.1)):
        np.testing.assert_allclose(lines[name].get_ydata(), level)

    bars = [container for container in axes.containers if container.has_yerr]
    assert len(bars) == (seeds > 1)
    if bars:
        segments = bars[0].lines[2][0].get_segments()
        summary = summarise(table(seeds)).query("arm != 'none'")
        np.testing.assert_allclose([s[:, 1] for s in segments], 100 * summary[["low", "high"]].to_numpy())


@pytest.mark.parametrize("seeds", [1, 3])
def test_labels_are_all_there_apart_and_inside(seeds: int) -> None:
    with style.figure() as (figure, axes):
        figure.subplots_adjust(left=0.105, right=0.805)
        draw(axes, table(seeds))
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == {spec for arm, spec, _, _ in MEANS if arm == "spec"} | {
        "teacher 82.0",
        "full 79.0",
        "none 74.1",
    }
    # An annotation's own extent includes its leader: ask for the text's.
    boxes = [Text.get_window_extent(text) for text in texts.values()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_png_is_written(tmp_path: Path, seeds: int) -> None:
    path = marginal_utility_figure(table(seeds), tmp_path / "new" / "figure.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 10_000
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_a_failed_write_leaves_the_old_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def disk_fills_up(_: Figure, target: Path, **__: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", disk_fills_up)
    with pytest.raises(HskdError, match="No space left"):
        marginal_utility_figure(table(1), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_of_several_things_or_of_no_spec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    for column, value in (("task", "cola"), ("student", "b"), ("score_split", "dev"), ("teacher_score", 0.5)):
        mixed = table(1)
        mixed.loc[0, column] = value
        with pytest.raises(HskdError, match=f"column {column}: 2 values"):
            marginal_utility_figure(mixed, path)
    with pytest.raises(HskdError, match="no trial of the arm spec"):
        marginal_utility_figure(table(1).query("arm != 'spec'"), path)
    with pytest.raises(HskdError, match=r"ends in \.png"):
        marginal_utility_figure(table(1), path.with_suffix(".pdf"))
    assert not list(tmp_path.iterdir())


def test_an_unfinished_grid_can_be_drawn(tmp_path: Path) -> None:
    one = table(2).query("spec == '1l_1t_0.1w'").head(1)
    assert marginal_utility_figure(one, tmp_path / "figure.png").is_file()


def test_the_footnote_follows_the_seeds() -> None:
    assert footnote(summarise(table(1))) == "1 seed: each point is a single trial and carries no interval."
    assert footnote(summarise(table(3))).endswith("95 % t-interval of the mean over seeds.")
    assert footnote(summarise(table(3).iloc[2:])).endswith("no interval where there is 1 seed.")


def test_spread_keeps_order_and_gap() -> None:
    assert style.spread([0.9, 0.1], 0.1, 0, 1) == [0.9, 0.1]
    moved = style.spread([0.5, 0.02, 0.52, 0.5, 0.0], 0.1, 0, 1)
    assert np.diff(sorted(moved)).min() == pytest.approx(0.1, abs=1e-6)
    assert moved[4] < moved[1] < moved[0] < moved[3] < moved[2]
