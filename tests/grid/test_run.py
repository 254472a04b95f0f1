"""A grid of real trials: its table, a second run, shared artifacts, and the state after a failure."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grid.conftest import Cli, Write
from sklearn.metrics import accuracy_score
from support.grid_lab import (
    OPTIONS,
    TRIALS,
    Ran,
    Recorder,
    outputs,
    recorded,
    run,
    same_predictions,
    same_scores,
    trials_of,
)

from hskd import results
from hskd.artifacts import lock_path
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.grid.executors import InProcess
from hskd.grid.record import error_path, result_path
from hskd.store_format.manifest import Manifest
from hskd.trials.config import TrialConfig
from hskd.trials.workspace import Workspace

SPECS = ["1l_1t_0.25w", "1l_3t_0.25w", "2l_1t_0.25w", "2l_3t_0.25w"]


def copied(ran: Ran, root: Path) -> Path:
    """A copy of the finished grid in another place."""
    shutil.copytree(ran.root, root)
    return root


def lose(out: Path, config: TrialConfig) -> None:
    """Delete the result of a trial."""
    results.unpack(out)
    result_path(out, config).unlink()
    result_path(out, config).with_suffix(".npz").unlink()


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file, except locks and recipes, which every use touches."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix != ".lock" and not path.name.endswith(".recipe.json")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def supersets(work: Path) -> list[Manifest]:
    manifests = [Manifest.read(path.parent) for path in sorted((work / "stores").glob("*/manifest.json"))]
    return [manifest for manifest in manifests if manifest.kind == "superset"]


def test_the_table_has_a_row_for_every_trial(undisturbed: Ran, grid_file: Path) -> None:
    table = undisturbed.table
    assert list(table.columns) == [*results.COLUMNS, "length.att_map"]
    assert len(table) == TRIALS
    assert set(table["trial"]) == {config.id for config in trials_of(grid_file)[1]}
    for seed in (0, 1):
        one = table[table["seed"] == seed]
        assert sorted(one["arm"]) == ["full", "none", *["spec"] * 4]
        assert sorted(one["spec"]) == ["", *SPECS, "all_all_all"]
    assert (table["score_split"] == "test").all()
    assert table["score"].between(0, 1).all()
    assert table["teacher_score"].nunique() == 1
    assert (table["train_examples"] == 64).all()
    assert (table["threads"] == 1).all()


def test_the_table_says_how_much_was_kept(undisturbed: Ran) -> None:
    table = undisturbed.table.set_index("spec")
    full, smallest = table.loc["all_all_all"], table.loc["1l_1t_0.25w"]
    assert (full["fraction"] == 1).all()
    assert (full["fraction_padded"] < 1).all()
    # One token of each of 64 examples, a quarter of 32 neurons, one of three mapped layers.
    assert (smallest["kept_values"] == 64 * 8).all()
    tokens = full["kept_values"].iloc[0] / (3 * 32)
    np.testing.assert_allclose(smallest["fraction"], 64 * 8 / (tokens * 32 * 3))
    assert (table.loc[""]["fraction"] == 0).all()
    assert (table.loc[""]["kept_values"] == 0).all()
    assert (smallest["bytes_per_example"] < full["bytes_per_example"].iloc[0]).all()
    assert list(table.loc["2l_3t_0.25w", ["n", "k", "w", "length", "width", "precision"]].iloc[0]) == [
        *("2", "3", 0.25, "attention_no_sep", "magnitude", "fp16")
    ]


def test_csv_and_parquet_are_the_table(undisturbed: Ran, tmp_path: Path) -> None:
    table = undisturbed.table
    pd.testing.assert_frame_equal(results.load(undisturbed.out), table)
    numbers = [column for column in table if pd.api.types.is_numeric_dtype(table[column])]
    packed = pd.read_parquet(undisturbed.out / "trials.parquet")
    assert packed["dev_scores"].map(list).tolist() == table["dev_scores"].tolist()
    scores = {"dev_scores": table["dev_scores"]}
    pd.testing.assert_frame_equal(packed.drop(columns="result").assign(**scores), table, check_exact=True)
    csv = pd.read_csv(
        results.write_csv(table, tmp_path / "trials.csv"),
        dtype={column: str for column in table if column not in numbers},
        keep_default_na=False,
        float_precision="round_trip",
        na_values={column: [""] for column in numbers},
    )
    assert [[float(score) for score in text.split()] for text in csv["dev_scores"]] == table["dev_scores"].tolist()
    pd.testing.assert_frame_equal(csv.assign(**scores), table, check_dtype=False, check_exact=True)


def test_the_last_epoch_is_reported_and_the_best_beside_it(undisturbed: Ran) -> None:
    for row in undisturbed.table.itertuples():
        scores = row.dev_scores
        assert len(scores) == row.prediction_epochs == (3 if row.arm == "none" else 1)
        assert row.hsk_epochs == (0 if row.arm == "none" else 2)
        assert row.dev_score == scores[-1]
        assert row.best_dev_score == max(scores)


def test_the_hsk_loss_on_held_out_examples(undisturbed: Ran) -> None:
    table = undisturbed.table
    losses = table[table["arm"] != "none"]["held_out_hsk_loss"]
    assert np.isfinite(losses).all()
    assert (losses > 0).all()
    assert table[table["arm"] == "none"]["held_out_hsk_loss"].isna().all()
    full = table[table["arm"] == "full"].set_index("seed")["held_out_hsk_loss"]
    least = table[table["spec"] == "1l_1t_0.25w"].set_index("seed")["held_out_hsk_loss"]
    assert (full < least).all(), "who distils everything is nearer to everything"


def test_a_result_says_what_it_took_and_where_it_came_from(undisturbed: Ran) -> None:
    found = recorded(undisturbed.out)
    assert len(found) == TRIALS
    for result in found:
        assert {"dev", "test"} == set(result["metrics"]) == set(result["teacher_metrics"])
        assert result["config"]["threads"] == result["threads"] == 1
        assert result["config"]["dtype"] == result["dtype"] == "fp32"
        assert result["peak_memory_bytes"] > 2**20
        assert {"torch", "transformers", "git_commit", "machine"} <= set(result["made_by"])
        for stage in result["stages"].values():
            assert stage["seconds"] > 0
            assert stage["examples_per_second"] > 0


def test_predictions_are_what_was_scored(undisturbed: Ran, grid_file: Path) -> None:
    workspace = Workspace(undisturbed.work, trials_of(grid_file)[1])
    for split in ("dev", "test"):
        logits = outputs(undisturbed.out, split)
        for result in recorded(undisturbed.out):
            values = logits[result["id"]]
            assert values.shape == (16, 2)
            labels = workspace.splits[split].labels
            assert labels is not None
            assert result["metrics"][split]["score"] == accuracy_score(labels, values.argmax(axis=1))


def test_the_seeds_differ_and_so_do_the_specs(undisturbed: Ran) -> None:
    logits = [values.tobytes() for values in outputs(undisturbed.out, "test").values()]
    assert len(set(logits)) == TRIALS


def test_the_teacher_reads_the_training_set_once(undisturbed: Ran, grid_file: Path) -> None:
    workspace = Workspace(undisturbed.work, trials_of(grid_file)[1])
    training, dev = workspace.train.ids.tolist(), workspace.splits["dev"].ids.tolist()
    assert sorted(undisturbed.forwarded) == sorted(training + dev), "every training example, and each held-out one"
    found = supersets(undisturbed.work)
    assert sorted(manifest.examples for manifest in found) == [len(dev), len(training)]
    assert len([title for title in undisturbed.told.titles if title == "store: extract"]) == 1
    assert len([title for title in undisturbed.told.titles if title == "teacher"]) == 1
    assert len([title for title in undisturbed.told.titles if "importance" in title]) == 1


def by_arm(ran: Ran, seed: int) -> dict[str, list[list[int]]]:
    """Return the batches of every trial of a seed."""
    found = {}
    for folder, batches in ran.batches.items():
        if (Path(folder) / "result.json").is_file():  # leaves out the teacher
            result = json.loads((Path(folder) / "result.json").read_text())
            if result["settings"]["seed"] == seed:
                found[result["spec"] or result["settings"]["arm"]] = batches
    assert len(found) == TRIALS / 2
    return found


STEPS = 64 // 16
"""Steps of an epoch."""


@pytest.mark.parametrize("seed", [0, 1])
def test_every_arm_of_a_seed_sees_the_same_batches_in_the_same_order(undisturbed: Ran, seed: int) -> None:
    found = by_arm(undisturbed, seed)
    none = found.pop("none")
    for name, batches in found.items():
        assert batches == found["all_all_all"], name
        assert batches[: 2 * STEPS] == none[: 2 * STEPS], "the HSK stage"
    for batches in (none, found["all_all_all"]):
        assert len(batches) == 3 * STEPS
        for start in range(0, 3 * STEPS, STEPS):
            assert len({id for batch in batches[start : start + STEPS] for id in batch}) == 64


def test_none_goes_through_the_batches_of_both_stages(undisturbed: Ran) -> None:
    found = by_arm(undisturbed, 0)
    assert found["none"] == found["all_all_all"]


def test_the_seeds_see_different_batches_and_so_do_the_epochs(undisturbed: Ran) -> None:
    first, second = by_arm(undisturbed, 0)["none"], by_arm(undisturbed, 1)["none"]
    assert first != second
    epochs = [first[start : start + STEPS] for start in range(0, 3 * STEPS, STEPS)]
    assert all(one != other for one, other in pairwise(epochs))


def test_the_news_count_up(undisturbed: Ran) -> None:
    news = undisturbed.told.news
    assert [(done, failed, total) for done, failed, total, _ in news] == [(i, 0, TRIALS) for i in range(TRIALS + 1)]
    assert all("%" in text and "seed" in text for *_, text in news[1:])


def test_a_second_run_runs_nothing(undisturbed: Ran, grid_file: Path) -> None:
    before = snapshot(undisturbed.root)
    again = run(grid_file, undisturbed.root)
    assert snapshot(undisturbed.root) == before
    assert again.told.titles == []
    assert len(again.progress.done) == TRIALS
    pd.testing.assert_frame_equal(again.table, undisturbed.table)


def test_lost_results_come_back_from_the_trials_that_made_them(
    undisturbed: Ran, grid_file: Path, tmp_path: Path
) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    shutil.rmtree(root / "out")
    before = snapshot(root / "work")
    again = run(grid_file, root)
    assert snapshot(root / "work") == before
    assert again.told.titles == []
    pd.testing.assert_frame_equal(again.table, undisturbed.table)
    same_predictions(root / "out", undisturbed.out)


def test_a_second_grid_shares_teacher_superset_and_trials(undisturbed: Ran, write: Write, tmp_path: Path) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    shutil.rmtree(root / "out")
    other = write("seeds: 1", "include: [1l_2t_0.25w]", name="other")
    told = Recorder()
    again = run(other, root, told=told)
    assert len(again.table) == 7
    assert len(list((root / "work" / "teachers").glob("*/metrics.json"))) == 1
    assert len(supersets(root / "work")) == 2
    assert [title.split(":")[0] for title in told.titles] == ["1l_2t_0.25w, seed 0"] * 3, (
        "one trial: its store, two stages"
    )
    shared = undisturbed.table[undisturbed.table["seed"] == 0]
    assert set(shared["trial"]) < set(again.table["trial"])


def test_a_given_teacher_is_scored_on_what_has_labels(undisturbed: Ran, write: Write, tmp_path: Path) -> None:
    (file,) = (undisturbed.work / "teachers").glob("*/metrics.json")
    given = write(f'teacher: {{model: "{file.parent}", fine_tuned: true}}', name="given")
    found = Workspace(tmp_path / "work", trials_of(given)[1]).teacher_metrics(Recorder())
    assert found is not None
    own = json.loads(file.read_text())["metrics"]
    assert found.keys() == own.keys() >= {"dev"}
    assert all(found[split] == pytest.approx(own[split], abs=1e-6) for split in own)


def test_another_grid_does_not_write_where_one_is(undisturbed: Ran, write: Write, tmp_path: Path) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    with pytest.raises(MismatchError, match=r"another grid \(tiny\).*--out"):
        run(write(name="other"), root)


def test_a_failing_trial_stops_nothing_else(undisturbed: Ran, write: Write, cli: Cli, tmp_path: Path) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    shutil.rmtree(root / "out")
    # At this rate the prediction stage of none ends in NaN. All other trials are already done.
    file = write("none_lr: 1.0e+38")
    places = ["--out", root / "out", "--work", root / "work"]
    code, out, err = cli("run", file, *places, *OPTIONS)
    assert code == 1
    assert "10 trials in" in out
    assert "2 failed" in err
    assert "Traceback" not in err
    failed = [config for config in trials_of(file)[1] if config.settings.arm == "none"]
    for config in failed:
        kept = json.loads(error_path(root / "out", config).read_text())
        assert "Traceback (most recent call last)" in kept["traceback"]
        assert "hskd/training.py" in kept["traceback"]
        assert kept["error"].startswith("HskdError: prediction stage: the")
        assert kept["config"] == config.model_dump(mode="json")
        assert config.id not in results.ResultsFolder(root / "out").done()
    assert set(results.load(root / "out")["arm"]) == {"full", "spec"}

    code, out, _ = cli("status", file, "--out", root / "out", *OPTIONS)
    assert code == 0
    assert "10 done, 2 to do, of which 2 failed" in out
    assert out.count("failed: none, seed") == 2
    assert "Lower the learning rate" in out
    assert str(error_path(root / "out", failed[0])) in out

    done = snapshot(root / "out" / "trials")
    code, out, _ = cli("retry", file, *places, *OPTIONS)
    assert code == 1
    assert "0 of 2 are done now" in out
    unchanged = snapshot(root / "out" / "trials")
    errors = {str(error_path(root / "out", config)) for config in failed}
    assert {path for path in done if unchanged[path] != done[path]} == errors
    assert unchanged.keys() == done.keys()


def test_retry_runs_what_failed_and_nothing_else(undisturbed: Ran, grid_file: Path, cli: Cli, tmp_path: Path) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    workspace = Workspace(root / "work", trials_of(grid_file)[1])
    broken, missing = [config for config in workspace.trials if config.spec and config.spec.label == "2l_3t_0.25w"]
    folders = [workspace.trial_folder(config) for config in (broken, missing)]
    for config, folder in zip((broken, missing), folders, strict=True):
        assert folder.is_dir()
        lose(root / "out", config)
        shutil.rmtree(folder)
    folders[0].mkdir()
    (folders[0] / "recipe.json").write_text('{"recipe": ')
    failed = run(grid_file, root, only={broken.id})
    assert list(failed.progress.failed) == [broken.id]
    assert [config.id for config in failed.progress.pending] == [broken.id, missing.id]
    shutil.rmtree(folders[0])  # remove the cause

    stores = snapshot(root / "work" / "stores", root / "work" / "teachers", root / "work" / "students")
    code, out, _ = cli("retry", grid_file, "--out", root / "out", "--work", root / "work", *OPTIONS)
    assert code == 0
    assert "1 of 1 are done now" in out
    assert snapshot(root / "work" / "stores", root / "work" / "teachers", root / "work" / "students") == stores
    assert broken.id in results.ResultsFolder(root / "out").done()
    assert not error_path(root / "out", broken).exists()
    assert missing.id not in results.ResultsFolder(root / "out").done(), "it had not failed, it had not been run"
    code, out, _ = cli("retry", grid_file, "--out", root / "out", "--work", root / "work", *OPTIONS)
    assert (code, out.strip()) == (0, "no trial has failed")
    same_scores(run(grid_file, root).table, undisturbed.table)


def test_status_says_how_far_it_is(undisturbed: Ran, grid_file: Path, cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("status", grid_file, "--out", undisturbed.out, *OPTIONS)
    assert code == 0
    assert "tiny: 12 done, 0 to do" in out
    assert all(label in out for label in (*SPECS, "none", "full"))
    assert out.count("(2 seeds)") == 6
    code, out, _ = cli("status", grid_file, "--out", tmp_path / "nothing", *OPTIONS)
    assert code == 0
    assert "tiny: 0 done, 12 to do" in out
    code, out, _ = cli("status", grid_file, "--out", undisturbed.out, "--seeds", 3, *OPTIONS)
    assert "tiny: 12 done, 6 to do" in out


def test_an_unknown_preset_on_the_command_line(cli: Cli) -> None:
    code, out, err = cli("run", "mr-dept")
    assert code == 2
    assert out == ""
    assert "mr-depth" in err
    assert "Traceback" not in err


def test_a_spec_beyond_the_student_is_refused_before_anything_runs(write: Write, cli: Cli, tmp_path: Path) -> None:
    file = write("include: [9l_1t_0.1w]")
    code, _, err = cli("run", file, "--out", tmp_path / "out", "--work", tmp_path / "work", *OPTIONS)
    assert code == 2
    assert "n = 9 is out of range: 3 student layers are mapped" in " ".join(err.split())
    assert not list((tmp_path / "out").glob("trials/*"))


def test_load_says_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"nowhere: no results there.*hskd grid run"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(HskdError, match="no results there"):
        results.load(tmp_path)
    (tmp_path / "trials").mkdir()
    with pytest.raises(HskdError, match="no trial is done yet"):
        results.load(tmp_path)
    (tmp_path / "trials" / "0123.error.json").write_text("{}")
    with pytest.raises(HskdError, match="no trial is done yet"):
        results.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"id": "0', "[]", "3", "{}", '{"settings": {}, "stages": []}'])
def test_load_names_the_file_that_is_damaged(undisturbed: Ran, text: str, tmp_path: Path) -> None:
    root = copied(undisturbed, tmp_path / "copy")
    results.unpack(root / "out")
    victim = sorted((root / "out" / "trials").glob("*.json"))[3]
    victim.write_text(text)
    with pytest.raises(CorruptionError, match=victim.name):
        results.load(root / "out")


def test_two_runs_at_a_time_wait_for_each_other(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    root = copied(undisturbed, tmp_path / "copy")
    _, trials = trials_of(grid_file)
    lose(root / "out", trials[0])
    workspace = Workspace(root / "work", trials)
    folder = workspace.trial_folder(trials[0])
    shutil.rmtree(folder)
    held = []

    class Watch(Recorder):
        def begin(self, title: str, total: int) -> None:
            with pytest.raises(Timeout), FileLock(lock_path(folder), timeout=0):
                pass
            held.append(title)

    for config, result, error in InProcess().run(workspace, trials[:1], root / "out", Watch()):
        assert config is trials[0]
        assert result is not None, error
    assert held == ["none, seed 0: prediction stage"]


def test_trials_from_before_the_grid_was_changed_are_left_out(undisturbed: Ran, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed.out, out)
    first, *others = results.ResultsFolder(out).planned() or []
    (out / "planned.json").write_text(json.dumps(others))
    assert set(undisturbed.table["trial"]) - set(results.load(out)["trial"]) == {first}
    results.pack(out)
    assert set(undisturbed.table["trial"]) - set(results.load(out)["trial"]) == {first}
    assert first in results.ResultsFolder(out).done(), "it is kept"
