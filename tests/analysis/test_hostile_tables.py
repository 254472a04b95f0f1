"""Random tables of trials are analysed or rejected with our own error, also beside results that contradict them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from support import hostile
from support.mutations import times
from support.trial_tables import LADDER, table

from hskd.analysis.report import provenance, sheets
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.equal_bytes import equal_bytes, sentences
from hskd.analysis.stats.joint import next_byte, pareto, surface
from hskd.analysis.stats.strategies import compare_strategies
from hskd.analysis.stats.sufficiency import minimum_sufficient
from hskd.analysis.table import Study, read_trials, studies
from hskd.errors import HskdError
from hskd.results import NUMBERS, ResultsFolder, load, pack, unpack, write_csv

COUNT = 200
DEMO = Path(__file__).resolve().parents[2] / "results" / "demo-3-seeds"
SCORES = {"none": [0.70, 0.71], **{name: [0.74, 0.75] for name in LADDER[:3]}, "full": [0.79, 0.80]}
TABLE = table(SCORES).assign(
    hsk_seconds=1.5, prediction_seconds=2.5, threads=1, hsk_epochs=2.0, prediction_lr=1e-3, git_commit="abc"
)


def damaged(number: int) -> bytes | pd.DataFrame:
    """Return a CSV file or a table with some cells, columns, rows or characters changed."""
    rng = hostile.random_of("table", number)
    trials = TABLE.astype(object)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        column = rng.choice(list(trials.columns))
        act = rng.random()
        if act < 0.6:
            trials.iat[rng.randrange(len(trials)), trials.columns.get_loc(column)] = rng.choice(hostile.VALUES)
        elif act < 0.7:
            cell = rng.choice(hostile.VALUES)
            trials[column] = pd.Series([cell] * len(trials), index=trials.index, dtype=object)
        elif act < 0.8 and len(trials.columns) > 1:
            trials = trials.drop(columns=column)
        elif act < 0.9:
            trials = pd.concat([trials, trials.iloc[rng.randrange(len(trials)) :]], ignore_index=True)
        else:
            trials = trials.drop(index=rng.sample(list(trials.index), rng.randrange(len(trials)))).reset_index(
                drop=True
            )
        if trials.empty:
            break
    if rng.random() < 0.3:
        return trials
    try:
        text = trials.to_csv(index=False)
    except ValueError:  # a cell that pandas cannot write
        return trials
    if rng.random() < 0.6:
        text = hostile.mangled(rng, text)
    return text.encode("utf-8", "surrogatepass")


def analyse(study: Study, whole: bool) -> None:
    """Compute everything in a report except the figures, or only its facts and scores."""
    provenance.facts(study, None)
    points(study, 0.95)
    if not whole:
        return
    sheets.points_sheet(points(study, 0.95)).latex()
    marginal_utility(study, 0.95)
    answers = [answer.sentence for answer in minimum_sufficient(study)]
    assert all(isinstance(answer, str) for answer in answers)
    compare_strategies(study, 0.95)
    front = pareto(study, 0.95)
    assert len(front) == len(study.points)
    next_byte(study, 0.95)
    assert all(isinstance(sentence, str) for sentence in sentences(equal_bytes(study)))
    if study.dimension == "joint":
        surface(study)


def use(value: bytes | pd.DataFrame, whole: bool) -> None:
    if isinstance(value, pd.DataFrame):
        analyse(Study.of(value), whole)
        return
    Path("trials.csv").write_bytes(value)
    for study in studies(Path("trials.csv")):
        analyse(study, whole)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
def test_random_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused, slowest = 0, (0.0, -1)
    for number, value in hostile.inputs(damaged, COUNT):
        started = time.perf_counter()
        try:
            with hostile.bounded():
                use(value, whole=number % 5 == 0)
        except HskdError as error:
            refused += 1
            assert 10 < len(str(error)) < 5000, number
        except BaseException as error:
            error.add_note(f"input {number}")
            raise
        slowest = max(slowest, (time.perf_counter() - started, number))
    total = times(COUNT)
    print(f"tables: {total} inputs, {refused} refused, slowest {slowest[0]:.2f} s (input {slowest[1]})")
    assert total / 10 < refused < total * 0.97


def test_text_in_any_column_of_numbers_is_refused_by_name(tmp_path: Path) -> None:
    whole = load(DEMO)
    for column in NUMBERS:
        trials = whole.astype({column: object})
        trials.loc[3, column] = "plenty"
        for written in (trials, write_csv(trials, tmp_path / "trials.csv")):
            with pytest.raises(
                HskdError, match=rf"column {column} \(plenty\) is (missing or )?not a number in 1 of .* row 4"
            ):
                Study.of(written) if isinstance(written, pd.DataFrame) else read_trials(written)


def test_a_table_beside_results_must_say_what_they_say(tmp_path: Path) -> None:
    out = shutil.copytree(DEMO, tmp_path / "results")
    file = write_csv(load(out), out / "trials.csv")
    [study] = studies(file)
    assert study.folder == out
    pd.testing.assert_frame_equal(study.scores, studies(out)[0].scores)
    changed = load(out)
    changed.loc[2, "score"] = 0.99
    write_csv(changed, file)
    with pytest.raises(HskdError, match=r"column score of trial \w+ says 0\.99, and its result 0\.7"):
        studies(file)
    write_csv(load(out).iloc[1:], file)
    with pytest.raises(HskdError, match="lacks 1 trials of the results beside it"):
        studies(file)
    alone = Path(shutil.move(file, tmp_path / "alone.csv"))
    [study] = studies(alone)
    assert study.folder is None
    assert dict(provenance.facts(study, study.folder))["read from"].startswith("the table alone")


def test_results_that_come_after_a_table_was_packed_are_read(tmp_path: Path) -> None:
    out = shutil.copytree(DEMO, tmp_path / "results")
    whole = load(out)
    unpack(out)
    late = ResultsFolder(out).result_files()[:5]
    for path in late:
        path.rename(tmp_path / path.name)
    packed_alone = shutil.copytree(out, tmp_path / "early")
    pack(out)  # as a run that was killed before these five leaves it
    assert len(load(out)) == len(load(packed_alone)) == len(whole) - 5
    facts = dict(provenance.facts(studies(out)[0], out))
    assert facts["trials not done"] == f"5 of the grid's {len(whole)}"
    (out / "trials").mkdir(exist_ok=True)
    for path in late:  # their times do not matter: they may be older than the table
        (tmp_path / path.name).rename(path)
        os.utime(path, (0, 0))
    pd.testing.assert_frame_equal(read_trials(out), read_trials(DEMO))
    assert "trials not done" not in dict(provenance.facts(studies(out)[0], out))
