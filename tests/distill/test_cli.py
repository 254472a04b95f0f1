"""The command line from data to a trained student, and its error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from support.checkpoints import save_old_checkpoint
from transformers import BertTokenizerFast, pipeline

from hskd.cli.app import main

CPU = ["--device", "cpu", "--dtype", "fp32"]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run ``hskd`` with these arguments in a folder of its own: exit code, output, messages."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, data_folder: Path, tokenizer: BertTokenizerFast
) -> tuple[Path, list[str]]:
    """A folder with a teacher, a student and a superset, each made by its command, and the options of the task."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("made")
    make_bert(num_hidden_layers=4).save_pretrained(root / "body")
    tokenizer.save_pretrained(root / "body")
    task = ["--task", "custom", "--data", str(data_folder), "--text-columns", "sentence", "--label-column", "mood"]
    task += ["--work", str(root / "work"), *CPU]
    commands = (
        ["teacher", "--model", root / "body", "--epochs", 2, "--lr", 3e-3, "--out", root / "teacher"],
        ["student", "--teacher", root / "teacher", "--layers", 2, "--heads", 2, "--ffn", 24, "--out", root / "student"],
        ["store", "extract", "--teacher", root / "teacher", "--precision", "fp32", "--out", root / "store"],
    )
    with pytest.MonkeyPatch.context() as patch:
        for command in commands:
            patch.setattr(sys, "argv", ["hskd", *map(str, command), *task])
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, command
    return root, task


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


RATES = ["--hsk-epochs", "2", "--prediction-epochs", "2", "--hsk-lr", "1e-3", "--prediction-lr", "1e-3"]


def test_offline_and_online(made: tuple[Path, list[str]], cli: Cli, tmp_path: Path) -> None:
    root, task = made
    shared = ["distill", "--student", root / "student", "--spec", "2l_3t_0.5w,precision=fp32", *RATES, *task]
    for name, source in (("offline", ["--store", root / "store"]), ("online", ["--teacher", root / "teacher"])):
        code, out, err = cli(*shared, *source, "--out", tmp_path / name)
        assert code == 0, err
        assert out.startswith("2l_3t_0.5w,precision=fp32: ")
        assert "% of full HSK" in out and "dev: accuracy" in out and "test: accuracy" in out
        assert f"trial: {tmp_path / name}" in out
        assert "HSK stage: 4 steps" in err and "prediction stage: 4 steps" in err
    offline, online = result(tmp_path / "offline"), result(tmp_path / "online")
    assert (offline["source"], online["source"]) == ("offline", "online")
    for field in ("spec", "fraction", "kept_values", "teacher", "student", "data", "train_examples"):
        assert offline[field] == online[field], field
    for stage in ("hsk", "prediction"):
        found, expected = offline["stages"][stage]["last_loss"], online["stages"][stage]["last_loss"]
        assert found == pytest.approx(expected, rel=1e-4)

    # The trained student is an ordinary model.
    classify = pipeline("text-classification", model=str(tmp_path / "offline" / "student"), device="cpu")
    assert classify("a warm and funny film")[0]["label"] in ("negative", "positive")


def test_a_derived_store_serves_and_a_finished_trial_is_read(
    made: tuple[Path, list[str]], cli: Cli, tmp_path: Path
) -> None:
    root, task = made
    spec, derived = "1l_2t_0.25w,precision=fp32", tmp_path / "derived"
    derive = ["store", "derive", root / "store", "--spec", spec, "--student-layers", "2", "--out", derived]
    assert cli(*derive)[0] == 0
    shared = ["distill", "--student", root / "student", *RATES, *task]
    placed = ["--store-on-device", "always"]
    commands = [[*shared, "--store", derived], [*shared, "--store", root / "store", "--spec", spec, *placed]]
    outputs = [cli(*command, "--out", tmp_path / str(i)) for i, command in enumerate(commands)]
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    assert ["placed on cpu" in err for _, _, err in outputs] == [False, True]
    weights = [(tmp_path / str(i) / "student" / "model.safetensors").read_bytes() for i in range(2)]
    assert weights[0] == weights[1]
    code, _, err = cli(*shared, "--teacher", root / "teacher", *placed, "--out", tmp_path / "online")
    assert code == 2 and "--store-on-device always: the teacher runs on every batch" in " ".join(err.split())

    code, out, err = cli(*commands[0], "--out", tmp_path / "0")
    assert code == 0 and out == outputs[0][1] and "steps" not in err
    code, _, err = cli(*commands[0], "--seed", "1", "--out", tmp_path / "0")
    assert code == 2 and "holds a trial with other settings" in err


