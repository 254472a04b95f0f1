"""Every command takes URLs for its inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
from store.conftest import Hskd, Setting

from hskd.remote.contents import CHECKSUMS
from hskd.store.reader import Store
from hskd.store_format.layout import MANIFEST, shard_name

MACHINE = ("--device", "cpu", "--dtype", "fp32", "--threads", 1)


def names(url: str) -> set[str]:
    system, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1 :] for path in system.find(root)}


def test_from_teacher_to_trial_at_urls(
    setting: Setting, tmp_path: Path, hskd: Hskd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = f"file://{tmp_path}/share"
    task = (*setting.options[:-1], "work", *MACHINE)

    def run(*arguments: str | int | Path) -> tuple[str, str]:
        code, out, err = hskd(*map(str, arguments))
        assert code == 0, err
        return out, err

    run("push", setting.teacher_folder, f"{there}/body")
    teacher = ("teacher", "--model", f"{there}/body", "--epochs", 1, "--out", f"{there}/teacher", *task)
    out, _ = run(*teacher)
    assert f"teacher: {there}/teacher" in out
    assert {"model.safetensors", "metrics.json", CHECKSUMS} <= names(f"{there}/teacher")

    sizes = ("--layers", 2, "--heads", 2, "--ffn", 24, "--importance-examples", 8)
    student = ("student", "--teacher", f"{there}/teacher", "--out", f"{there}/student", *sizes, *task)
    run(*student)
    extract = ("store", "extract", "--teacher", f"{there}/teacher", "--out", f"{there}/superset", *task)
    out, err = run(*extract)
    assert out == f"store: {there}/superset\n" and "extract: 64 steps" in err
    assert names(f"{there}/superset") == {MANIFEST, shard_name(0)}
    derive = ("store", "derive", f"{there}/superset", "--spec", "1l_2t_0.5w", "--student-layers", 2)
    run(*derive, "--out", f"{there}/derived")
    distill = ("distill", "--student", f"{there}/student", "--store", f"{there}/derived", "--no-data", *MACHINE)
    distill = (*distill, "--hsk-epochs", 1, "--prediction-epochs", 1, "--out", f"{there}/trial")
    out, err = run(*distill)
    assert out.startswith("1l_2t_0.5w: ") and f"trial: {there}/trial" in out and "HSK stage: 2 steps" in err
    assert {"result.json", "student/model.safetensors", "student/tokenizer.json"} <= names(f"{there}/trial")
    for scheme in ("file", "memory", "s3"):
        assert not (tmp_path / f"{scheme}:").exists()  # the folder that a URL would create if it were used as a path

    # On another machine with an empty cache, everything is found finished.
    monkeypatch.chdir(tmp_path / "share")
    for command in (teacher, student, extract, (*derive, "--out", f"{there}/derived"), distill):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "share").rglob("*") if "work" not in path.parts}
        _, err = run(*command)
        assert f"{there}/{str(command[-1]).rpartition('/')[2]} is there already" in err or "is there already" in err
        after = {path: path.stat().st_mtime_ns for path in (tmp_path / "share").rglob("*") if "work" not in path.parts}
        assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}
        assert all(after[path] == before[path] for path in before if path.is_file())
    monkeypatch.chdir(tmp_path)

    out, _ = run("store", "verify", f"{there}/superset")
    assert out == f"{there}/superset: 1 shards, 64 examples: as written\n"
    out, _ = run("store", "verify", f"{there}/teacher")
    assert out.endswith(" files: as written\n")
    out, _ = run("store", "inspect", f"{there}/superset")
    assert "superset" in out
    out, _ = run("pull", f"{there}/superset", "mine")
    assert out == f"{there}/superset: in mine\n"
    Store.open("mine").verify()
    monkeypatch.setenv("COLUMNS", "300")
    out, _ = run("cache", "ls")
    assert f"{there}/superset" in out

    # A run with other settings does not replace an existing artifact.
    code, _, err = hskd(*derive[:-2], "--student-layers", 2, "--out", f"{there}/superset")
    assert code == 2 and "holds another store already" in err
    shard = tmp_path / "share" / "superset" / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, _, err = hskd("store", "verify", f"{there}/superset")
    assert code == 2 and f"{there}/superset/{shard_name(0)}: its SHA-256" in err
    assert json.loads((tmp_path / "share" / "superset" / MANIFEST).read_text())["examples"] == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("push", "FOLDER", "somewhere"), "somewhere: expected a URL, such as s3://bucket/store"),
        (("pull", "somewhere", "out"), "somewhere: expected a URL"),
        (("pull", "memory://none", "out"), "memory://none: there is no store, teacher, student or trial"),
        (("push", "nowhere", "memory://none"), "nowhere: is not a finished store, teacher, student or trial"),
        (("store", "verify", "memory://none"), "memory://none: there is no store"),
        (("store", "inspect", "memory://none"), "memory://none: there is no store"),
        (
            ("store", "derive", "memory://none", "--spec", "1l_1t_0.1w", "--student-layers", 2, "--out", "out"),
            "no store",
        ),
        (
            ("store", "derive", "FOLDER", "--spec", "1l_1t_0.1w", "--student-layers", 2, "--out", "gopher://x/y"),
            "gopher://x/y: cannot be opened: Protocol not known: gopher",
        ),
    ],
)
def test_refused(
    superset: Store,
    tmp_path: Path,
    hskd: Hskd,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = hskd(*[superset.folder if word == "FOLDER" else word for word in arguments])
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
