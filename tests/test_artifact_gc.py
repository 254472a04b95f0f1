from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from hskd.artifact_gc import DAY, artifacts, collect
from hskd.artifacts import SCHEMAS, ArtifactFolders, lock_path
from hskd.cli.app import app
from hskd.errors import HskdError
from hskd.spec import HSKSpec


def make(work: Path, kind: str, days: float, size: int = 100, partial: bool = False) -> Path:
    """Make an artifact of ``size`` bytes that was last used a number of days ago."""
    folder = ArtifactFolders(work).folder(kind, {"kind": kind, "days": days})
    place = folder.with_name(folder.name + ".partial") if partial else folder
    place.mkdir()
    (place / "content").write_bytes(b"x" * size)
    used = time.time() - days * DAY
    os.utime(folder.with_name(folder.name + ".recipe.json"), (used, used))
    return place


def test_lists_the_most_recently_used_first(tmp_path: Path) -> None:
    old, new = make(tmp_path, "stores", 3, size=7), make(tmp_path, "teachers", 1)
    half = make(tmp_path, "stores", 2, partial=True)
    listed = artifacts(tmp_path)
    assert [artifact.folder for artifact in listed] == [new, half, old]
    assert [artifact.finished for artifact in listed] == [True, False, True]
    assert listed[2].bytes == 7
    assert listed[2].recipe == {"kind": "stores", "days": 3, "schema": SCHEMAS["stores"]}


def test_asking_again_is_a_use(tmp_path: Path) -> None:
    folder = make(tmp_path, "stores", 40)
    assert ArtifactFolders(tmp_path).folder("stores", {"kind": "stores", "days": 40}) == folder
    assert collect(tmp_path, older_than_days=30) == []
    assert folder.is_dir()


def test_removes_what_is_old(tmp_path: Path) -> None:
    old, new = make(tmp_path, "stores", 40), make(tmp_path, "stores", 20)
    teacher = make(tmp_path, "teachers", 50)
    assert [a.folder for a in collect(tmp_path, 30, ("stores",), dry_run=True)] == [old]
    assert old.is_dir()
    assert [a.folder for a in collect(tmp_path, 30, ("stores",))] == [old]
    assert not old.exists() and new.is_dir() and teacher.is_dir()
    assert {a.folder for a in artifacts(tmp_path)} == {new, teacher}


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    folder = make(tmp_path, "trials", 40)
    with FileLock(lock_path(folder)):
        assert collect(tmp_path, 30) == []
    assert folder.is_dir()
    assert len(collect(tmp_path, 30)) == 1


def test_no_work_folder(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no such folder; --work names"):
        artifacts(tmp_path / "none")


def test_commands(tmp_path: Path) -> None:
    spec = HSKSpec.parse("2l_3t_0.5w,length=left")
    recipes = {
        "stores": {"spec": spec.model_dump(mode="json"), "student_layers": 3},
        "teachers": {"teacher": {"model": "offline:minilm"}},
        "students": {"student": {"layers": 3, "heads": 2}, "teacher": "key"},
        "trials": {
            "settings": {"arm": "spec", "seed": 4},
            "teacher": {"model": "m"},
            "spec": spec.model_dump(mode="json"),
        },
    }
    for kind, recipe in recipes.items():
        ArtifactFolders(tmp_path).folder(kind, recipe).mkdir()
    wide = {"COLUMNS": "200"}
    listed = CliRunner().invoke(app, ["cache", "ls", "--work", str(tmp_path)], env=wide).stdout
    for text in ("4 artifacts", spec.label, "model offline:minilm", "layers 3, heads 2", "arm spec, seed 4"):
        assert text in listed
    CliRunner().invoke(app, ["cache", "gc", "--work", str(tmp_path), "--older-than", "0", "--kind", "trials"], env=wide)
    assert sorted(artifact.kind for artifact in artifacts(tmp_path)) == ["stores", "students", "teachers"]
