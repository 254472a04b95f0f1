"""Rerankers: the scores, the losses, and every command that trains them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_bert
from sklearn.metrics import average_precision_score, ndcg_score
from torch.nn import functional as F
from transformers import BertTokenizerFast

from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import only_study
from hskd.cli.app import main
from hskd.errors import HskdError, MismatchError
from hskd.heads import Reranking, head_of
from hskd.heads.ranking import ranking_scores
from hskd.students import load_student
from hskd.tasks import load_task

HEAD = Reranking()
CPU = ["--device", "cpu", "--dtype", "fp32", "--threads", "1"]
RATES = ["--hsk-epochs", "2", "--prediction-epochs", "6", "--hsk-lr", "1e-3", "--prediction-lr", "5e-3"]
Cli = Callable[..., None]


def random_queries(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return scores ``(N, 1)`` and labels ``(N, 2)`` in mixed order; the last query has no relevant passage."""
    draw = np.random.default_rng(0)
    labels = np.array([(draw.integers(3), query) for query in range(count) for _ in range(draw.integers(4, 20))])
    labels[labels[:, 1] == count - 1, 0] = 0
    labels = labels[draw.permutation(len(labels))]
    return draw.normal(size=(len(labels), 1)).astype(np.float32), labels


def test_scores_are_those_of_scikit_learn() -> None:
    rows, labels = random_queries()
    expected = []
    for query in range(11):
        at = labels[:, 1] == query
        scores, grades = rows[at, 0], labels[at, 0]
        first = int(np.argmax((grades > 0)[np.argsort(-scores)])) + 1
        expected.append([average_precision_score(grades > 0, scores), 1 / first, ndcg_score([grades], [scores], k=10)])
    precision, rank, ndcg = np.mean(expected, axis=0)
    metrics = HEAD.metrics(rows, labels)
    assert metrics == pytest.approx({"map": precision, "mrr": rank, "ndcg_10": ndcg, "score": precision})
    assert HEAD.unit == "MAP x 100"


def test_known_rankings() -> None:
    grades = np.array([0, 1, 0, 2])
    assert ranking_scores(np.array([0.1, 0.9, 0.2, 1.0]), grades) == (1, 1, 1)
    worst = ranking_scores(np.array([1.0, 0.2, 0.9, 0.1]), grades)  # relevant ones third and fourth, the better last
    assert worst.average_precision == pytest.approx((1 / 3 + 2 / 4) / 2) and worst.reciprocal_rank == pytest.approx(
        1 / 3
    )
    assert worst.ndcg_10 == pytest.approx((1 / 2 + 2 / np.log2(5)) / (2 + 1 / np.log2(3)))
    # Without information, the order of tied passages must not raise the score.
    assert ranking_scores(np.zeros(4), grades) == ranking_scores(np.zeros(4), grades[::-1]) == worst


def test_queries_without_a_choice_are_not_scored() -> None:
    rows, labels = random_queries()
    everything = labels.copy()
    everything[labels[:, 1] == 0, 0] = 1  # every passage of the first query is relevant
    left = (labels[:, 1] != 0) & (labels[:, 1] != 11)
    assert HEAD.metrics(rows, everything) == HEAD.metrics(rows[left], labels[left])
    with pytest.raises(HskdError, match="no query has both a relevant and an irrelevant passage"):
        HEAD.metrics(rows[:1], labels[:1])


def test_scores_without_queries() -> None:
    rows, labels = random_queries()
    blocks = [np.flatnonzero(np.isin(labels[:, 1], queries)) for queries in ([0, 3], [11], [7])]
    expected = [HEAD.metrics(np.delete(rows, block, 0), np.delete(labels, block, 0))["score"] for block in blocks]
    np.testing.assert_allclose(HEAD.scores_without(rows, labels, blocks), expected)
    answers = Answers(HEAD, labels, {("a", 0): rows, ("b", 0): -rows})
    assert answers.df == 11, "a query is left out, not a pair"
    assert answers.variance({"a": 1.0, "b": -1.0}, [0]) > 0


