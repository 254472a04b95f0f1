"""Searches on real trials of tiny models write files like a grid's, and answer the same after any kill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support import find_lab
from support.find_lab import BUDGET, search
from support.grid_lab import Recorder, machine, same_scores

from hskd.analysis.minimum import FindResult, find, with_student
from hskd.analysis.report.minimum_page import write_page
from hskd.artifacts import write_record
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.grid.executors import InProcess
from hskd.grid.spec import load_grid
from hskd.minimum.finished import ANSWER_FILE
from hskd.results import ResultsFolder, load
from hskd.spec import HSKSpec

MOMENTS = (1, 5, 12, 17, 24)


@pytest.fixture(scope="module")
def undisturbed(grid_file: Path, space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> FindResult:
    """The result of an uninterrupted search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return search(grid_file, space_file, tmp_path_factory.mktemp("undisturbed"))


class Refuses(InProcess):
    """An executor that must not be used."""

    def run(self, *arguments: object) -> object:  # type: ignore[override]
        raise AssertionError("a trial is run again")


def test_it_ends_with_an_answer_and_its_command(undisturbed: FindResult) -> None:
    outcome = undisturbed.outcome
    assert outcome.verdict == "enough", undisturbed.sentence
    assert undisturbed.answer is not None and undisturbed.command is not None
    assert undisturbed.outcome.answer is not None
    assert HSKSpec.parse(undisturbed.answer) == undisturbed.chosen[undisturbed.outcome.answer].spec
    assert f"--spec {undisturbed.answer}" in undisturbed.command
    assert undisturbed.answer in undisturbed.sentence
    assert {batch.stage for batch in outcome.history} >= {"gap", "screening", "confirmation"}


def test_its_trials_lie_as_those_of_a_grid(undisturbed: FindResult) -> None:
    table = load(undisturbed.folder)
    assert len(table) == undisturbed.outcome.known.trials <= BUDGET
    assert set(table["trial"]) == set(ResultsFolder(undisturbed.folder).planned() or ())
    row = undisturbed.tests[undisturbed.tests["name"] == undisturbed.answer].iloc[0]
    scores = table.pivot_table(index="seed", columns="spec", values="score")
    full = table[table["arm"] == "full"].set_index("seed")["score"]
    fresh = range(int(row["n"]))
    losses = (full - scores[undisturbed.answer]).loc[fresh]
    assert losses.mean() == pytest.approx(row["loss"])
    assert row["low"] < row["loss"] < row["high"] < 0.3


def test_asked_again_it_runs_nothing(undisturbed: FindResult, grid_file: Path, space_file: Path) -> None:
    again = search(grid_file, space_file, undisturbed.folder.parent, executor=Refuses())
    assert again.sentence == undisturbed.sentence


def test_a_grid_and_a_search_share_their_trials(undisturbed: FindResult, grid_file: Path) -> None:
    from hskd.grid.run import GridStatus

    trials = load_grid(str(grid_file)).trials(machine())
    status = GridStatus.of(trials, undisturbed.folder)
    assert any(config.settings.arm == "full" for config in status.done)


@pytest.mark.timeout(900)
def test_killed_five_times_it_gives_the_same_answer(
    undisturbed: FindResult, grid_file: Path, space_file: Path, tmp_path: Path
) -> None:
    # Run as a module: run as a script, its folder's modules would shadow libraries of the same name.
    script = [sys.executable, "-m", find_lab.__name__, grid_file, space_file, tmp_path / "killed", *MOMENTS]
    tests = Path(find_lab.__file__).parents[1]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False, cwd=tests)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * len(MOMENTS) + [False]
    again = search(grid_file, space_file, tmp_path / "killed", executor=Refuses())
    assert again.sentence == undisturbed.sentence
    assert again.outcome.known.chain == undisturbed.outcome.known.chain
    same_scores(load(again.folder), load(undisturbed.folder))


def test_out_of_time_it_says_so_and_goes_on_later(grid_file: Path, space_file: Path, tmp_path: Path) -> None:
    stopped = search(grid_file, space_file, tmp_path, executor=Refuses(), seconds=0)
    assert stopped.outcome.verdict == "undetermined"
    assert "before" in stopped.sentence and stopped.answer is None and stopped.command is None


def test_another_teacher_is_refused(undisturbed: FindResult, grid_file: Path, space_file: Path) -> None:
    with pytest.raises(MismatchError, match=r"training\.hsk_epochs"):
        search(grid_file, space_file, undisturbed.folder.parent, changes={"training.hsk_epochs": 3})