def test_capture_needs_a_gpu(made: tuple[Path, list[str]], cli: Cli, tmp_path: Path) -> None:
    root, task = made
    code, _, err = cli(
        "distill", "--student", root / "student", "--store", root / "store", *task, "--out", tmp_path / "t", "--capture"
    )
    assert code == 2
    assert "--capture: CUDA graphs need a CUDA device, and this run is on cpu; leave it out." in " ".join(err.split())
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("arm", ["full", "none", "paper_none", "gold", "shuffled"])
def test_arms(made: tuple[Path, list[str]], cli: Cli, tmp_path: Path, arm: str) -> None:
    root, task = made
    arguments = ["distill", "--student", root / "student", "--store", root / "store", "--arm", arm, *RATES, *task]
    arguments += ["--spec", "all_all_all,precision=fp32", "--out", tmp_path / arm]
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert set(result(tmp_path / arm)["stages"]) == (
        {"hsk", "prediction"} if arm in ("full", "shuffled") else {"prediction"}
    )
    assert ("of full HSK" in out) == (arm in ("full", "shuffled"))


def test_a_student_of_a_checkpoint(
    made: tuple[Path, list[str]], cli: Cli, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    root, task = made
    save_old_checkpoint(tmp_path / "old", tokenizer)
    student = ["student", "--teacher", root / "teacher", "--kind", "tinybert", "--checkpoint", tmp_path / "old"]
    code, out, err = cli(*student, "--head-seed", 3, "--out", tmp_path / "student", *task)
    assert code == 0, err
    assert "parameters" in out and f"student: {tmp_path / 'student'}" in out
    assert "9 of its weights do not exist in the student" in err
    distill = ["distill", "--student", tmp_path / "student", "--spec", "1l_3t_0.5w", *RATES, *task]
    for name, source in (("offline", ["--store", root / "store"]), ("online", ["--teacher", root / "teacher"])):
        code, out, err = cli(*distill, *source, "--out", tmp_path / name)
        assert code == 0, err
        assert (tmp_path / name / "student" / "fit_dense.safetensors").is_file()
    save_old_checkpoint(tmp_path / "wide", tokenizer, fit_dense=48)
    student[-1] = tmp_path / "wide"
    assert cli(*student, "--out", tmp_path / "for another", *task)[0] == 0
    distill[2] = tmp_path / "for another"
    assert_refused(
        cli(*distill, "--store", root / "store", "--out", tmp_path / "refused"), "trained for another teacher"
    )


def test_compat(made: tuple[Path, list[str]], cli: Cli, tmp_path: Path) -> None:
    root, task = made
    shared = ["distill", "--student", root / "student", "--teacher", root / "teacher", *RATES, *task]
    switches = ["--compat", "zero_dropped, pads_in_loss", "--compat", "best_epoch"]
    code, _, err = cli(*shared, "--spec", "2l_3t_0.5w", *switches, "--out", tmp_path / "departs")
    assert code == 0, err
    assert result(tmp_path / "departs")["settings"]["compat"] == ["best_epoch", "pads_in_loss", "zero_dropped"]
    code, _, err = cli(*shared, "--compat", "zero_dropped,pads_in_los", "--out", tmp_path / "unknown")
    assert code == 2 and "--compat pads_in_los:" in err and "'pads_in_loss'" in err
    offline = ["distill", "--student", root / "student", "--store", root / "store", *RATES, *task]
    code, _, err = cli(*offline, "--compat", "pads_in_loss", "--out", tmp_path / "offline")
    assert code == 2 and "compat pads_in_loss cannot come from a store" in err and "--teacher" in err


# Errors that a user can fix are one message and exit code 2. STUDENT and so on are folders of the fixture.
DISTILL = ["distill", "--out", "out", "--student", "STUDENT"]
ERRORS = {
    "neither": (DISTILL, "give either --store (offline) or --teacher (online)"),
    "both": ([*DISTILL, "--store", "STORE", "--teacher", "TEACHER"], "give either --store (offline) or --teacher"),
    "no student": (
        ["distill", "--out", "out", "--student", "nowhere", "--store", "STORE"],
        "--student nowhere: no such folder; make one with `hskd student`",
    ),
    "no teacher": ([*DISTILL, "--teacher", "nowhere"], "--teacher nowhere: no such folder; make one with"),
    "no store": ([*DISTILL, "--store", "nowhere"], "nowhere: no store"),
    "no model in the folder": (
        ["distill", "--out", "out", "--student", "EMPTY", "--store", "STORE"],
        "EMPTY: no weights there; expected one of model.safetensors",
    ),
    "selector": (
        [*DISTILL, "--store", "STORE", "--spec", "1l_3t_0.1w,length=rigth"],
        "length: unknown selector 'rigth'; known: attention, ",
    ),
    "field": ([*DISTILL, "--store", "STORE", "--spec", "1l_3t_0.1w,ltop=3"], "'ltop' must name one of: depth,"),
    "form": ([*DISTILL, "--store", "STORE", "--spec", "a little"], "expected layers_tokens_width"),
    "spec file": ([*DISTILL, "--store", "STORE", "--spec", "nowhere.json"], "nowhere.json: no such file"),
    "k": ([*DISTILL, "--store", "STORE", "--spec", "1l_0t_0.1w"], "length=attention_no_sep: field k"),
    "w": (
        [*DISTILL, "--store", "STORE", "--spec", "1l_3t_1.5w"],
        "width=magnitude: field w: Input should be less than or equal to 1",
    ),
    "w is zero": (
        [*DISTILL, "--store", "STORE", "--spec", "1l_3t_0w"],
        "width=magnitude: field w: Input should be greater than 0",
    ),
    "n": ([*DISTILL, "--store", "STORE", "--spec", "4l_3t_0.1w"], "n = 4 is out of range"),
    "l_top": ([*DISTILL, "--store", "STORE", "--spec", "1l_3t_0.1w,l_top=5"], "l_top = 5 is out of range"),
    "rate": ([*DISTILL, "--store", "STORE", "--hsk-lr", "-1"], "--hsk-lr -1.0: Input should be greater than 0"),
    "epochs": ([*DISTILL, "--store", "STORE", "--hsk-epochs", "-1"], "--hsk-epochs -1: Input should be greater"),
    "shuffled online": ([*DISTILL, "--teacher", "TEACHER", "--arm", "shuffled"], "needs a store: give --store"),
    "too many examples": ([*DISTILL, "--store", "STORE", "--train-examples", "65"], "the split has 64"),
    "max length": (
        [*DISTILL, "--store", "STORE", "--max-length", "129"],
        "has positions for 64 tokens; give at most that",
    ),
    "other max length": (
        [*DISTILL, "--store", "STORE", "--max-length", "8"],
        "max_length is 128 in the store and 8 here",
    ),
    "layers": (
        ["student", "--teacher", "TEACHER", "--layers", "9", "--out", "out"],
        "layers: 9 is out of range; this teacher allows 1 to 4",
    ),
    "no checkpoint": (
        ["student", "--teacher", "TEACHER", "--kind", "tinybert", "--out", "out"],
        "--kind tinybert: a student of kind tinybert takes either checkpoint or general",
    ),
    "a checkpoint to prune": (
        ["student", "--teacher", "TEACHER", "--checkpoint", "EMPTY", "--out", "out"],
        "--checkpoint is for students of kind tinybert; kind rosita has --layers",
    ),
    "sizes of a checkpoint": (
        ["student", "--teacher", "TEACHER", "--kind", "tinybert", "--checkpoint", "EMPTY", "--ffn", "8", "--out", "o"],
        "--ffn is for students of kind rosita; kind tinybert has --checkpoint, --head-seed",
    ),
    "no checkpoint in the folder": (
        ["student", "--teacher", "TEACHER", "--kind", "tinybert", "--checkpoint", "EMPTY", "--out", "out"],
        "EMPTY: no config.json there",
    ),
    "precision": (
        ["store", "extract", "--teacher", "TEACHER", "--out", "out", "--precision", "fp12"],
        "unknown selector 'fp12'",
    ),
    "no such layer": (["store", "extract", "--teacher", "TEACHER", "--out", "out", "--layers", "0,7"], "--layers 0,7"),
    "model": (["teacher", "--model", "offline:gpt9", "--out", "out"], "offline:gpt9"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(made: tuple[Path, list[str]], cli: Cli, tmp_path: Path, case: str) -> None:
    root, task = made
    arguments, message = ERRORS[case]
    (tmp_path / "EMPTY").mkdir()
    names = {"STUDENT": root / "student", "STORE": root / "store", "TEACHER": root / "teacher"}
    assert_refused(cli(*[names.get(word, word) for word in arguments], *task), message)
    assert not (tmp_path / "out" / "result.json").exists()


def assert_refused(answer: tuple[int, str, str], message: str) -> None:
    code, out, err = answer
    assert code == 2, (code, out, err)
    assert err.count("error: ") == 1 and "Traceback" not in err + out
    said = err[err.index("error: ") :]
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not out


TASK_ERRORS = {
    "unknown task": (["--task", "colla"], "unknown task 'colla'"),
    "no data": (["--task", "custom"], "Task custom needs --data"),
    "missing folder": (["--task", "custom", "--data", "nowhere"], "nowhere: no such file or folder"),
    "missing file": (["--task", "custom", "--data", "."], "no train file"),
    "no columns": (["--task", "custom", "--data", "DATA"], "['sentence', 'mood']"),
    "missing column": (
        ["--task", "custom", "--data", "DATA", "--text-columns", "text", "--label-column", "mood"],
        "no column 'text'; it has ['sentence', 'mood']",
    ),
    "columns of a known task": (["--task", "cola", "--data", "DATA", "--label-column", "x"], "columns of its own"),
    "missing official files": (["--task", "cola", "--data", "."], "no data of task cola. Expected train.tsv"),
}


@pytest.mark.parametrize("case", TASK_ERRORS)
def test_errors_of_the_task(made: tuple[Path, list[str]], cli: Cli, data_folder: Path, case: str) -> None:
    root, _ = made
    arguments, message = TASK_ERRORS[case]
    arguments = [str(data_folder) if word == "DATA" else word for word in arguments]
    shared = ["distill", "--student", root / "student", "--store", root / "store", "--out", "out"]
    assert_refused(cli(*shared, *arguments, *CPU), message)


@pytest.mark.parametrize("option", [["--arm", "most"], ["--hsk-lr", "fast"], ["--nonsense"], ["--dtype", "fp8"]])
def test_what_the_parser_refuses(made: tuple[Path, list[str]], cli: Cli, option: list[str]) -> None:
    root, task = made
    code, out, err = cli("distill", "--student", root / "student", "--store", "s", "--out", "out", *task, *option)
    assert code == 2 and "Traceback" not in err + out
    assert option[0].strip("-") in err


def test_knowledge_of_another_teacher_is_refused(
    made: tuple[Path, list[str]], cli: Cli, tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    root, task = made
    make_bert(seed=9, num_hidden_layers=4).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    shared = ["distill", "--student", root / "student", "--out", "out", *task]
    assert_refused(cli(*shared, "--teacher", tmp_path / "other"), "was pruned from teacher")


def test_the_installed_command(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, task = made
    hskd = Path(sys.executable).with_name("hskd")
    arguments = ["distill", "--student", str(root / "student"), "--out", "out", *task]
    done = subprocess.run([hskd, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_refused((done.returncode, done.stdout, done.stderr), "give either --store")


def test_cola(glue: Path, cli: Cli, tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    """Run 200 real sentences from fine-tuning to a score. The score of so small a model is not checked."""
    make_bert().save_pretrained("body")
    tokenizer.save_pretrained("body")
    task = ["--task", "cola", "--data", glue / "CoLA", *CPU]
    teacher = ["teacher", "--model", "body", "--epochs", "1", "--lr", "1e-3", "--batch-size", "128"]
    few = ["--train-examples", "200"]
    code, out, err = cli(*teacher, "--out", "teacher", *task)
    assert code == 0, err
    assert "dev: matthews" in out and "teacher: 67 steps" in err  # 8,551 sentences
    sizes = ["--layers", "1", "--heads", "2", "--ffn", "24"]
    assert cli("student", "--teacher", "teacher", *sizes, "--out", "student", *task, *few)[0] == 0
    assert cli("store", "extract", "--teacher", "teacher", "--out", "store", *task, *few)[0] == 0
    distill = ["distill", "--student", "student", "--store", "store", "--spec", "1l_3t_0.1w", *RATES, *few, *task]
    code, out, err = cli(*distill, "--out", "trial")
    assert code == 0, err
    found = result(tmp_path / "trial")
    assert found["train_examples"] == 200 and found["spec"] == "1l_3t_0.1w" and 0 < found["fraction"] < 0.1
    assert set(found["metrics"]) == {"dev"}  # the official test set has no labels
    assert set(found["metrics"]["dev"]) == {"matthews", "score"}
    assert -1 <= found["metrics"]["dev"]["matthews"] <= 1
    # These are more examples than the store holds.
    arguments = ["distill", "--student", "student", "--store", "store", *RATES, *task, "--train-examples", "300"]
    assert_refused(cli(*arguments, "--out", "more"), "are not in this store of 200")
