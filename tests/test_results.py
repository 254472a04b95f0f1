"""The committed results: complete, packed, and small; reports can be made of them."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from hskd.analysis.minimum import FindResult
from hskd.analysis.report.page import write_report
from hskd.analysis.table import studies
from hskd.artifacts import read_record
from hskd.grid.search import none_trials
from hskd.grid.spec import load_grid
from hskd.minimum.live import FIND_FILE, RATES_FOLDER
from hskd.results import COLUMNS, GRID_FILE, ResultsFolder, load
from hskd.trials.config import Machine, TrialConfig

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
MADE_HERE = ("demo", "demo-quick")
COMMITTED = sorted(path.parent for path in RESULTS.glob(f"*/{GRID_FILE}") if path.parent.name not in MADE_HERE)
SEARCHES = sorted(path.parent for path in RESULTS.glob(f"*/{FIND_FILE}"))
DRAWN = ("demo-3-seeds",)
"""Results whose reports are made with all figures. Drawing all would take minutes."""
DOCS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
FINDINGS = sorted(f"results/{path.name}" for path in ROOT.glob("results/*.md"))
PAGES = ("README.md", "results/rates/README.md", *FINDINGS, *DOCS)
UNSCORED = ("wnut17", "banking77")
"""Grids without predictions, which have many outputs an example. Their labels are not in the repository either."""
TREE = 20_000_000
"""Most bytes of all tracked files."""
TRIED = pd.read_csv(RESULTS / "rates" / "none.csv")  # none at several learning rates, from several grids

by_folder = pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)


def tracked() -> list[Path]:
    """Return the tracked files that exist here."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a repository")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_there_are_results() -> None:
    assert len(COMMITTED) >= 23
    assert {"demo-3-seeds", "mr-joint"} <= {folder.name for folder in COMMITTED}


@by_folder
def test_no_arm_has_fewer_seeds_than_it_claims(folder: Path) -> None:
    table = load(folder)
    assert sorted(table["trial"]) == sorted(ResultsFolder(folder).planned() or [])
    counts = Counter((row.student, row.arm, row.spec) for row in table.itertuples())
    assert min(counts.values()) >= len(load_grid(str(folder / GRID_FILE)).seed_list)


@by_folder
def test_the_grid_file_plans_the_trials_that_are_there(folder: Path) -> None:
    results = ResultsFolder(folder).results()
    configs = [TrialConfig.model_validate(result.config) for result in results.values()]
    assert [config.id for config in configs] == list(results)
    [machine] = {Machine(c.dtype, c.device, c.threads, c.build_threads) for c in configs}
    planned = [config.id for config in load_grid(str(folder / GRID_FILE)).trials(machine)]
    if any(config.files for config in configs):  # data outside the repository is part of the ids
        [files] = {tuple(config.files.items()) for config in configs}
        grid = load_grid(str(folder / GRID_FILE)).trials(machine)
        planned = [config.model_copy(update={"files": dict(files)}).id for config in grid]
    assert planned == ResultsFolder(folder).planned()


@by_folder
def test_everything_is_packed(folder: Path) -> None:
    kept = ResultsFolder(folder)
    assert not kept.trials.exists()
    table = load(folder)
    packed = pd.read_parquet(kept.table_file)
    assert list(packed.columns) == [*table.columns, "result"]
    assert set(COLUMNS) <= set(table.columns)
    assert packed["dev_scores"].map(list).tolist() == table["dev_scores"].tolist()
    same = packed.drop(columns=["result", "dev_scores"])
    pd.testing.assert_frame_equal(same, table.drop(columns="dev_scores"), check_exact=True, check_dtype=False)
    assert {trial: set(arrays) for trial, arrays in kept.packed_outputs().items()} == {
        trial: {result.scored_split} for trial, result in kept.results().items() if folder.name not in UNSCORED
    }


@pytest.mark.parametrize("folder", SEARCHES, ids=lambda folder: folder.name)
def test_a_search_is_whole(folder: Path) -> None:
    searched_rates = read_record(folder / FIND_FILE, "Restore it.")["settings"]["search_rates"]
    for part in (folder, folder / RATES_FOLDER) if searched_rates else (folder,):
        kept = ResultsFolder(part)
        table = load(part)
        assert not kept.trials.exists()
        assert sorted(table["trial"]) == sorted(kept.planned() or [])


@pytest.mark.parametrize("folder", SEARCHES, ids=lambda folder: folder.name)
def test_the_answer_of_a_search_is_that_of_its_trials(folder: Path) -> None:
    result, table = FindResult.load(folder), load(folder)
    scores = table.groupby(["arm", "spec", "seed"])["score"].agg(set)
    for (arm, index), by_seed in result.outcome.scores.items():
        spec = "" if arm == "none" else "all_all_all" if index is None else result.chosen[index].name
        for seed, scored in by_seed.items():
            assert scored.reported in scores.loc[(arm, spec, seed)]
    assert result.answer is None or result.answer in set(table["spec"])


@pytest.mark.parametrize(("name", "unit"), [("mr-joint", "%"), ("cola-joint", "Matthews x 100")])
def test_results_of_earlier_versions_have_the_unit_of_their_metric(name: str, unit: str) -> None:
    assert {study.unit for study in studies(RESULTS / name)} == {unit}


@by_folder
def test_the_table_can_be_analysed(folder: Path) -> None:
    assert sum(len(study.trials) for study in studies(folder)) == len(load(folder))


@pytest.mark.parametrize("name", DRAWN)
def test_a_report_can_be_made(name: str, tmp_path: Path) -> None:
    write_report(RESULTS / name, tmp_path)
    made = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {".html", ".csv", ".tex", ".png", ".svg"}


@pytest.mark.parametrize("name", sorted(set(TRIED["grid"])))
def test_the_table_of_rates_holds_the_grid_s_own_none(name: str) -> None:
    own = none_trials(RESULTS / name).set_index(["grid", "none_lr", "seed"]).sort_index()
    kept = TRIED.set_index(["grid", "none_lr", "seed"]).sort_index()
    pd.testing.assert_frame_equal(kept.loc[own.index], own)
    rates = TRIED[TRIED["grid"] == name].groupby("none_lr")["score"].mean()
    used = load_grid(str(RESULTS / name / GRID_FILE)).none_lr
    assert rates[used] > rates.max() - 0.0015, "none has a rate that is better for it, by more than a tenth of a point"


def test_the_figures_kept_are_those_that_a_page_shows() -> None:
    shown = set()
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        shown |= {(ROOT / page).parent.joinpath(link).resolve() for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)}
    kept = {path for path in tracked() if path.is_relative_to(RESULTS) and path.suffix in (".png", ".svg", ".html")}
    assert kept == {path for path in shown if path.is_relative_to(RESULTS)}


def test_links_of_the_pages_lead_somewhere() -> None:
    files = tracked()
    there = {*files, *(folder for file in files for folder in file.parents)}
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
        local = [link for link in links if not re.match(r"[a-z]+:", link)]
        assert [link for link in local if (ROOT / page).parent.joinpath(link).resolve() not in there] == [], page


def test_the_tracked_tree_is_small() -> None:
    assert sum(path.stat().st_size for path in tracked()) <= TREE
