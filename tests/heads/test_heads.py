"""Heads of whole examples, and the registry of heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import make_bert
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from hskd.errors import HskdError, MismatchError
from hskd.heads import HEADS, Head, SequenceClassification, SequenceRegression, head_of, head_of_rows
from hskd.store_format.layout import ArraySpec
from hskd.tasks import TASKS, load_task

CLASSES = SequenceClassification(("no", "maybe", "yes"))
NUMBER = SequenceRegression()


@dataclass(frozen=True)
class Ranks(SequenceRegression):
    """A regression with another metric."""

    kind: ClassVar[str] = "ranks"


def rows_of(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(8, columns, generator=torch.Generator().manual_seed(seed))


def test_losses_of_classes() -> None:
    rows, target, labels = rows_of(3), rows_of(3, 1), torch.arange(8) % 3
    assert torch.equal(CLASSES.gold_loss(rows, labels), F.cross_entropy(rows, labels))
    expected = -(torch.softmax(target / 2, -1) * torch.log_softmax(rows / 2, -1)).sum(-1).mean()
    torch.testing.assert_close(CLASSES.distil_loss(rows, target, 2.0), expected)
    assert CLASSES.distil_loss(rows.bfloat16(), target).dtype == torch.float32


def test_losses_of_numbers() -> None:
    rows, target, labels = rows_of(1), rows_of(1, 1), torch.arange(8) / 3
    assert torch.equal(NUMBER.gold_loss(rows, labels), ((rows[:, 0] - labels) ** 2).mean())
    assert torch.equal(NUMBER.distil_loss(rows, target, 3.0), ((rows - target) ** 2).mean())


@pytest.mark.parametrize("head", [CLASSES, NUMBER])
def test_a_model_of_the_head_is_read_by_it(head: Head) -> None:
    model = make_bert(**head.config_fields())
    assert model.config.num_labels == head.outputs and head.matches(model)
    assert head.auto_class is AutoModelForSequenceClassification
    assert head.target() == ArraySpec("example", torch.float32, head.outputs)
    batch = {"input_ids": torch.tensor([[2, 7, 3], [2, 9, 3]]), "labels": torch.tensor([1, 0])}
    with torch.no_grad():
        output = model(batch["input_ids"])
        whole = model.bert(batch["input_ids"]).last_hidden_state.clone()
        positions = head.readout(batch)
        assert positions is not None
        mask = torch.zeros(whole.shape[:2], dtype=torch.bool).scatter_(1, positions, True)
        read = model.classifier(model.bert.pooler(whole.masked_fill(~mask[..., None], 0)))
    rows = head.rows(output, batch)
    assert rows.shape == (2, head.outputs) and torch.equal(head.labels(batch), batch["labels"])
    torch.testing.assert_close(read, rows)  # other positions have no influence


def test_predictions_have_the_type_of_labels() -> None:
    rows = rows_of(3).numpy()
    assert CLASSES.predict(rows).tolist() == rows.argmax(1).tolist()
    assert NUMBER.predict(rows[:, :1]).tolist() == rows[:, 0].tolist()
    assert CLASSES.label_array([0, 2]).dtype == np.int64 and NUMBER.label_array([0, 2]).dtype == np.float32
    assert CLASSES.metrics(rows, rows.argmax(1)) == {"accuracy": 1.0, "score": 1.0}


def test_outputs_in_another_order_are_brought_into_this_one() -> None:
    model = make_bert(num_labels=3, id2label={0: "yes", 1: "no", 2: "maybe"}, label2id={"yes": 0, "no": 1, "maybe": 2})
    ids = torch.tensor([[2, 7, 3]])
    before = model(ids).logits
    assert not CLASSES.matches(model)
    CLASSES.align(model, "here")
    assert CLASSES.matches(model)
    torch.testing.assert_close(model(ids).logits, before[:, [1, 2, 0]])
    with pytest.raises(MismatchError, match=r"here: the model has 2 labels, .* and the task has 3"):
        CLASSES.align(make_bert(), "here")


def test_results_say_their_head() -> None:
    assert head_of_rows(1, ["pearson"]) == SequenceRegression(metric_names=("pearson",))
    assert head_of_rows(3, ["f1"]) == SequenceClassification(("0", "1", "2"), ("f1",))


def test_the_registry() -> None:
    assert head_of("classification", ("a", "b")) == SequenceClassification(("a", "b"))
    assert head_of("regression", metric_names=("pearson",)) == SequenceRegression(metric_names=("pearson",))
    with pytest.raises(
        HskdError, match=r"unknown head 'ranks'; known: .*classification, multilabel, regression, reranking"
    ):
        head_of("ranks")

    class Other(Ranks):
        kind: ClassVar[str] = "ranks"

    assert HEADS.register(Ranks) is Ranks
    try:
        assert head_of("ranks") == Ranks()
        with pytest.raises(HskdError, match=r"head 'ranks' is .*Ranks already; give .*Other another name"):
            HEADS.register(Other)
    finally:
        HEADS.remove("ranks")


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

from hskd.heads import HEADS, SequenceRegression
from hskd.tasks import TASKS, Split, Task, TaskData


@HEADS.register
@dataclass(frozen=True)
class Stars(SequenceRegression):
    kind: ClassVar[str] = "stars"


REVIEWS = Task("reviews", ("text",), "stars", Stars(), hsk_epochs=1, max_length=16)


@TASKS.register(REVIEWS)
def load(data):
    return TaskData(REVIEWS, {"train": Split.of("train", [["a film"]], [4.0])})
"""


def test_an_installed_head_and_task_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews_plugin.py").write_text(PLUGIN, encoding="utf-8")
    information = tmp_path / "reviews_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: reviews-plugin\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(
        "[hskd.heads]\nstars = reviews_plugin:Stars\n[hskd.tasks]\nreviews = reviews_plugin:REVIEWS\n",
        encoding="utf-8",
    )
    with pytest.raises(HskdError, match="unknown task 'reviews'"):
        load_task("reviews")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        data = load_task("reviews")
        assert data.task.head == head_of("stars") and data.splits["train"].labels == [4.0]
        known = r"task 'mr' is hskd\.tasks\.builtin\.mr\.load_mr already; give .* another name"
        with pytest.raises(HskdError, match=known):
            TASKS.register(replace(data.task, name="mr"))(lambda data: load_task("reviews"))
    finally:
        HEADS.remove("stars")
        TASKS.remove("reviews")


@pytest.mark.parametrize(
    ("task", "unit"),
    [
        ("mr", "%"),
        ("cola", "Matthews x 100"),
        ("mrpc", "mean of accuracy and F1 x 100"),
        ("stsb", "correlation x 100"),
        ("wnut17", "F1 x 100"),
        ("trecqa", "MAP x 100"),
        ("imdb_sick", "correlation x 100"),
    ],
)
def test_a_score_has_the_unit_of_its_metric(task: str, unit: str) -> None:
    assert TASKS[task].task.head.unit == unit
