"""``hskd demo --quick``: the real teacher, the real sentences, every step, twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hskd.analysis import finished
from hskd.analysis.finished import FILE, FinishedDemo
from hskd.artifacts import SCHEMAS
from hskd.results import load


def hskd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from hskd.cli.app import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stamps(work: Path) -> dict[Path, int]:
    """When each file of each artifact was written; recipes are touched at every use."""
    files = [path for path in work.rglob("*") if path.is_file() and not path.name.endswith((".recipe.json", ".lock"))]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, hskd("demo", "--quick", "--out", str(folder / "out"), "--work", str(folder / "work"))


@pytest.mark.timeout(900)
def test_the_quick_demo_ends_with_a_table_and_a_figure(quick) -> None:
    folder, done = quick
    assert done.returncode == 0, done.stderr
    figure = folder / "out" / "marginal_utility.png"
    assert str(figure) in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    trials = load(folder / "out")
    assert sorted(trials["arm"]) == ["full", "none", *["spec"] * 6]
    specs = trials[trials["arm"] == "spec"]
    assert specs["fraction"].between(0.0005, 0.3).sum() >= 5
    assert specs["fraction"].is_monotonic_increasing
    assert trials["peak_memory_bytes"].max() < 4 * 2**30
    # Every arm trains for as many epochs in all.
    assert (trials["hsk_epochs"] + trials["prediction_epochs"]).nunique() == 1


def test_a_second_run_prints_the_same_without_torch(quick) -> None:
    folder, first = quick
    code = """
import sys
from hskd.cli.app import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "pandas", "matplotlib") if name in sys.modules])
"""
    arguments = ["demo", "--quick", "--out", str(folder / "out"), "--work", str(folder / "work")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == first.stdout + "[]\n"


@pytest.mark.parametrize(
    "change",
    ["another seed", "a result is newer", "the figure is gone", "other instructions", "other code", "another model"],
)
def test_a_demo_that_differs_is_not_taken_for_the_finished_one(
    quick, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(quick[0] / "out", folder)
    assert FinishedDemo.of(folder, "demo-quick", 1).summary() in quick[1].stdout
    if change == "a result is newer":
        os.utime(folder / "trials.parquet")
    elif change == "the figure is gone":
        (folder / "marginal_utility.png").unlink()
    elif change == "other instructions":
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2" if "ATEN_CPU_CAPABILITY" not in os.environ else "default")
    elif change == "other code":
        monkeypatch.setitem(SCHEMAS, "students", SCHEMAS["students"] + 1)
    elif change == "another model":
        (tmp_path / "model.safetensors").write_bytes(b"other weights")
        monkeypatch.setattr(finished, "minilm_folder", lambda: tmp_path)
    assert FinishedDemo.of(folder, "demo-quick", 2 if change == "another seed" else 1).summary() is None


def test_without_its_summary_a_second_run_makes_nothing_anew(quick) -> None:
    folder, first = quick
    (folder / "out" / FILE).unlink()
    before = stamps(folder / "work")
    table = (folder / "out" / "trials.parquet").read_bytes()
    done = hskd("demo", "--quick", "--out", str(folder / "out"), "--work", str(folder / "work"))
    assert done.returncode == 0, done.stderr
    assert stamps(folder / "work") == before
    assert (folder / "out" / "trials.parquet").read_bytes() == table
    assert "HSK stage" not in done.stderr
    assert "teacher: " in first.stderr and "teacher: " not in done.stderr
