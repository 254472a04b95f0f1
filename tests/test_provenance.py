from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hskd.provenance import git_commit

ROOT = Path(__file__).resolve().parents[1]
REPORT = "import json; from hskd.provenance import provenance; print(json.dumps(provenance()))"


def recorded(environment: dict[str, str], folder: Path) -> dict[str, object]:
    """Return the provenance that a process with this environment records in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def repository(folder: Path) -> str:
    """Make a git repository with one commit, and return the commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (folder / "theirs.txt").write_text("theirs")
    for arguments in (["init", "-q"], ["add", "theirs.txt"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *arguments], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_without_git_and_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    facts = recorded({"PATH": str(tmp_path), "HOME": str(home)}, tmp_path)
    assert facts["git_commit"] is None
    assert facts["torch"] and facts["hskd"] and facts["cores"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_copy_inside_another_repository_does_not_record_its_commit(tmp_path: Path) -> None:
    commit = repository(tmp_path)
    packages = tmp_path / "venv" / "site-packages"
    shutil.copytree(ROOT / "hskd", packages / "hskd", ignore=shutil.ignore_patterns("__pycache__"))
    facts = recorded(os.environ | {"PYTHONPATH": str(packages)}, tmp_path)
    assert facts["git_commit"] is None
    assert git_commit(packages / "hskd" / "provenance.py") is None
    assert git_commit(tmp_path / "theirs.txt") == commit


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_that_the_environment_names_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    repository(theirs)
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(theirs))
    (ours / "theirs.txt").write_text("untracked")
    assert git_commit(ours / "theirs.txt") is None


def test_the_commit_that_pip_installed_from(tmp_path: Path) -> None:
    """A wheel holds no repository, but pip records its origin (PEP 610)."""
    shutil.copytree(ROOT / "hskd", tmp_path / "hskd", ignore=shutil.ignore_patterns("__pycache__"))
    info = tmp_path / "hskd-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hskd\nVersion: 9\n")
    origin = {"url": "https://example.org/hskd.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    facts = recorded(os.environ | {"PYTHONPATH": str(tmp_path)}, tmp_path)
    assert (facts["git_commit"], facts["hskd"]) == ("c0ffee", "9")
