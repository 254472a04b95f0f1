"""A student trains from the store alone, without text and teacher: the same examples and losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import make_bert
from store.conftest import EVERYTHING, Hskd, Setting
from transformers import BertTokenizerFast, pipeline

from hskd import remote
from hskd.errors import HskdError
from hskd.store.examples import store_examples, store_task
from hskd.store.extract import extract
from hskd.store.reader import Store
from hskd.tasks import Split, TaskData, TokenizedSplit, tokenize

TEXTS = ["a warm film", "the story is boring and cold", "great", "a drab film and a dull story", "poor acting [SEP] i"]


def store_of(setting: Setting, split: TokenizedSplit, folder: Path) -> Store:
    return extract(setting.teacher, setting.task, split, EVERYTHING, folder)


@pytest.mark.parametrize(
    "texts", [[TEXTS], [TEXTS[:4], TEXTS[3::-1]]], ids=["sentences, in one of them a [SEP]", "pairs"]
)
@pytest.mark.parametrize("max_length", [64, 9])
def test_the_examples_are_those_of_the_tokenizer(
    setting: Setting, tokenizer: BertTokenizerFast, tmp_path: Path, texts: list[list[str]], max_length: int
) -> None:
    task = replace(setting.task, max_length=max_length)
    labels = [i % 2 for i in range(len(texts[0]))]
    split = tokenize(TaskData(task, {"train": Split.of("train", texts, labels)}), tokenizer, tmp_path)["train"]
    assert split.token_type_ids is not None and split.token_type_ids.any() == (len(texts) == 2)
    found = store_examples(store_of(setting, split, tmp_path / "store"))
    assert found.fingerprint == split.fingerprint and found.labels is None
    rows = np.arange(len(split))[::-1]
    wanted = {name: tensor for name, tensor in split.collate(rows).items() if name != "labels"}
    batch = found.collate(rows)
    assert set(batch) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(batch[name], tensor) and batch[name].dtype == tensor.dtype, name
    for name in ("ids", "offsets", "input_ids", "token_type_ids", "lengths"):
        assert getattr(found, name).dtype == getattr(split, name).dtype, name
    for name in ("cls_id", "sep_id", "pad_id", "max_length"):
        assert getattr(found, name) == getattr(split, name), name
    assert found.first(3).fingerprint == split.first(3).fingerprint


def test_token_types_that_cannot_be_told(setting: Setting, tmp_path: Path) -> None:
    train = setting.train.first(8)
    odd = replace(train, token_type_ids=np.ones_like(train.token_type_ids))
    store = store_of(setting, odd, tmp_path / "odd")
    with pytest.raises(HskdError, match="follow another rule than BERT's"):
        store_examples(store)
    assert store_examples(store, token_types=False).token_type_ids is None
    bare = replace(train, token_type_ids=None)
    store = store_of(setting, bare, tmp_path / "bare")
    assert store_examples(store, token_types=False).fingerprint == bare.fingerprint
    # A student may use token types where the teacher has none.
    assert store_examples(store).fingerprint == train.fingerprint


def test_the_task(setting: Setting, superset: Store) -> None:
    task = store_task(superset)
    for name in ("name", "head", "max_length", "hsk_epochs"):
        assert getattr(task, name) == getattr(setting.task, name), name
    named = superset.manifest.origin.model_copy(update={"task": "cola"})
    superset = Store(superset.folder, superset.manifest.model_copy(update={"origin": named}), superset._shards)
    assert (store_task(superset).hsk_epochs, store_task(superset).max_length) == (30, setting.task.max_length)


# ---- a whole distillation


RATES = ["--hsk-epochs", 2, "--prediction-epochs", 2, "--hsk-lr", "1e-3", "--prediction-lr", "1e-3", "--batch-size", 8]
MACHINE = ["--device", "cpu", "--dtype", "fp32", "--threads", 1]
TASK = ["--task", "custom", "--text-columns", "sentence", "--label-column", "mood"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A model narrower than the teacher, with dropout, and its tokenizer; the folder holds nothing else."""
    folder = tmp_path_factory.mktemp("students") / "student"
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    make_bert(seed=1, **narrow).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def away() -> Iterator[str]:
    """An empty place at a URL."""
    yield "memory://alone"
    fsspec.filesystem("memory").rm("/alone", recursive=True)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("arm", ["spec", "full", "none", "paper_none", "shuffled"])
