"""Retrieval by sentence embeddings: files, scores, a run, and pooling of models in the hub's cache."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_bert
from sklearn.metrics import ndcg_score
from torch.nn import functional as F
from transformers import BertTokenizerFast

from hskd.analysis.stats.examples import Answers
from hskd.cli.app import main
from hskd.errors import HskdError
from hskd.heads import SentenceEmbedding
from hskd.heads.embedding.model import EmbeddingModel
from hskd.heads.embedding.retrieval import corpus_size, query_scores, retrieval_labels
from hskd.tasks import load_task

HEAD = SentenceEmbedding(metric_names=("ndcg_10", "mrr_10"), size=16)


def corpus_and_queries(documents: int = 40, queries: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vectors of a corpus and queries, their labels, and the original grades ``(queries, documents)``."""
    draw = np.random.default_rng(0)
    vectors = torch.from_numpy(draw.normal(size=(documents + queries, 16)).astype(np.float32))
    grades = np.where(draw.random((queries, documents)) < 0.2, draw.integers(1, 4, (queries, documents)), 0)
    grades[:, 0] = 1
    judged = [(-1, [(int(i), int(row[i])) for i in np.flatnonzero(row)]) for row in grades]
    labels = HEAD.label_array(retrieval_labels(documents, judged))
    return F.normalize(vectors, dim=1).numpy(), labels, grades


def test_scores_are_those_of_scikit_learn() -> None:
    vectors, labels, grades = corpus_and_queries()
    assert corpus_size(labels) == 40 and labels.dtype == np.int64
    similarities = vectors[40:] @ vectors[:40].T
    ndcg = ndcg_score(grades, similarities, k=10)
    first = np.array(
        [np.argmax(row[np.argsort(-scores)] > 0) for row, scores in zip(grades, similarities, strict=True)]
    )
    mrr = np.where(first < 10, 1 / (first + 1), 0).mean()
    expected = pytest.approx({"ndcg_10": ndcg, "mrr_10": mrr, "score": ndcg})
    assert HEAD.metrics(vectors, labels) == expected and HEAD.unit == "nDCG x 100"
    # The stored predictions give the same score, in half the precision.
    answers = HEAD.answers(vectors, labels).astype(HEAD.kept_type)
    assert answers.shape == (47, 2) and not answers[:40].any()
    assert HEAD.metrics(answers, labels) == pytest.approx(dict(expected.expected), abs=1e-3)
    assert not HEAD.labels_come_from_teacher(labels)


def test_known_rankings() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]  # three documents; the queries equal the first two
    labels = HEAD.label_array(retrieval_labels(3, [(-1, [(0, 1)]), (1, [(2, 1), (0, 2)])]))
    scores = query_scores(vectors, labels)
    assert scores[3].tolist() == [1, 1]
    # The second query is document 1 itself, which is left out. The others are tied, in the order of the corpus.
    assert scores[4].tolist() == pytest.approx([1, 1])


def test_queries_are_the_examples() -> None:
    vectors, labels, _ = corpus_and_queries()
    assert HEAD.examples(labels).tolist() == [0] * 41 + [1, 2, 3, 4, 5, 6]
    blocks = [np.arange(41), np.array([43, 45])]
    by_query = query_scores(vectors, labels)[40:, 0]
    expected = [by_query[1:].mean(), np.delete(by_query, [3, 5]).mean()]
    np.testing.assert_allclose(HEAD.scores_without(vectors, labels, blocks), expected, rtol=1e-6)
    answers = Answers(
        HEAD, labels, {("a", 0): query_scores(vectors, labels), ("b", 0): query_scores(vectors[::-1], labels)}
    )
    assert answers.df == 6 and answers.variance({"a": 1.0, "b": -1.0}, [0]) > 0


def write_beir(folder: Path) -> Path:
    """Write a corpus of films, queries that are parts of passages, and judgements."""
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"p{i}", "title": "film" if i % 2 else "", "text": text} for i, text in enumerate((*GOOD, *BAD))
    ]
    queries = [{"_id": f"q{i}", "text": " ".join(text.split()[-2:])} for i, text in enumerate((*GOOD, *BAD))]
    queries.append({"_id": "q8", "text": "a drab story"})
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for split, numbers in (("dev", range(4)), ("test", range(8))):
        lines = [f"q{i}\tp{i}\t1" for i in numbers] + [f"q{i}\tp{(i + 1) % 8}\t0" for i in numbers] + ["q8\tp1\t0"]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *lines]), encoding="utf-8"
        )
    return folder


