from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.trial_tables import study, table

from hskd.analysis.stats.strategies import compare_strategies
from hskd.analysis.table import Study, read_trials, studies
from hskd.errors import HskdError
from hskd.results import load, unpack
from hskd.spec import HSKSpec

DEMO = Path(__file__).resolve().parents[2] / "results" / "demo-3-seeds"
SCORES = {"none": [0.74, 0.75], "1l_1t_0.1w": [0.76, 0.77], "full": [0.79, 0.80]}


def written(folder: Path, trials: pd.DataFrame) -> Path:
    path = folder / "trials.csv"
    trials.to_csv(path, index=False)
    return path


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    path = written(tmp_path, table(SCORES))
    pd.testing.assert_frame_equal(read_trials(path), table(SCORES), check_dtype=False)
    pd.testing.assert_frame_equal(read_trials(tmp_path), read_trials(path))


def test_a_folder_is_read_from_its_results_whether_packed_or_not(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "results")
    pd.testing.assert_frame_equal(read_trials(folder), load(DEMO), check_dtype=False)
    unpack(folder)
    written(folder, table(SCORES))  # an old table is ignored where there are results
    pd.testing.assert_frame_equal(read_trials(folder), read_trials(DEMO))


def test_a_table_of_none_alone_still_has_text_labels(tmp_path: Path) -> None:
    path = written(tmp_path, table({"none": [0.7]}))
    assert read_trials(path)["spec"].tolist() == [""]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("score", math.nan, "column score is missing"),
        ("score", "failed", "column score .failed. is missing or not a number"),
        ("score", 79.0, "column score .79.0. is not a share"),
        ("teacher_score", math.inf, "column teacher_score"),
        ("task", None, "column task is missing"),
        ("fraction", 0.0, "column fraction .0.0. is not above 0"),
        ("bytes_per_example", 0.0, "column bytes_per_example .0.0. is not above 0"),
        ("spec", "", "column spec has no label"),
    ],
)
def test_a_bad_cell_is_refused_by_file_column_and_row(tmp_path: Path, column: str, value: Any, says: str) -> None:
    trials = table(SCORES).astype({column: object})
    trials.loc[2, column] = value
    path = written(tmp_path, trials)
    with pytest.raises(HskdError, match=rf"trials\.csv: {says}.* 1 of 6 trials, first in data row 3"):
        read_trials(path)
    with pytest.raises(HskdError, match=rf"the table: {says}"):
        Study.of(trials)


def test_missing_file_columns_and_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    with pytest.raises(HskdError, match=r"trials\.csv: no such file"):
        read_trials(path)
    with pytest.raises(HskdError, match=r"no results there"):
        read_trials(tmp_path)
    path.write_text("")
    with pytest.raises(HskdError, match=r"trials\.csv: the file is empty"):
        read_trials(path)
    path.write_text('a,b\n"1,2\n3,4,5,6\n')
    with pytest.raises(HskdError, match=r"trials\.csv: cannot be read"):
        read_trials(path)
    written(tmp_path, table(SCORES).drop(columns=["score", "arm"]))
    with pytest.raises(HskdError, match=r"trials\.csv: no column arm, score"):
        read_trials(path)
    written(tmp_path, table(SCORES).head(0))
    with pytest.raises(HskdError, match=r"trials\.csv: no trials"):
        read_trials(path)
    with pytest.raises(HskdError, match=r"the table: no trials"):
        Study.of(table(SCORES).head(0))


def test_a_mixed_table_is_cut_into_studies(tmp_path: Path) -> None:
    tables = [table(SCORES), table(SCORES, task="cola"), table(SCORES, train_examples=500), table(SCORES, teacher="b")]
    path = written(tmp_path, pd.concat(tables).sample(frac=1, random_state=0))
    found = studies(path)
    assert {(one.task, one.train_examples, one.teacher) for one in found} == {
        ("mr", 2000, "offline:minilm"),
        ("cola", 2000, "offline:minilm"),
        ("mr", 500, "offline:minilm"),
        ("mr", 2000, "b"),
    }
    assert all(len(one.trials) == 6 and one.folder is None for one in found)
    assert len({one.slug for one in found}) == len(found)
    with pytest.raises(HskdError, match=r"column task has 2 values .* cannot be compared"):
        Study.of(pd.concat(tables[:2]))


def test_teachers_of_different_scores_are_not_one_study() -> None:
    trials = table(SCORES)
    trials.loc[0, "teacher_score"] = 0.7
    with pytest.raises(HskdError, match="column teacher_score has 2 values"):
        Study.of(trials)


