"""``hskd demo --quick``: the real teacher, the real sentences, every step, twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


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
    trials = pd.read_csv(folder / "out" / "trials.csv")
    assert sorted(trials["arm"]) == ["full", "none", *["spec"] * 6]
    specs = trials[trials["arm"] == "spec"]
    assert specs["fraction"].between(0.0005, 0.3).sum() >= 5
    assert specs["fraction"].is_monotonic_increasing
    assert trials["peak_memory_bytes"].max() < 4 * 2**30
    # Every arm trains for as many epochs in all.
    assert (trials["hsk_epochs"] + trials["prediction_epochs"]).nunique() == 1


def test_a_second_run_makes_nothing_anew(quick) -> None:
    folder, _ = quick
    before = stamps(folder / "work")
    table = (folder / "out" / "trials.csv").read_bytes()
    done = hskd("demo", "--quick", "--out", str(folder / "out"), "--work", str(folder / "work"))
    assert done.returncode == 0, done.stderr
    assert stamps(folder / "work") == before
    assert (folder / "out" / "trials.csv").read_bytes() == table
    assert "HSK stage" not in done.stderr
    assert "fine-tuning:" not in done.stderr


def test_the_python_example_of_the_readme_runs(quick, tmp_path: Path) -> None:
    folder, _ = quick
    teachers = [path for path in (folder / "work" / "teachers").iterdir() if path.is_dir()]
    assert len(teachers) == 1
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").symlink_to(teachers[0])
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "HSKAmount(kept_values=" in done.stdout
    assert "torch.Size([256, 2, 38])" in done.stdout