def test_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_beir(tmp_path / "d")
    with caplog.at_level(logging.INFO, "hskd"):
        data = load_task("embedding", str(folder))
    assert data.task.head.metric_names == ("ndcg_10", "mrr_10")
    test = data.splits["test"]
    assert test.texts[0][:2] == [GOOD[0], f"film {GOOD[1]}"] and len(test) == 16
    assert test.labels is not None and test.labels[7] == [-1, -1, -1] and test.labels[8] == [-1, 0, 1]
    assert "1 of 9 queries of test have no relevant passage, and are not scored" in caplog.text
    # Texts of scored queries are not trained on, even where they are passages.
    scored = set(test.texts[0][8:])
    assert len(data.splits["train"]) == 6 and not set(data.splits["train"].texts[0]) & scored
    (folder / "train.txt").write_text("one text\nanother\n", encoding="utf-8")
    assert load_task("embedding", str(folder)).splits["train"].texts[0] == ["one text", "another"]
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\tp99\t1\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.tsv, row 0, column 'corpus-id': 'p99' is not in corpus\.jsonl"):
        load_task("embedding", str(folder))
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\tp1\t0.5\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.tsv, row 0, column 'score': '0\.5'; expected a whole number"):
        load_task("embedding", str(folder))
    qrels.write_text("query\tpassage\tscore\nq0\tp1\t1\n", encoding="utf-8")
    with pytest.raises(HskdError, match=r"test\.tsv: expected the columns query-id, corpus-id, score"):
        load_task("embedding", str(folder))
    shutil.rmtree(folder / "qrels")
    with pytest.raises(HskdError, match=r"qrels: expected test\.tsv or dev\.tsv"):
        load_task("embedding", str(folder))


def write_teacher(folder: Path, tokenizer: BertTokenizerFast, pooling: str = "mean", size: int = 32) -> Path:
    body = make_bert(1).bert
    body.pooler = None
    EmbeddingModel(body, pooling, size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run(tokenizer: BertTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, arguments

    torch.set_num_threads(1)
    teacher = write_teacher(tmp_path / "teacher", tokenizer)
    cpu = ["--device", "cpu", "--dtype", "fp32", "--threads", "1", "--work", tmp_path / "work"]
    task = ["--task", "embedding", "--data", write_beir(tmp_path / "data"), *cpu]
    student = ["--kind", "tinybert", "--checkpoint", teacher, "--teacher", teacher, "--out", tmp_path / "student"]
    run("student", *student, *task)
    rates = ["--prediction-epochs", "1", "--prediction-lr", "1e-5", "--arm", "none", "--hsk-epochs", "0"]
    shared = ["--student", tmp_path / "student", "--teacher", teacher, *rates]
    run("distill", *shared, "--out", tmp_path / "trial", *task)
    assert "(nDCG x 100)" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "trial" / "result.json").read_text())["metrics"]
    assert metrics["test"]["ndcg_10"] == metrics["test"]["score"] > 0
    # sentence_transformers finds the same passages with the student.
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(tmp_path / "trial" / "student"), device="cpu")
    split = load_task("embedding", str(tmp_path / "data")).splits["test"]
    labels = HEAD.label_array(split.labels)  # type: ignore[arg-type]
    assert HEAD.metrics(encoder.encode(split.texts[0]), labels) == pytest.approx(metrics["test"], abs=1e-5)


def in_cache(folder: Path, home: Path, name: str) -> None:
    """Put a model's folder where the hub's cache would have it."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def offline(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with another hub cache, whose place is read when the library is imported."""
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("HF_HUB_CACHE", None)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_a_model_of_the_hub_pools_as_it_says(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "model", tokenizer, "cls", 48)
    in_cache(folder, tmp_path / "home", "owner/model")
    code = """
from hskd.heads.embedding.layout import embedding_size, read_layout
from hskd.teachers.loading import model_content
from hskd.heads import SentenceEmbedding
layout = read_layout("owner/model")
head = SentenceEmbedding().for_teacher("owner/model")
model = head.auto_class.from_pretrained("owner/model")
print(layout.encoder, layout.pooling, head.size, model.pooling, model.dense.out_features)
print(model_content("owner/model", modules=True) != model_content("owner/model"))
"""
    run = offline(tmp_path / "home", code)
    assert run.stdout.splitlines() == ["owner/model cls 48 cls 48", "True"], run.stderr


def test_a_model_that_cannot_say_how_it_pools_is_refused(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "model", tokenizer)
    (folder / "modules.json").unlink()  # Only part of the model was fetched, so it is unknown whether it has modules.
    in_cache(folder, tmp_path / "home", "owner/model")
    code = "from hskd.heads.embedding.layout import read_layout; read_layout('owner/model')"
    run = offline(tmp_path / "home", code)
    assert (
        run.returncode and "owner/model: its modules.json says how it pools, and it can be read neither" in run.stderr
    )
    # Where the cache records that the file does not exist, the model is an encoder with mean pooling.
    known = tmp_path / "home" / "hub" / "models--owner--model" / ".no_exist" / ("0" * 40)
    known.mkdir(parents=True)
    (known / "modules.json").touch()
    run = offline(tmp_path / "home", f"{code}; print(read_layout('owner/model').pooling)")
    assert run.stdout.strip() == "mean", run.stderr
