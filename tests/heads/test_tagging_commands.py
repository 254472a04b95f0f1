"""Every command with a task of tagged words: teacher, student, store, distill online and offline, grid."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from transformers import BertTokenizerFast, pipeline

from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import only_study
from hskd.cli.app import main
from hskd.results import ResultsFolder

CPU = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]
RATES = ["--hsk-epochs", "2", "--prediction-epochs", "2", "--hsk-lr", "1e-3", "--prediction-lr", "1e-3"]
WORDS = {"film": "B-work", "story": "B-work", "acting": "B-craft", "minute": "I-craft"}
GRID = """\
name: tags
task: {{name: tagging, data: "{data}"}}
teacher: {{model: "{teacher}", fine_tuned: true}}
students: [{{layers: 2, heads: 2, ffn: 24, importance_examples: 32}}]
training: {{hsk_epochs: 1, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
seeds: 1
include: [1l_2t_0.25w]
"""
Cli = Callable[..., str]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Run ``hskd`` with these arguments."""
    torch.set_num_threads(1)

    def run(*arguments: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, arguments
        return ""

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, cli: Cli) -> tuple[Path, list[Any]]:
    """A folder with data, a teacher, a student and a superset, and the options of the task."""
    root = tmp_path_factory.mktemp("tagging")
    (root / "data").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("dev", 12), ("test", 12)):
        with (root / "data" / f"{split}.conll").open("w", encoding="utf-8") as file:
            for i in range(count):
                for word in rng.permutation([*WORDS, "a", "warm", f"{i}{split[0]}"])[: rng.integers(3, 7)]:
                    tag = WORDS.get(word, "O")
                    # A word of several pieces, and an entity of two words.
                    file.write(
                        f"{word}\t{tag.replace('I-', 'B-')}\n" + ("great\tI-craft\n" if word == "acting" else "")
                    )
                file.write("\n")
    make_bert(num_hidden_layers=3).save_pretrained(root / "body")
    tokenizer.save_pretrained(root / "body")
    task = ["--task", "tagging", "--data", root / "data", "--work", root / "work", *CPU]
    cli(
        "teacher",
        "--model",
        root / "body",
        "--epochs",
        12,
        "--batch-size",
        8,
        "--lr",
        5e-3,
        "--out",
        root / "teacher",
        *task,
    )
    sizes = ["--layers", 2, "--heads", 2, "--ffn", 24]
    cli("student", "--teacher", root / "teacher", *sizes, "--out", root / "student", *task)
    cli("store", "extract", "--teacher", root / "teacher", "--precision", "fp32", "--out", root / "store", *task)
    return root, task


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_the_teacher_learns_the_entities(made: tuple[Path, list[Any]]) -> None:
    root, _ = made
    metrics = json.loads((root / "teacher" / "metrics.json").read_text())["metrics"]
    assert metrics["test"]["score"] == metrics["test"]["entity_f1"] > 0.8
    assert metrics["test"]["token_accuracy"] > 0.8


def test_offline_is_online(made: tuple[Path, list[Any]], cli: Cli, tmp_path: Path) -> None:
    root, task = made
    shared = ["distill", "--student", root / "student", "--spec", "2l_3t_0.5w,precision=fp32", *RATES, *task]
    cli(*shared, "--store", root / "store", "--out", tmp_path / "offline")
    cli(*shared, "--teacher", root / "teacher", "--out", tmp_path / "online")
    offline, online = result(tmp_path / "offline"), result(tmp_path / "online")
    assert offline["head"]["kind"] == "token_classification" and offline["head"]["metric_names"][0] == "entity_f1"
    for stage in ("hsk", "prediction"):
        found, expected = offline["stages"][stage]["last_loss"], online["stages"][stage]["last_loss"]
        assert found == pytest.approx(expected, rel=1e-4)
    assert offline["metrics"]["test"] == pytest.approx(online["metrics"]["test"], abs=0.03)
    tag = pipeline("token-classification", model=str(tmp_path / "offline" / "student"), device="cpu")
    assert {found["entity"] for found in tag("a warm film")} <= set(offline["head"]["label_names"])

    # Training from the store alone gives the same batches and losses.
    alone = [word for word in task if word not in ("--task", "tagging", "--data", root / "data")]
    cli(*shared[:3], *shared[3:5], *RATES, *alone, "--no-data", "--store", root / "store", "--out", tmp_path / "alone")
    for stage in ("hsk", "prediction"):
        assert result(tmp_path / "alone")["stages"][stage]["last_loss"] == offline["stages"][stage]["last_loss"]


def test_a_grid(made: tuple[Path, list[Any]], cli: Cli, tmp_path: Path) -> None:
    root, _ = made
    file, out = tmp_path / "grid.yaml", tmp_path / "out"
    file.write_text(GRID.format(data=root / "data", teacher=root / "teacher"), encoding="utf-8")
    cli("grid", "run", file, "--out", out, "--work", root / "work", "--dtype", "fp32", "--threads", "1")
    study = only_study(out)
    answers = Answers.read(out, study)
    assert answers is not None
    labels = ResultsFolder(out).labels("test")
    assert labels is not None and answers.df + 1 == 12 == int(answers.head.examples(labels)[-1]) + 1
    names = list(study.points.index)
    assert {"none", "full", "1l_2t_0.25w"} == set(names)
    weights = {"full": 1.0, "none": -1.0}
    assert answers.variance(weights, [0]) >= 0
    rows = answers.logits["full", 0]
    assert answers.score("full", 0) == answers.head.metrics(rows, labels)["score"]