def test_losses() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, target = torch.randn(6, 1, generator=draw), torch.randn(6, 1, generator=draw)
    batch = {"labels": torch.tensor([[1, 0], [0, 0], [2, 0], [0, 1], [1, 1], [2, 1]])}
    labels = HEAD.labels(batch)
    graded = Reranking(largest=2)
    expected = F.binary_cross_entropy(rows[:, 0].sigmoid(), labels / 2)
    torch.testing.assert_close(graded.gold_loss(rows, labels), expected)
    at_two = F.binary_cross_entropy((rows / 2).sigmoid(), (target / 2).sigmoid())
    torch.testing.assert_close(HEAD.distil_loss(rows, target, 2.0), at_two)
    torch.testing.assert_close(HEAD.with_loss("mse").distil_loss(rows, target, 2.0), (rows - target).square().mean())
    with pytest.raises(HskdError, match="--loss cosine: unknown loss of rerankers; known: bce, mse"):
        HEAD.with_loss("cosine")
    with pytest.raises(MismatchError, match="here: a reranker has 1 output, not 2"):
        HEAD.align(make_bert(), "here")


# Data


def write_pairs(folder: Path, test_labels: bool = True) -> None:
    """Write queries about films with passages. Passages that praise are relevant to queries that ask for praise."""
    folder.mkdir(exist_ok=True)
    queries = {"a good film": GOOD, "a bad film": BAD}
    rows = [
        (f"{query} {number}", passage, int(passage in relevant))
        for number in range(4)
        for query, relevant in queries.items()
        for passage in (*GOOD, *BAD)
    ]
    lonely = [("a film of no one", passage, 0) for passage in GOOD]
    for split in ("train", "dev", "test"):
        objects = [
            {"query": query, "passage": passage, **({"label": label} if split != "test" or test_labels else {})}
            for query, passage, label in rows + lonely
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


def test_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pairs(tmp_path)
    with caplog.at_level(logging.INFO, "hskd"):
        data = load_task("reranking", str(tmp_path))
    assert data.splits["train"].labels is not None
    assert data.splits["train"].labels[:9] == [(1, 0)] * 4 + [(0, 0)] * 4 + [(0, 1)]
    assert "1 of 9 queries of dev have no relevant passage or no irrelevant one, and are not scored" in caplog.text
    assert "texts are in ['query', 'passage'] and labels in ['label']" in caplog.text
    assert "train 9 queries, 68 pairs" in caplog.text
    write_pairs(tmp_path, test_labels=False)
    assert load_task("reranking", str(tmp_path)).splits["test"].labels is None
    columns = {"text_columns": ("passage", "query"), "label_column": "label"}
    assert load_task("reranking", str(tmp_path), **columns).task.text_columns == ("passage", "query")  # type: ignore[arg-type]
    with pytest.raises(HskdError, match="Task trecqa has columns of its own"):
        load_task("trecqa", str(tmp_path), **columns)  # type: ignore[arg-type]


def test_one_file_is_split_by_query(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    rows = [f"query {query},passage {i},{int(i == query % 3)}" for i in range(3) for query in range(100)]
    file.write_text("\n".join(["query,passage,grade", *rows]), encoding="utf-8")
    splits = load_task("reranking", str(file)).splits
    queries = {name: set(split.texts[0]) for name, split in splits.items()}
    assert sum(map(len, queries.values())) == 100, "a query lies on one side"
    assert all(len(split) == 3 * len(queries[name]) for name, split in splits.items())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("q,p,0.5\n", r"train\.csv, row 0, column 'label': '0\.5'; expected a whole number from 0"),
        ("q,p,-1\n", r"row 0, .*'-1'; expected a whole number"),
        ("q,p,0\nq,r,\n", r"row 1, column 'label': None; expected a whole number"),
        ("q,p,0\nq,r,0\n", "no passage of train is relevant"),
    ],
)
def test_grades_that_are_none(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(f"query,passage,label\n{rows}", encoding="utf-8")
    (tmp_path / "dev.csv").write_text("query,passage,label\nq,p,0\nq,r,1\n", encoding="utf-8")
    with pytest.raises(HskdError, match=message):
        load_task("reranking", str(tmp_path))


def test_trecqa() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "trecqa"
    if not folder.is_dir():
        pytest.skip("no TREC QA on this machine")
    splits = load_task("trecqa", str(folder)).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 4718, "dev": 1148, "test": 1517}
    for name, count in (("dev", 65), ("test", 68)):  # the sizes of the published clean version
        labels = HEAD.label_array(splits[name].labels)  # type: ignore[arg-type]
        assert len(HEAD._by_query(np.arange(len(labels), dtype=np.float32)[:, None], labels)) == count


