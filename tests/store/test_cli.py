"""``hskd store`` from end to end, and its error messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store.conftest import Hskd, Setting

from hskd.spec import HSKSpec
from hskd.store.reader import Store
from hskd.store_format.manifest import Manifest


def numbers(text: str) -> dict[str, str]:
    """Return the rows of the table that ``inspect`` prints."""
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.count("│") == 3]
    return dict(rows)


def test_extract_derive_inspect_verify(
    setting: Setting, tmp_path: Path, hskd: Hskd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    superset, derived = tmp_path / "superset", tmp_path / "derived"
    extract = ("store", "extract", "--teacher", setting.teacher_folder, "--out", superset, *setting.options)
    extract = (*extract, "--dtype", "fp32", "--threads", 1)
    code, out, err = hskd(*extract)
    assert (code, out) == (0, f"store: {superset}\n")
    assert "this store needs " in err and "extract: 64 steps" in err
    held = Store.open(superset).manifest
    assert (held.layers, held.attention_layers, held.precision) == ((0, 1, 2), (1, 2), "fp16")
    assert held.origin.dtype == "fp32"

    derive = ("store", "derive", superset, "--spec", "2l_3t_0.1w", "--student-layers", 2, "--out", derived)
    code, out, err = hskd(*derive)
    assert (code, out) == (0, f"store: {derived}\n")
    kept = Store.open(derived).kept(np.arange(64))
    assert kept.layers == (1, 2) and kept.values.shape == (64 * 3, 2, 3)

    for command, folder in ((extract, superset), (derive, derived)):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        code, _, err = hskd(*command)
        assert code == 0 and f"{folder} is there already" in err
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    for folder in (superset, derived):
        code, out, err = hskd("store", "verify", folder)
        assert (code, out, err) == (0, f"{folder}: 1 shards, 64 examples: as written\n", "")

    code, out, err = hskd("store", "inspect", derived)
    table = numbers(out)
    assert (code, err) == (0, "")
    assert table["kind"] == "derived"
    assert HSKSpec.parse(table["spec"]) == HSKSpec.parse("2l_3t_0.1w")
    assert table["student layers"] == table["teacher layers"] == "1, 2"
    assert table["labels"] == "negative, positive"
    assert table["examples"] == "64" and table["kept tokens a layer"] == "192"
    assert table["real tokens"] == str(setting.train.offsets[-1])
    assert table["teacher fingerprint"] == setting.teacher.fingerprint
    assert table["data fingerprint"] == setting.train.fingerprint
    table = numbers(hskd("store", "inspect", superset)[1])
    assert table["kind"] == "superset" and table["attention layers"] == "1, 2" and "spec" not in table


def test_extract_what_specs_need(setting: Setting, tmp_path: Path, hskd: Hskd) -> None:
    extract = ("store", "extract", "--teacher", setting.teacher_folder, *setting.options, "--train-examples", 10)
    specs = ("--spec", "1l_3t_0.1w", "--spec", "1l_2t_0.5w,l_top=1,length=left", "--student-layers", 2)
    assert hskd(*extract, *specs, "--out", tmp_path / "a")[0] == 0
    held = Manifest.read(tmp_path / "a")
    assert (held.layers, held.attention_layers, held.precision) == ((1, 2), (2,), "fp16")
    assert held.examples == 10
    assert hskd(*extract, *specs, "--precision", "fp32", "--out", tmp_path / "b")[0] == 0
    assert Manifest.read(tmp_path / "b").precision == "fp32"
    assert hskd(*extract, "--layers", "2,0", "--attention-layers", "2", "--out", tmp_path / "c")[0] == 0
    held = Manifest.read(tmp_path / "c")
    assert (held.layers, held.attention_layers) == ((0, 2), (2,))
    for spec in ("1l_3t_0.1w", "1l_2t_0.5w,l_top=1,length=left"):
        out = tmp_path / HSKSpec.parse(spec).fingerprint
        assert hskd("store", "derive", tmp_path / "a", "--spec", spec, "--student-layers", 2, "--out", out)[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--spec", "1l_1t_0.1w"), "--spec goes with --student-layers"),
        (("--spec", "1l_1t_0.1w", "--student-layers", 2, "--layers", "1"), "--spec goes with --student-layers"),
        (("--spec", "1x", "--student-layers", 2), "spec '1x': expected layers_tokens_width"),
        (("--spec", "9l_1t_0.1w", "--student-layers", 2), "depth: n = 9 is out of range"),
        (("--layers", "0,7"), "--layers 0,7: the teacher has 0..2."),
        (("--attention-layers", "0"), "--attention-layers 0: the teacher has 1..2."),
        (("--layers", "all"), "--layers all: expected whole numbers separated by commas"),
        (("--precision", "int3"), "unknown selector 'int3'"),
        (("--train-examples", 65), "65 examples asked for; the split has 64"),
        (("--teacher", "nowhere"), "--teacher nowhere: no such folder; make one with `hskd teacher`"),
        (("--max-length", 2), "--max-length 2"),
    ],
)
def test_options_that_do_not_fit(
    setting: Setting, tmp_path: Path, hskd: Hskd, options: tuple[str | int, ...], said: str
) -> None:
    teacher = ("--teacher", setting.teacher_folder) if "--teacher" not in options else ()
    code, out, err = hskd("store", "extract", *teacher, "--out", tmp_path / "out", *setting.options, *options)
    assert (code, out) == (2, "")
    assert f"error: {said}" in err or said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_message_and_with_debug_a_traceback(tmp_path: Path, hskd: Hskd) -> None:
    arguments = ["store", "inspect", str(tmp_path / "none")]
    message = f"error: {tmp_path / 'none'}: no store (there is no manifest.json).\n"
    assert hskd(*arguments) == (2, "", message)
    # Runs the installed command in a process of its own.
    command = [str(Path(sys.executable).with_name("hskd")), "--debug", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout == ""
    assert "Traceback (most recent call last)" in run.stderr and "HskdError: " in run.stderr