def test_distil_from_the_store_alone(
    setting: Setting, student: Path, away: str, tmp_path: Path, hskd: Hskd, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(setting.data_folder, "data")
    shutil.copytree(setting.teacher_folder, "teacher")
    shutil.copytree(student, "student")
    task = [*TASK, "--data", "data", "--work", "work"]
    code, _, err = hskd("store", "extract", "--teacher", "teacher", "--out", "store", *task, *MACHINE)
    assert code == 0, err
    shared = ["distill", "--arm", arm, "--spec", "2l_3t_0.5w", *RATES, *MACHINE]
    shared += ["--train-examples", 20] if arm == "none" else []
    code, out, err = hskd(*shared, "--store", "store", "--student", "student", *task, "--out", "ordinary")
    assert code == 0, err
    assert "dev: accuracy" in out
    for name in ("store", "student"):
        remote.publish(Path(name), f"{away}/{name}")
    for name in ("data", "teacher", "store", "student", "work", "ordinary/store"):
        shutil.rmtree(name, ignore_errors=True)
    # Only the remote copies remain.
    alone = [*shared, "--no-data", "--store", f"{away}/store", "--student", f"{away}/student", "--out", "alone"]
    code, out, err = hskd(*alone)
    assert code == 0, err
    assert "scores: none: trained from the store alone" in out and "accuracy" not in out
    found, expected = result(Path("alone")), result(Path("ordinary"))
    assert found["metrics"] == {} and found["dev_scores"] == [] and found["best_dev_score"] is None
    assert found["scores"].startswith("none") and "scores" not in expected
    same = ("task", "train_examples", "data", "teacher", "student", "spec", "fraction", "bytes_per_example", "settings")
    for name in same:
        assert found[name] == expected[name], name
    assert set(found["stages"]) == set(expected["stages"])
    for name, stage in expected["stages"].items():
        for value in ("steps", "examples", "first_loss", "last_loss"):
            assert found["stages"][name][value] == stage[value], (name, value)
    names = {path.name for path in Path("ordinary/student").iterdir()}
    assert {path.name for path in Path("alone/student").iterdir()} == names and "tokenizer.json" in names
    classify = pipeline("text-classification", model="alone/student", device="cpu")
    wanted = pipeline("text-classification", model="ordinary/student", device="cpu")
    for sentence in TEXTS:
        assert classify(sentence)[0]["score"] == pytest.approx(wanted(sentence)[0]["score"], rel=1e-5)

    code, again, err = hskd(*alone)
    assert (code, again) == (0, out) and "stage" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "TEACHER"], "--no-data trains from a store alone: give --store"),
        (["--store", "STORE", "--arm", "gold"], "the arm gold learns from labels, and a store has none"),
        (["--store", "STORE", "--data", "somewhere"], "--no-data goes without --data"),
        (["--store", "STORE", "--task", "cola"], "the store is of task custom; leave --task cola out"),
        (["--store", "STORE", "--max-length", 8], "are cut to 128 tokens; leave --max-length out"),
        (["--store", "STORE", "--train-examples", 65], "65 examples asked for; the split has 64"),
        (["--store", "memory://none"], "memory://none: there is no store"),
    ],
)
def test_refused(
    setting: Setting,
    superset: Store,
    student: Path,
    tmp_path: Path,
    hskd: Hskd,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"TEACHER": setting.teacher_folder, "STORE": superset.folder}
    given = [names.get(option, option) for option in options]
    code, out, err = hskd("distill", "--no-data", "--student", student, "--out", "out", *given, *MACHINE)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert not Path("out").exists()