@pytest.mark.parametrize("name", ["none", "full", "1l_1t_0.1w"])
def test_two_trials_of_one_point_and_seed_are_refused(tmp_path: Path, name: str) -> None:
    trials = pd.concat([table(SCORES), table({name: [0.5]})])
    with pytest.raises(HskdError, match=rf"{name} has two trials with seed 0"):
        Study.of(trials)
    with pytest.raises(HskdError, match=rf"trials\.csv: column seed: {name} has two trials with seed 0"):
        studies(written(tmp_path, trials))


def test_the_committed_demo_is_one_study_of_one_strategy() -> None:
    [demo] = studies(DEMO)
    assert demo.folder == DEMO
    assert demo.title == "mr · rosita-3l-2h-96ffn · 500 training examples · test"
    assert demo.slug == "mr-offline-minilm-rosita-3l-2h-96ffn-500-test"
    assert demo.dimension == "joint"
    # A spec that keeps all tokens selects none, so it has the same strategy as the others.
    assert demo.strategies == [""]
    assert demo.scores.shape == (3, 8)
    assert demo.scores.notna().all(axis=None)
    names, full = demo.ladder("")
    assert (names[0], names[-1], len(names), full) == ("1l_1t_0.1w", "2l_all_0.5w", 6, "full")
    assert set(demo.points["reference"]) == {"full"}


@pytest.mark.parametrize(
    ("specs", "dimension"),
    [
        (["1l_all_all", "2l_all_all"], "depth"),
        (["all_1t_all", "all_3t_all,length=left"], "length"),
        (["all_all_0.1w", "all_all_0.3w"], "width"),
        (["1l_1t_0.1w", "1l_1t_0.1w,precision=fp32"], "precision"),
        (["1l_1t_0.1w", "1l_3t_0.3w"], "joint"),
        (["all_3t_all"], "length"),
        (["1l_3t_all"], "joint"),
    ],
)
def test_the_dimension_is_what_varies(specs: list[str], dimension: str) -> None:
    assert study({spec: [0.7] for spec in [*specs, "full"]}).dimension == dimension


@pytest.mark.parametrize(
    ("specs", "strategies"),
    [
        (["1l_all_all", "2l_all_all"], ["", ""]),
        (["all_1t_all", "all_3t_all,length=left"], ["attention_no_sep", "left"]),
        (
            ["1l_all_all", "1l_all_all,l_top=5", "all_3t_all", "all_3t_all,length=random,l_top=5"],
            ["l_top=1.0, attention_no_sep", "l_top=5, random"] * 2,
        ),
        (
            ["1l_1t_0.1w", "1l_1t_0.1w,length=random,width=random"],
            ["attention_no_sep, magnitude", "length=random, width=random"],
        ),
        (["all_1t_all", "all_1t_all,att_map=top"], ["", "att_map=top"]),
        # Where the width is kept whole, no neuron is selected, so it fits the only strategy that selects any.
        (["1l_1t_all", "1l_1t_0.1w", "1l_all_0.1w"], ["", "", ""]),
        # It would fit both strategies, so it belongs to neither.
        (["all_1t_all", "all_1t_all,length=left", "1l_all_all"], ["attention_no_sep", "left", "all tokens"]),
    ],
)
def test_a_strategy_is_how_specs_choose_where_they_differ(specs: list[str], strategies: list[str]) -> None:
    made = study({spec: [0.7] for spec in specs})
    assert made.trials["strategy"].tolist() == strategies


def test_codecs_are_strategies_of_their_own() -> None:
    short = {
        "1l_3t_0.1w": "attention_no_sep, magnitude",
        "2l_3t_0.1w,length=gradient": "gradient, magnitude",
        "2l_all_0.1w": "all tokens, magnitude",
        "2l_all_0.1w,width=pca": "all tokens, pca",  # not the strategy of the means below, which select no tokens
        "2l_all_0.1w,width=projection": "all tokens, projection",
        "2l_all_0.1w,width=pca,rotate=true,precision=int8": "all tokens, pca, rotate=true, int8",
        "2l_all_0.1w,width=pca,rotate=true,precision=int2": "all tokens, pca, rotate=true, int2",
        "2l_all_0.1w,width=pq": "all tokens, pq",
        "2l_all_0.1w,width=pq,entries=16": "all tokens, pq, entries=16",
        "2l_1t_0.1w,length=pool,width=pca": "pool, pca",
        "2l_1t_all,length=pool": "pool, all neurons",
    }
    made = study({name: [0.7] for name in [*short, "none", "full", "full,precision=int8", "full,precision=int2"]})
    specs = made.points[made.points["arm"] == "spec"]
    assert specs["strategy"].to_dict() == {HSKSpec.parse(name).label: words for name, words in short.items()}
    # All precisions are compared with the full of most bytes, whose bytes are 100 %.
    assert set(made.points["reference"]) == {"full"}
    assert made.full_bytes == 80_000
    assert made.ladder("all tokens, pca, rotate=true, int8")[1] == "full"


