"""Multi-label classification: files, losses, scores, and a run of every command."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_bert
from sklearn.metrics import f1_score
from torch.nn import functional as F
from transformers import BertTokenizerFast, pipeline

from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.knowledge import sentences
from hskd.cli.app import main
from hskd.errors import HskdError
from hskd.heads import MultiLabel
from hskd.store.reader import Store
from hskd.tasks import TaskData, load_task

HEAD = MultiLabel(("a", "b", "c"))


def rows_of(seed: int, count: int = 30) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_losses_and_scores() -> None:
    rows, target = rows_of(0), rows_of(1)
    labels = HEAD.label_array([[i % 3] if i % 4 else [0, 2] for i in range(29)] + [[]])
    assert labels[:3].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]] and labels[-1].tolist() == [0, 0, 0]
    truth = torch.from_numpy(labels).float()
    torch.testing.assert_close(
        HEAD.gold_loss(rows, torch.from_numpy(labels)), F.binary_cross_entropy(rows.sigmoid(), truth)
    )
    expected = F.binary_cross_entropy((rows / 2).sigmoid(), (target / 2).sigmoid())
    torch.testing.assert_close(HEAD.distil_loss(rows, target, 2.0), expected)
    predicted = (rows.sigmoid() > 0.5).float()
    torch.testing.assert_close(
        HEAD.predicted_loss(rows), F.binary_cross_entropy(rows.sigmoid(), predicted, reduction="sum")
    )
    metrics = HEAD.metrics(rows.numpy(), labels)
    for average in ("micro", "macro"):
        assert metrics[f"{average}_f1"] == f1_score(labels, predicted.numpy(), average=average)
    assert metrics["score"] == metrics["micro_f1"] and HEAD.unit == "F1 x 100"
    assert HEAD.metrics(np.full((30, 3), -1.0), labels)["score"] == 0
    answers = Answers(HEAD, labels, {("a", 0): rows.numpy(), ("b", 0): target.numpy()})
    assert answers.df == 29 and answers.variance({"a": 1.0, "b": -1.0}, [0]) > 0


def write_rows(folder: Path, rows: list[object], name: str = "labels") -> str:
    for split in ("train", "dev"):
        lines = [json.dumps({"text": f"text {i}", name: row}) for i, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def write_csv(folder: Path, header: str, rows: list[str]) -> str:
    for split in ("train", "dev"):
        lines = [f"text {i},{row}" for i, row in enumerate(rows)]
        (folder / f"{split}.csv").write_text("\n".join([f"text,{header}", *lines]), encoding="utf-8")
    return str(folder)


def meaning(data: TaskData) -> tuple[object, ...]:
    return data.task.head.kind, data.task.label_names, data.splits["dev"].labels


def test_four_ways_to_write_them(tmp_path: Path) -> None:
    expected = ("multilabel", ("fast", "good"), [[1], [0, 1], []])
    folders = {name: tmp_path / name for name in ("lists", "separated", "columns", "declared")}
    for folder in folders.values():
        folder.mkdir()
    assert meaning(load_task("custom", write_rows(folders["lists"], [["good"], ["good", "fast"], []]))) == expected
    place = write_csv(folders["separated"], "labels", ["good", "good|fast", ""])
    assert meaning(load_task("custom", place, label_type="multilabel")) == expected
    place = write_csv(folders["columns"], "fast,good", ["0,1", "true,1", "0,False"])
    assert meaning(load_task("custom", place, "text", "fast, good", label_type="multilabel")) == expected
    names = datasets.ClassLabel(names=["fast", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(names)})
    table = {"text": ["text 0", "text 1", "text 2"], "labels": [[1], [1, 0], []]}
    for split in ("train", "dev"):
        path = folders["declared"] / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(table, features).to_parquet(path)
    assert meaning(load_task("custom", str(folders["declared"]))) == expected


def test_numbers_are_in_their_order(tmp_path: Path) -> None:
    assert load_task("custom", write_rows(tmp_path, [[10, 9], [2]])).task.label_names == ("2", "9", "10")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "b"], "a"], r"row 1, column 'labels': 'a'; expected a list of labels"),
        ([["a", "b"], [1.5]], r"row 1, .*1\.5; expected a name or a whole number"),
        ([["a", "b"], None], r"row 1, .*None; expected a list of labels, which may be empty"),
        ([["a"], ["a"]], r"the labels are \['a'\]; expected several"),
        ([["a", ""], ["b"]], r"row 0, .*not empty"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(HskdError, match=message):
        load_task("custom", write_rows(tmp_path, rows))


def test_what_else_is_refused(tmp_path: Path) -> None:
    place = write_csv(tmp_path, "a,b", ["0,1", "2,0"])
    with pytest.raises(HskdError, match=r"train\.csv, row 1, column 'a': '2'; expected 0 or 1"):
        load_task("custom", place, "text", "a,b", label_type="multilabel")
    with pytest.raises(HskdError, match="expected several labels in a field, with one of"):
        load_task("custom", place, "text", "a", label_type="multilabel")
    with pytest.raises(HskdError, match="names a column twice"):
        load_task("custom", place, "text", "a,a", label_type="multilabel")
    (tmp_path / "dev.csv").write_text("text,a\nx,p|q\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("text,a\nx,p|r\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"dev\.csv, row 0, column 'a': 'q'; expected one of train's labels"):
        load_task("custom", str(tmp_path), "text", "a", label_type="multilabel")


def test_uneven_classes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hskd"):
        load_task("custom", write_rows(tmp_path, [["a"]] * 19 + [["a", "b"]]))
    assert "uneven classes in train: 'a' 100 % (20), 'b' 5 % (1)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "hskd"):
        load_task("custom", write_rows(tmp_path, [["a"]] * 9 + [["b"]]))
    assert "uneven classes" not in caplog.text


def test_a_run(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, arguments

    torch.set_num_threads(1)
    make_bert(2).bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    texts = [(text, ["good"] * (text in GOOD) + ["film"] * ("film" in text)) for text in (*GOOD, *BAD)] * 3
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        lines = [json.dumps({"text": text, "labels": labels}) for text, labels in texts]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    cpu = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]
    task = ["--task", "custom", "--data", tmp_path / "data", "--work", tmp_path / "work", *cpu]
    teacher = ["--out", tmp_path / "t", *task]
    run("teacher", "--model", tmp_path / "encoder", "--epochs", "15", "--lr", "5e-3", "--batch-size", "8", *teacher)
    metrics = json.loads((tmp_path / "t" / "metrics.json").read_text())["metrics"]["test"]
    assert metrics["micro_f1"] == metrics["score"] > 0.9
    rosita = ["--kind", "rosita", "--layers", "1", "--heads", "2", "--ffn", "16", "--out", tmp_path / "student"]
    run("student", "--teacher", tmp_path / "t", *rosita, *task)
    run("store", "extract", "--teacher", tmp_path / "t", "--out", tmp_path / "store", *task)
    rows = sentences(Store.open(tmp_path / "store"), tokenizer)
    assert set(rows["prediction"]) <= {"", "film", "good", "film good"} and "film good" in set(rows["prediction"])
    rates = ["--hsk-epochs", "1", "--prediction-epochs", "10", "--hsk-lr", "1e-3", "--prediction-lr", "5e-3"]
    shared = ["--student", tmp_path / "student", "--store", tmp_path / "store", "--spec", "1l_2t_0.5w", *rates]
    run("distill", *shared, "--out", tmp_path / "trial", *task)
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert result["metrics"]["test"]["micro_f1"] > 0.8 and result["head"]["unit"] == "F1 x 100"
    classifier = pipeline("text-classification", str(tmp_path / "t"), top_k=None, device="cpu")
    scores = {entry["label"]: entry["score"] for entry in classifier(GOOD[0])[0]}  # each label has its own sigmoid
    assert scores["good"] > 0.5 and scores["film"] > 0.5