# Commands


@pytest.fixture(scope="module")
def cli() -> Cli:
    """Run ``hskd`` with these arguments."""
    torch.set_num_threads(1)

    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hskd", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, arguments

    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A folder with data and an encoder."""
    root = tmp_path_factory.mktemp("reranking")
    write_pairs(root / "data")
    make_bert(2).bert.save_pretrained(root / "encoder")
    tokenizer.save_pretrained(root / "encoder")
    return root


def test_a_student_is_a_cross_encoder(root: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = pytest.importorskip("sentence_transformers")
    task = ["--task", "reranking", "--data", root / "data", "--work", tmp_path / "work", *CPU]
    cli("teacher", "--model", root / "encoder", "--epochs", "10", "--lr", "5e-3", "--out", tmp_path / "teacher", *task)
    printed = capsys.readouterr().out
    assert "test: map " in printed and "(MAP x 100)" in printed
    student = ["--kind", "tinybert", "--checkpoint", root / "encoder", "--out", tmp_path / "student"]
    cli("student", "--teacher", tmp_path / "teacher", *student, *task)
    cli(
        "store", "extract", "--teacher", tmp_path / "teacher", "--precision", "fp32", "--out", tmp_path / "store", *task
    )
    shared = ["distill", "--student", tmp_path / "student", "--spec", "1l_3t_0.5w,precision=fp32", *RATES, *task]
    cli(*shared, "--store", tmp_path / "store", "--out", tmp_path / "offline")
    cli(*shared, "--teacher", tmp_path / "teacher", "--out", tmp_path / "online")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("offline", "online")]
    losses = [result["stages"]["prediction"]["last_loss"] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < 0.95 * results[0]["stages"]["prediction"]["first_loss"]
    assert (
        results[0]["head"]["kind"] == "reranking"
        and results[0]["metrics"]["test"]["map"] == results[1]["metrics"]["test"]["map"]
    )

    folder = tmp_path / "offline" / "student"
    encoder = library.CrossEncoder(str(folder), device="cpu")
    pairs = [("a good film 1", GOOD[0]), ("a good film 1", BAD[0]), ("a bad film 2", BAD[1])]
    with torch.no_grad():
        inputs = encoder.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        logits = load_student(folder, HEAD).eval()(**inputs).logits[:, 0]
    np.testing.assert_allclose(encoder.predict(pairs, activation_fn=torch.nn.Identity()), logits, atol=1e-6)
    np.testing.assert_allclose(encoder.predict(pairs), logits.sigmoid(), atol=1e-6)
    # The stored predictions score as the trial did, because ranks survive rounding.
    predictions = np.load(tmp_path / "offline" / "predictions.npz")
    labels = HEAD.label_array(load_task("reranking", str(root / "data")).splits["test"].labels)  # type: ignore[arg-type]
    assert HEAD.metrics(predictions["test"], labels)["score"] == results[0]["metrics"]["test"]["score"]


GRID = """\
name: rerankers
task: {{name: reranking, data: "{data}"}}
teacher: {{model: "{root}/encoder", settings: {{epochs: 2, lr: 5.0e-3}}}}
students: [{{layers: 1, heads: 2, ffn: 16}}]
training: {{hsk_epochs: 1, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
arms: [gold]
seeds: 2
include: [1l_2t_0.25w]
"""


def test_a_grid(root: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "grid.yaml", tmp_path / "out"
    file.write_text(GRID.format(data=root / "data", root=root), encoding="utf-8")
    cli("grid", "run", file, "--out", out, "--work", tmp_path / "work", "--dtype", "fp32", "--threads", "1")
    assert "(MAP x 100)" in capsys.readouterr().err
    study = only_study(out)
    answers = Answers.read(out, study)
    assert study.unit == "MAP x 100" and answers is not None
    assert answers.head == head_of("reranking", metric_names=("map", "mrr", "ndcg_10")) and answers.df == 8
    cli("report", out, "--out", tmp_path / "report")
    report = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "MAP x 100" in report
    cli("recommend", out, "--budget", "10MB")
    assert "MAP x 100" in capsys.readouterr().out