def test_bits_are_an_amount_where_all_specs_choose_alike() -> None:
    names = ["full", "full,precision=int8", "1l_3t_0.1w", "1l_3t_0.1w,precision=int8", "2l_all_all"]
    made = study({name: [0.7] for name in names})
    assert made.strategies == [""]
    steps = ["1l_3t_0.1w,precision=int8", "1l_3t_0.1w", "full,precision=int8", "2l_all_all"]
    assert (sorted(made.ladder("")[0]), made.ladder("")[1]) == (sorted(steps), "full")


def test_controls_of_depth_have_a_full_of_their_own() -> None:
    names = ["none", "full", "full,depth=reverse", "full,depth=same,l_top=5"]
    specs = ["2l_all_all", "2l_all_all,depth=reverse", "2l_all_all,depth=same,l_top=5", "1l_all_all,depth=same"]
    made = study({name: [0.7] for name in [*names, *specs]})
    points = made.points
    assert set(points.index[points["arm"] == "full"]) == {"full", "full,depth=reverse", "full,depth=same,l_top=5"}
    references = {name: points.at[HSKSpec.parse(name).label, "reference"] for name in specs}
    assert list(references.values()) == ["full", "full,depth=reverse", "full,depth=same,l_top=5", ""]
    assert [points.at[HSKSpec.parse(name).label, "strategy"] for name in specs] == [
        "l_top=1.0",
        "reverse",
        "same, l_top=5",
        "same",
    ]


def test_losses_are_not_mixed() -> None:
    scores = {"none": [0.70, 0.71], "full": [0.80, 0.81], "2l_all_0.1w": [0.78, 0.79]}
    cosine = table({name: [0.75, 0.76] for name in ("full", "2l_all_0.1w")}, hsk_loss="cosine")
    both = pd.concat([table(scores, hsk_loss="mse"), cosine])
    made = Study.of(both)
    assert made.points["reference"].to_dict() == {
        "none": "",
        "2l_all_0.1w": "full",
        "2l_all_0.1w,hsk_loss=cosine": "full,hsk_loss=cosine",
        "full": "full",
        "full,hsk_loss=cosine": "full,hsk_loss=cosine",
    }
    assert made.strategies == ["hsk_loss=mse", "hsk_loss=cosine"]
    comparison = compare_strategies(made)
    assert comparison[["dimension", "a", "b", "matched"]].to_numpy().tolist() == [["hsk_loss", "mse", "cosine", 2]]
    assert comparison["difference"].item() == pytest.approx((0.03 + 0.05) / 2)
    # With a single loss, names do not mention it.
    assert set(Study.of(cosine).points.index) == {"full", "2l_all_0.1w"}


def test_each_point_is_compared_with_the_full_of_its_mapping() -> None:
    names = ["none", "gold", "full", "full,l_top=5", "1l_all_all", "1l_all_all,l_top=5", "1l_all_all,l_top=4"]
    made = study({name: [0.7] for name in names})
    assert made.points["reference"].to_dict() == {
        "none": "",
        "gold": "",
        "full": "full",
        "full,l_top=5": "full,l_top=5",
        "1l_all_all": "full",
        "1l_all_all,depth.l_top=5": "full,l_top=5",
        "1l_all_all,depth.l_top=4": "",
    }
    assert made.ladder("l_top=5") == (["1l_all_all,depth.l_top=5"], "full,l_top=5")
    assert made.ladder("l_top=4") == (["1l_all_all,depth.l_top=4"], "")


def test_a_ladder_over_precisions_ends_with_the_full_of_most_bytes() -> None:
    names = ["full,precision=fp32", "full", "1l_all_all,precision=fp32", "1l_all_all"]
    made = study({name: [0.7] for name in names})
    steps = ["1l_all_all", "1l_all_all,precision=fp32", "full"]
    assert made.ladder("") == (steps, "full,precision=fp32")
    assert made.ladder("", "bytes_per_example") == (steps, "full,precision=fp32")
    with pytest.raises(HskdError, match="by: 'seconds' is no column of amounts"):
        made.ladder("", "seconds")


def test_a_spec_of_as_much_as_full_is_no_step_below_it() -> None:
    made = study({name: [0.7] for name in ["full", "all_3t_all,length=random", "all_all_all,length=random"]})
    assert made.ladder("") == (["all_3t_all,length=random"], "full")
