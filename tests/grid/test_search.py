"""A search of learning rates: the tried rates, the held-out sentences, the chosen rates, and the file for a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from grid.conftest import Cli, Write
from support.grid_lab import machine, run
from typer.testing import CliRunner

from hskd.cli.grid import app
from hskd.errors import HskdError
from hskd.grid.rates import FamilyRates, family_of
from hskd.grid.record import grid_content
from hskd.grid.search import (
    COLUMNS,
    MAY_LACK,
    SEARCH_KEYS,
    Part,
    Rates,
    add_none_trials,
    add_rows,
    chosen,
    parts_of,
    rates_text,
    read_table,
)
from hskd.grid.spec import GridSpec, load_grid
from hskd.spec import HSKSpec
from hskd.trials.config import TaskPlan
from hskd.trials.data import task_examples

RESULTS = Path(__file__).resolve().parents[2] / "results"
NONE = dict(zip(SEARCH_KEYS, ("small", 500, 100, "none", "none", 4, 2, None, 1e-4), strict=True))
SWEEPS = "sweeps: [{n: [1, 2], k: [1, 3], w: [0.25]}, {w: [0.1, 0.2], width: [pca], precision: [fp16, int8]}]"
FAMILIES = ["none", "full", "length=attention_no_sep,width=magnitude", "width=pca", "width=pca,precision=int8"]
TRY = ["--none-lr", "1e-3,5e-3", "--hsk-lr", "1e-3", "--prediction-lr", "1e-3,5e-3", "--workers", "1"]


def rows(*tried: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([NONE | row for row in tried])


@pytest.mark.parametrize(
    ("label", "family"),
    [
        ("1l_3t_0.1w", "length=attention_no_sep,width=magnitude"),
        ("3l_8t_0.5w", "length=attention_no_sep,width=magnitude"),
        ("2l_all_0.1w", "width=magnitude"),
        ("1l_all_all", "depth=top_n"),
        ("2l_all_all,depth=reverse", "depth=reverse"),
        ("all_all_0.1w,width=pca", "width=pca"),
        ("2l_all_1w,width=pca,rotate=true,precision=int2", "width=pca,precision=int2"),
        ("2l_1t_all,length=pool", "length=pool"),
    ],
)
def test_specs_of_the_same_selectors_are_a_family(label: str, family: str) -> None:
    assert family_of(HSKSpec.parse(label)) == family


def test_a_family_is_tried_on_its_middle_spec_and_may_be_cut_into_bands_of_bytes(write: Write, tmp_path: Path) -> None:
    grid = load_grid(str(write(SWEEPS)))
    tried = Rates([1e-3], [1e-3], [1e-3])
    parts = {part.family: part for part in parts_of(grid, tried, tmp_path, machine())}
    assert list(parts) == FAMILIES
    assert parts["none"].tried == ("none",)
    assert parts["full"].tried == ("all_all_all",)  # of the two precisions, the larger
    # The second of four specs by rising bytes; tokens of one layer or of two.
    assert parts["length=attention_no_sep,width=magnitude"].tried == ("2l_1t_0.25w",)
    assert all(part.specs == () for part in parts.values())

    cut = parts_of(grid, Rates([1e-3], [1e-3], [1e-3], bands=[98.0]), tmp_path, machine())
    bands = [part for part in cut if part.family == "length=attention_no_sep,width=magnitude"]
    assert [part.specs for part in bands] == [("1l_1t_0.25w", "2l_1t_0.25w"), ("1l_3t_0.25w", "2l_3t_0.25w")]
    assert [part.tried for part in bands] == [("1l_1t_0.25w",), ("1l_3t_0.25w",)]

    asked = parts_of(grid, Rates([], [1e-3], [1e-3], ["2l_3t_0.25w", "1l_1t_0.25w"]), tmp_path, machine())
    assert [part.tried for part in asked[2:]] == [("2l_3t_0.25w", "1l_1t_0.25w")]
    with pytest.raises(HskdError, match=r"--specs 4l_all_all: is not a spec of the grid tiny"):
        parts_of(grid, Rates([], [], [], ["4l_all_all"]), tmp_path, machine())


def test_a_search_writes_rates_that_a_grid_takes(cli: Cli, write: Write, tmp_path: Path) -> None:
    file = write(SWEEPS)
    code, out, errors = cli("search", file, *TRY, "--held-out", "20")
    assert code == 0, errors
    table = read_table(tmp_path / "results/rates/tiny.csv")
    # Two rates for none, and two pairs of rates for each of the four others; two seeds.
    assert len(table) == 2 * (2 + 4 * 2)
    assert sorted(table["family"].unique()) == sorted(FAMILIES)
    assert set(table["seed"]) == {100, 101}
    assert set(table["held_out"]) == {20}
    assert (table["dev_score"] * 20 % 1 < 1e-9).all()  # a multiple of 1/20, for 20 sentences
    written = tmp_path / "results/rates/tiny.yaml"
    entries = yaml.safe_load(written.read_text())
    assert [entry["family"] for entry in entries] == FAMILIES
    for entry in entries:
        means = table[table["family"] == entry["family"]].groupby("prediction_lr")["dev_score"].mean()
        assert entry["prediction_lr"] == means.idxmax()
        assert entry["family"] in out

    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "work/trials").glob("*/result.json"))
    assert len(before) == len(table)
    assert cli("search", file, *TRY, "--held-out", "20")[0] == 0
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "work/trials").glob("*/result.json")) == before

    grid = load_grid(str(write(SWEEPS, f"rates: {written}", "arms: [shuffled, gold]")))
    rates = {entry["family"]: entry for entry in entries}
    for trial in grid.trials(machine()):
        arm = {"gold": "none", "shuffled": "full"}.get(trial.settings.arm, trial.settings.arm)
        entry = rates[arm if arm != "spec" else family_of(trial.spec)]  # type: ignore[arg-type]
        assert trial.settings.prediction_lr == entry["prediction_lr"]
        if "hsk_lr" in entry:
            assert trial.settings.hsk_lr == entry["hsk_lr"]


@pytest.mark.parametrize(("flag", "value"), [("--data", "no-data"), ("--teacher", "no-model")])
def test_a_search_takes_own_data_and_models(cli: Cli, write: Write, flag: str, value: str) -> None:
    code, _, errors = cli("search", write(SWEEPS), *TRY, flag, value)
    assert code and value in errors and "Traceback" not in errors


def test_a_table_that_is_damaged_is_refused_before_anything_runs(cli: Cli, write: Write, tmp_path: Path) -> None:
    file, table = write(), tmp_path / "results/rates/tiny.csv"
    add_rows(table, rows({"seed": 100, "dev_score": 0.5}), COLUMNS, SEARCH_KEYS, MAY_LACK)
    good = table.read_text()
    header, line = good.splitlines()
    for text, says in [
        (good.replace("0.5", "o.5"), "line 2: column dev_score: expected a number, got 'o.5'"),
        (good.replace("0.5", "nan"), "line 2: column dev_score: expected a number"),
        (good.replace(",0.5", ""), "line 2: 10 cells, expected 11"),
        (f"{header}\n{line},1\n", "line 2: 12 cells, expected 11"),
        (good.replace("small", ""), "line 2: column student: expected text, got ''"),
        (good.replace(",100,0.5", ",100.5,0.5"), "line 2: column seed: expected a whole number"),
        (good.replace("dev_score", "score"), "expected the columns student"),
        ("", "expected the columns student"),
        (good + '"', "cannot be read as a CSV table"),
    ]:
        table.write_text(text)
        code, _, errors = cli("search", file, *TRY)
        assert code != 0
        assert "tiny.csv" in errors and says in " ".join(errors.split()), text
        assert table.read_text() == text
    assert not (tmp_path / "work").exists()


def test_the_rates_of_the_best_mean_are_chosen_among_those_of_the_most_seeds() -> None:
    grid = GridSpec.model_validate(
        {"name": "g", "task": {"name": "mr", "train_examples": 500, "held_out": 100}, "training": {"hsk_epochs": 4}}
    )
    pca = {"family": "width=pca", "arm": "all_all_0.1w,width=pca", "prediction_epochs": 5}
    none = {"prediction_epochs": 5}
    table = rows(
        *[none | {"prediction_lr": 1e-4, "seed": seed, "dev_score": 0.7} for seed in (100, 101)],
        *[none | {"prediction_lr": 2e-4, "seed": seed, "dev_score": 0.7} for seed in (100, 101)],
        none | {"prediction_lr": 4e-4, "seed": 100, "dev_score": 0.9},  # one seed: not compared
        none | {"prediction_lr": 2e-4, "seed": 100, "dev_score": 0.9, "held_out": None},  # dev: another search
        *[
            pca | {"hsk_lr": rate, "prediction_lr": 1e-4, "seed": seed, "dev_score": score}
            for rate, scores in ((1e-4, (0.70, 0.80)), (2e-4, (0.76, 0.78)), (4e-4, (0.70, 0.75)))
            for seed, score in zip((100, 101), scores, strict=True)
        ],
    )
    parts = [Part("none", "small", (), ("none",)), Part("width=pca", "small", (), ("all_all_0.1w,width=pca",))]
    first, second = chosen(table, grid, parts)
    assert first.rates == FamilyRates(family="none", prediction_lr=1e-4)  # the lower of equal rates
    assert (first.score, first.settings, first.seeds, first.edge) == (0.7, 2, 2, "prediction_lr lowest")
    assert first.doubt == "2 seeds cannot rank it against prediction_lr 0.0002 (0 points less)"
    assert second.rates == FamilyRates(family="width=pca", hsk_lr=2e-4, prediction_lr=1e-4)
    assert second.score == pytest.approx(0.77)
    assert (second.settings, second.seeds, second.edge) == (3, 2, "")
    assert second.doubt == "2 seeds cannot rank it against hsk_lr 0.0001, prediction_lr 0.0001 (2 points less)"
    assert second.doubt in rates_text(grid, [first, second])
    assert yaml.safe_load(rates_text(grid, [first, second])) == [
        {"family": "none", "prediction_lr": 1e-4},
        {"family": "width=pca", "hsk_lr": 2e-4, "prediction_lr": 1e-4},
    ]
    with pytest.raises(HskdError, match=r"full: no rates were tried for all_all_all of small"):
        chosen(table, grid, [Part("full", "small", (), ("all_all_all",))])


@pytest.mark.parametrize(
    ("seeds", "doubt"),
    [(1, "1 seed cannot rank it against prediction_lr 0.0002 (2.1 points less)"), (4, "")],  # p below 0.001
)
def test_a_choice_says_whether_its_seeds_show_it_to_be_better(seeds: int, doubt: str) -> None:
    grid = GridSpec.model_validate(
        {"name": "g", "task": {"name": "mr", "train_examples": 500, "held_out": 100}, "training": {"hsk_epochs": 4}}
    )
    scores = {1e-4: (0.721, 0.733, 0.728, 0.741), 2e-4: (0.700, 0.710, 0.709, 0.720)}
    table = rows(
        *[
            {"prediction_epochs": 5, "prediction_lr": rate, "seed": 100 + i, "dev_score": score}
            for rate, of_seeds in scores.items()
            for i, score in enumerate(of_seeds[:seeds])
        ]
    )
    [choice] = chosen(table, grid, [Part("none", "small", (), ("none",))])
    assert choice.doubt == doubt


def test_rates_decide_the_settings_of_each_trial_and_so_its_id() -> None:
    sweeps = [{"w": [0.1, 0.2], "width": ["pca"]}]
    rates = [
        {"family": "none", "prediction_lr": 1e-3},
        {"family": "full", "hsk_lr": 2e-3, "prediction_lr": 3e-3},
        {"family": "width=pca", "specs": ["all_all_0.1w,width=pca"], "hsk_lr": 4e-3, "prediction_lr": 5e-3},
        {"family": "width=pca", "hsk_lr": 6e-3, "prediction_lr": 7e-3},
    ]
    content = {"name": "g", "sweeps": sweeps, "training": {"hsk_lr": 2e-3, "prediction_lr": 3e-3}, "none_lr": 9e-3}
    grid = GridSpec.model_validate(content | {"rates": rates})
    settings = {trial.point: trial.settings for trial in grid.trials(machine())}
    assert {name: (one.hsk_lr, one.prediction_lr) for name, one in settings.items()} == {
        "none": (2e-3, 1e-3),
        "full": (2e-3, 3e-3),
        "all_all_0.1w,width=pca": (4e-3, 5e-3),
        "all_all_0.2w,width=pca": (6e-3, 7e-3),
    }
    # The rates of full are those of the grid without `rates`, so its id is the same. Other trials have new ids.
    ids = [
        {trial.point: trial.id for trial in one.trials(machine())} for one in (grid, GridSpec.model_validate(content))
    ]
    assert [ids[0][point] == ids[1][point] for point in ids[0]] == [False, True, False, False]
    assert GridSpec.model_validate(grid_content(grid)) == grid


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ([{"family": "none", "prediction_lr": 1e-3}], "no rates for the family full"),
        ([{"family": "none", "hsk_lr": 1e-3, "prediction_lr": 1e-3}], "none has no HSK stage"),
        ([{"family": "full", "prediction_lr": 1e-3}], "full has an HSK stage: expected hsk_lr"),
        (
            [{"family": "width=pca", "specs": ["all_all_0.1w"], "hsk_lr": 1e-3, "prediction_lr": 1e-3}],
            "all_all_0.1w is of the family width=magnitude, not width=pca",
        ),
        (
            [
                {"family": "none", "prediction_lr": 1e-3},
                {"family": "full", "hsk_lr": 1e-3, "prediction_lr": 1e-3},
                {"family": "width=pca", "hsk_lr": 1e-3, "prediction_lr": 1e-3},
            ],
            "no rates for the family width=magnitude, which 1l_all_0.1w belongs to",
        ),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_rates_that_leave_a_family_out_are_refused(tmp_path: Path, rates: Any, says: str) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(yaml.safe_dump({"name": "g", "include": ["1l_all_0.1w"], "rates": rates}))
    with pytest.raises(HskdError) as refused:
        load_grid(str(file))
    assert says in str(refused.value)
    assert "g.yaml, line" in str(refused.value) and "rates" in str(refused.value)


def test_held_out_sentences_are_of_the_training_set_and_nobody_trains_on_them(
    data_folder: Path, body: Path, tmp_path: Path
) -> None:
    plan = TaskPlan(
        name="custom", data=str(data_folder), text_columns="sentence", label_column="mood", train_examples=30
    )  # type: ignore[arg-type]
    whole = task_examples(plan, str(body), tmp_path)
    part = task_examples(plan.model_copy(update={"held_out": 20}), str(body), tmp_path)
    assert list(part.splits) == ["train", "dev"]
    train, dev = (set(part.splits[name].ids.tolist()) for name in ("train", "dev"))
    assert len(dev) == 20
    assert not train & dev
    assert train | dev == set(whole.splits["train"].ids.tolist())
    np.testing.assert_array_equal(part.train.ids, whole.train.ids)  # the students' own sentences stay the same
    rows = [whole.splits["train"].ids.tolist().index(one) for one in part.splits["dev"].ids]
    np.testing.assert_array_equal(part.splits["dev"].labels, whole.splits["train"].labels[rows])  # type: ignore[index,arg-type]
    with pytest.raises(HskdError, match=f"{len(train) + 20} examples to be held out"):
        task_examples(plan.model_copy(update={"held_out": len(train) + 20}), str(body), tmp_path)


def test_a_row_takes_the_place_of_one_of_the_same_setting_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "search.csv"
    add_rows(path, rows({"seed": 101, "dev_score": 0.7}), COLUMNS, SEARCH_KEYS, MAY_LACK)
    again = rows({"seed": 101, "dev_score": 0.8}, {"seed": 100, "dev_score": 0.6})
    table = add_rows(path, again, COLUMNS, SEARCH_KEYS, MAY_LACK)
    assert table[["seed", "dev_score"]].to_numpy().tolist() == [[100, 0.6], [101, 0.8]]
    assert read_table(path)["dev_score"].tolist() == [0.6, 0.8]
    assert path.read_text().splitlines()[1] == "small,500,100,none,none,4,2,,0.0001,100,0.6"
    assert [file.name for file in tmp_path.iterdir()] == ["search.csv"]


@pytest.mark.parametrize("name", ["mr-joint", "mr-joint-wide", "mr-tinybert-joint", "cola-joint", "cola-2000"])
def test_the_committed_tables_of_searches_can_still_be_added_to(name: str) -> None:
    table = read_table(RESULTS / "rates" / f"{name}.csv")
    assert table["held_out"].isna().all()
    assert table["dev_score"].between(0, 1).all()
    assert set(table["family"]) == {""}


@pytest.mark.parametrize(
    ("flag", "value"), [("--none-lr", "4e-4,fast"), ("--hsk-lr", "0"), ("--bands", "-1"), ("--seeds", "1.5")]
)
def test_a_rate_that_is_no_number_is_refused(flag: str, value: str) -> None:
    done = CliRunner().invoke(app, ["search", "demo", flag, value])
    assert isinstance(done.exception, HskdError)
    assert f"{flag} {value}" in str(done.exception)


def test_none_at_its_rates_is_added_to_a_table(tmp_path: Path) -> None:
    table = tmp_path / "none.csv"
    scores = add_none_trials([RESULTS / "sst2-joint"], table)
    committed = pd.read_csv(RESULTS / "rates" / "none.csv").set_index(["grid", "none_lr", "seed"])
    added = pd.read_csv(table).set_index(["grid", "none_lr", "seed"])
    pd.testing.assert_frame_equal(added, committed.loc[added.index])
    assert scores[("score", "count")].sum() == len(added) > 0


def test_a_grid_with_rates_has_them_in_its_table(write: Write, tmp_path: Path) -> None:
    lines = (
        "seeds: 1",
        "sweeps: [{k: [1], w: [0.25]}]",
        "rates: [{family: none, prediction_lr: 4.0e-3}, {family: full, hsk_lr: 2.0e-3, prediction_lr: 3.0e-3}, "
        "{family: 'length=attention_no_sep,width=magnitude', hsk_lr: 1.0e-3, prediction_lr: 5.0e-3}]",
    )
    table = run(write(*lines), tmp_path).table.set_index("arm")
    assert table["prediction_lr"].to_dict() == {"none": 4e-3, "full": 3e-3, "spec": 5e-3}
    assert table["hsk_lr"].dropna().to_dict() == {"full": 2e-3, "spec": 1e-3}
    assert "rates" in (tmp_path / "out" / "grid.yaml").read_text()