def test_rates_are_searched_apart(grid_file: Path, space_file: Path, tmp_path: Path) -> None:
    told = Recorder()
    told.next_batch = lambda batch, search, waiting: told.said.append(batch.why)  # type: ignore[attr-defined]
    result = find(
        str(grid_file),
        tolerance=30.0,
        budget_trials=42,
        space=str(space_file),
        search_rates=True,
        out=tmp_path / "out",
        work=tmp_path / "work",
        machine=machine(),
        watcher=told,  # type: ignore[arg-type]
    )
    rates = result.outcome.known.rates
    assert set(rates) == {"none", "full", "neurons"}
    assert any(text.startswith("learning rates of none") for text in told.said)
    table = load(tmp_path / "out" / "rates")
    searched = table[table["arm"] == "none"].groupby("prediction_lr")["dev_score"].agg(["mean", "count"])
    assert sorted(searched["count"]) == [2, 4, 4]  # the worst of three is dropped after two seeds
    best = searched[searched["count"] == 4]["mean"]
    assert rates["none"].prediction == best.idxmax() or best.nunique() == 1
    assert set(load(tmp_path / "out").query("arm == 'none'")["prediction_lr"]) == {rates["none"].prediction}


def test_rates_by_family_are_searched_anew(grid_file: Path, space_file: Path, tmp_path: Path) -> None:
    """A search tries families that the list of a grid need not have; full's rates would not suit them."""
    listed = [
        {"family": "none", "prediction_lr": 1e-3},
        {"family": "full", "hsk_lr": 1e-3, "prediction_lr": 1e-3},
    ]
    with pytest.raises(HskdError, match=r"rates: the grid lists rates by family.*Use --rates search"):
        search(grid_file, space_file, tmp_path, changes={"rates": listed}, search_rates=False)
    begun = search(grid_file, space_file, tmp_path, changes={"rates": listed}, executor=Refuses(), seconds=0)
    assert begun.settings.search_rates


def test_the_page_shows_every_stage(undisturbed: FindResult, tmp_path: Path) -> None:
    page = write_page(undisturbed, tmp_path).read_text(encoding="utf-8")
    for text in ("Confirmation, on fresh seeds", "Screening, on search seeds", undisturbed.command or "no command"):
        assert text in page
    assert (tmp_path / "figures" / "losses.png").is_file()
    assert len((tmp_path / "tables" / "tests.csv").read_text().splitlines()) == 1 + len(undisturbed.tests)


def test_a_finished_search_is_looked_at_again_without_its_data_and_models(
    undisturbed: FindResult, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.copy(undisturbed.folder / ANSWER_FILE, folder)
    again = FindResult.load(folder)
    assert again.sentence == undisturbed.sentence and again.command == undisturbed.command
    assert [one.spec for one in again.chosen] == [one.spec for one in undisturbed.chosen]
    assert again.outcome.history == undisturbed.outcome.history
    pd.testing.assert_frame_equal(again.tests, undisturbed.tests, check_exact=True)
    pd.testing.assert_frame_equal(again.screened, undisturbed.screened, check_exact=True)
    pages = [write_page(result, tmp_path / name) for name, result in (("before", undisturbed), ("again", again))]
    before, now = (page.read_text(encoding="utf-8") for page in pages)
    assert before == now


def test_a_search_that_has_not_ended_or_is_damaged_is_refused(undisturbed: FindResult, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"expected the folder of a search that has ended\. Run the search again"):
        FindResult.load(tmp_path)
    text = (undisturbed.folder / ANSWER_FILE).read_text(encoding="utf-8")
    (tmp_path / ANSWER_FILE).write_text(text.replace('"trials": ', '"trials": 1', 1), encoding="utf-8")
    with pytest.raises(CorruptionError, match=ANSWER_FILE):
        FindResult.load(tmp_path)
    write_record(tmp_path / ANSWER_FILE, {"title": "of another version"})
    with pytest.raises(HskdError, match="not written by this version of hskd"):
        FindResult.load(tmp_path)


def test_it_shows_itself_in_a_notebook(undisturbed: FindResult) -> None:
    html = undisturbed._repr_html_()
    assert "data:image/png;base64," in html and "<table" in html
    assert repr(undisturbed) == f"{undisturbed.title}\n{undisturbed.sentence}", "not every estimate of every candidate"


def test_an_unknown_student_is_refused(grid_file: Path) -> None:
    with pytest.raises(HskdError, match="--students nobody"):
        with_student(load_grid(str(grid_file)), "nobody")


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="expected a task"):
        find("no-such-task", out=tmp_path)
