from __future__ import annotations

import hashlib

import numpy as np
import pytest
from conftest import make_bert

from hskd.errors import HskdError, MismatchError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.heads.labels import label_permutation
from hskd.tasks import TASKS, Task, compute_metrics, load_task
from hskd.tasks.task import example_ids


def make_task(*names: str, metrics: tuple[str, ...] = ("accuracy",)) -> Task:
    head = SequenceClassification(names, metrics) if names else SequenceRegression(metric_names=metrics)
    return Task("t", ("text",), "label", head, 1, 16)


def test_ids_depend_on_texts_only_and_are_unique() -> None:
    ids = example_ids([["a", "b", "a", "a"]])
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == 4
    assert example_ids([["b", "a"]]).tolist() == [ids[1], ids[0]]
    wanted = int.from_bytes(hashlib.sha256(b'["a"]').digest()[:8], "big", signed=True)
    assert ids[0] == wanted == 1059956520740701815  # must never change: stores are addressed by ids


def test_where_one_text_ends_matters() -> None:
    assert example_ids([["ab"], ["c"]])[0] != example_ids([["a"], ["bc"]])[0]
    assert example_ids([["a"], ["b"]])[0] != example_ids([["ab"]])[0]


def test_unknown_task_lists_the_names() -> None:
    assert tuple(TASKS) == (
        "banking77",
        "cola",
        "rte",
        "sst2",
        "mrpc",
        "stsb",
        "qqp",
        "mnli",
        "qnli",
        "mr",
        "reranking",
        "trecqa",
        "embedding",
        "imdb_sick",
        "tagging",
        "wnut17",
        "custom",
    )
    with pytest.raises(HskdError, match="unknown task 'cloa'; known: banking77, cola, rte, sst2, mrpc"):
        load_task("cloa")
    with pytest.raises(HskdError, match="Task mr has columns of its own"):
        load_task("mr", text_columns=("text",))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (["negative", "positive"], [0, 1]),
        (["positive", "negative"], [1, 0]),
        (["POSITIVE", "NEGATIVE"], [1, 0]),
    ],
)
def test_label_permutation(model: list[str], expected: list[int]) -> None:
    assert label_permutation(("negative", "positive"), model, "here") == expected


def test_permutation_of_three() -> None:
    labels = ("entailment", "neutral", "contradiction")
    model = ["contradiction", "entailment", "neutral"]
    permutation = label_permutation(labels, model, "here")
    assert [model[p] for p in permutation] == list(labels)


def test_generic_labels_warn() -> None:
    with pytest.warns(UserWarning, match="LABEL_0"):
        assert label_permutation(("no", "yes"), ["LABEL_0", "LABEL_1"], "here") == [0, 1]


@pytest.mark.parametrize("model", [["bad", "good"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["negative"], ["negative"] * 2])
def test_other_labels_are_refused(model: list[str]) -> None:
    with pytest.raises(MismatchError) as caught:
        label_permutation(("negative", "positive"), model, "here")
    assert str(model) in str(caught.value)
    assert "['negative', 'positive']" in str(caught.value)


def test_regression_has_one_output() -> None:
    names = {"num_labels": 1, "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    SequenceRegression().align(make_bert(**names), "here")
    with pytest.raises(MismatchError, match=r"here: the task is a regression and needs a model with 1 output, not 2"):
        SequenceRegression().align(make_bert(), "here")


def test_metrics_of_a_known_table() -> None:
    # 3 true positives, 1 false positive, 1 false negative, 1 true negative
    labels, predictions = [1, 1, 1, 0, 1, 0], np.array([1, 1, 1, 1, 0, 0])
    logits = np.eye(2)[predictions]
    found = compute_metrics(make_task("no", "yes", metrics=("accuracy", "f1")), logits, labels)
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 6 / 8, "score": (4 / 6 + 6 / 8) / 2})
    matthews = (3 * 1 - 1 * 1) / (4 * 4 * 2 * 2) ** 0.5
    assert compute_metrics(make_task("no", "yes", metrics=("matthews",)), logits, labels)["score"] == pytest.approx(
        matthews
    )


def test_correlations() -> None:
    task = make_task(metrics=("pearson", "spearman"))
    found = compute_metrics(task, np.array([[1.0], [2.0], [30.0]]), [0.0, 1.0, 2.0])
    assert found["spearman"] == pytest.approx(1)
    assert 0.8 < found["pearson"] < 0.95
    assert compute_metrics(task, np.ones((3, 1)), [0.0, 1.0, 2.0])["score"] == 0


def test_what_cannot_be_scored() -> None:
    task = make_task("no", "yes")
    with pytest.raises(HskdError, match="not finite for 1 of 2 examples"):
        compute_metrics(task, np.array([[0.0, np.nan], [0.0, 1.0]]), [0, 1])
    with pytest.raises(HskdError, match="2 predictions for 1 labels"):
        compute_metrics(task, np.zeros((2, 2)), [0])
