"""A head that predicts every token, from its loader to a student's loss: all that a new kind of head has to bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import make_bert
from torch.nn import functional as F
from transformers import (
    AutoModelForTokenClassification,
    BertForTokenClassification,
    BertTokenizerFast,
    PreTrainedModel,
)
from typing_extensions import override

from hskd.distill.source import OnlineSource, StoreSource
from hskd.errors import HskdError, MismatchError
from hskd.heads import HEADS, IGNORED, Head, head_of, output_names, soft_cross_entropy
from hskd.heads.base import Batch
from hskd.heads.labels import label_permutation, permute_outputs
from hskd.heads.metrics import named_metrics, require_scorable
from hskd.spec import HSKSpec
from hskd.store.amount import measure
from hskd.store.derive import derive
from hskd.store.examples import store_examples, store_task
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.store_format.layout import ArraySpec
from hskd.students import load_student
from hskd.students.pretrained.create import create_tinybert
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.tasks import Split, Task, TaskData, TokenizedSplit, model_inputs, tokenize
from hskd.teachers.loading import Teacher, load_classifier

SMALL_SHARD = 2_000


@dataclass(frozen=True)
class Tagger(Head):
    """A class for every token; rows are logits."""

    kind: ClassVar[str] = "tagger"

    metric_names: tuple[str, ...] = ("accuracy",)

    @property
    @override
    def auto_class(self) -> Any:
        return AutoModelForTokenClassification

    @property
    @override
    def outputs(self) -> int:
        return len(self.label_names)

    @override
    def config_fields(self) -> dict[str, Any]:
        names = self.label_names
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }

    @override
    def target(self) -> ArraySpec:
        return ArraySpec("token", torch.float32, self.outputs)

    @override
    def readout(self, batch: Batch) -> torch.Tensor | None:
        return None

    @override
    def rows(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits[batch["attention_mask"].bool()]
        return logits

    @override
    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"][batch["attention_mask"].bool()]

    @override
    def gold_loss(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(rows.float(), labels, ignore_index=IGNORED)

    @override
    def distil_loss(self, rows: torch.Tensor, target_rows: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        return soft_cross_entropy(rows, target_rows, tau)

    @override
    def label_array(self, labels: Sequence[Any]) -> np.ndarray:
        return np.array(labels, dtype=np.int64)

    @override
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return rows.argmax(axis=1)

    @override
    def metrics(self, rows: np.ndarray, labels: Sequence[Any] | np.ndarray) -> dict[str, float]:
        truth = np.asarray(labels)
        require_scorable(rows, truth)
        known = truth != IGNORED
        return named_metrics(self.metric_names, truth[known], self.predict(rows[known]))

    @override
    def align(self, model: PreTrainedModel, where: str) -> None:
        permute_outputs(model, label_permutation(self.label_names, output_names(model.config), where), where)
        fields = self.config_fields()
        model.config.id2label, model.config.label2id = fields["id2label"], fields["label2id"]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    HEADS.register(Tagger)
    yield
    HEADS.remove(Tagger.kind)


TAGS = ("other", "noun", "praise")
TASK = Task("tags", ("text",), "tags", Tagger(TAGS), hsk_epochs=1, max_length=12)
TEXTS = [
    "a warm film",
    "the acting, 2020s style, is warm",
    "story",
    "a dull story and the worst acting of a film",
    "warm  and funny\tfilm",
    "the film and the story and the acting and the film and the story",
]
KINDS = {"film": 1, "story": 1, "acting,": 1, "acting": 1, "style,": 1, "warm": 2, "funny": 2}


def loaded() -> TaskData:
    labels = [[KINDS.get(word, 0) for word in text.split()] for text in TEXTS]
    return TaskData(TASK, {"train": Split.of("train", [TEXTS], labels)})


@pytest.fixture
def train(tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedSplit:
    return tokenize(loaded(), tokenizer, tmp_path / "tokens")["train"]


@pytest.fixture
def teacher(tokenizer: BertTokenizerFast, tmp_path: Path) -> Teacher:
    """One whose labels are in another order than the task's."""
    torch.manual_seed(0)
    config = make_bert(num_labels=3, id2label=dict(enumerate(TAGS[::-1])), label2id={}).config
    config.label2id = {name: i for i, name in config.id2label.items()}
    BertForTokenClassification(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return Teacher.load(str(tmp_path / "teacher"), TASK)


@pytest.fixture
def superset(teacher: Teacher, train: TokenizedSplit, tmp_path: Path) -> Store:
    held, options = Superset((0, 1, 2), (1, 2)), ExtractOptions(batch_size=4, shard_bytes=SMALL_SHARD)
    return extract(teacher, TASK, train, held, tmp_path / "superset", options)


@torch.no_grad()
def outputs(model: PreTrainedModel, split: TokenizedSplit, row: int) -> torch.Tensor:
    """The model's own logits for the tokens of one example, with no pad beside them."""
    logits: torch.Tensor = model.eval()(**model_inputs(split.collate([row]))).logits[0]
    return logits


def test_labels_follow_their_words(tokenizer: BertTokenizerFast, train: TokenizedSplit) -> None:
    batch = train.collate(range(len(train)))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    for row, text in enumerate(TEXTS):
        expected: list[int] = [IGNORED]
        for word in text.split():
            pieces = tokenizer.tokenize(word)
            expected += [KINDS.get(word, 0), *[IGNORED] * (len(pieces) - 1)]
        expected = [*expected[: TASK.max_length - 1], IGNORED]
        assert batch["labels"][row, : len(expected)].tolist() == expected, text
        assert int(batch["attention_mask"][row].sum()) == len(expected)
    assert len(tokenizer.tokenize(TEXTS[-1])) > TASK.max_length, "one is truncated"
    assert len(tokenizer.tokenize("2020s")) > 1, "a word has several pieces"
    order = [4, 0, 2]
    taken = train.take(order).collate(range(3))
    assert torch.equal(taken["labels"], train.collate(order)["labels"])
    assert torch.equal(train.first(3).collate([1])["labels"][0], train.collate([_third(train)])["labels"][0])


def _third(train: TokenizedSplit) -> int:
    """The row of ``train`` that is the second of its subset of three."""
    return int(np.flatnonzero(train.ids == train.first(3).ids[1])[0])


def test_as_many_labels_as_words(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    data = TaskData(TASK, {"dev": Split.of("dev", [["a warm film"]], [[0, 2]])})
    with pytest.raises(HskdError, match=r"split dev, row 0: 2 labels for 3 words; expected one for each word"):
        tokenize(data, tokenizer, tmp_path)


def test_the_tokens_are_those_of_a_task_without_word_labels(
    tokenizer: BertTokenizerFast, train: TokenizedSplit, tmp_path: Path
) -> None:
    whole = replace(TASK, head=head_of("classification", ("no", "yes")))
    plain = tokenize(TaskData(whole, {"train": Split.of("train", [TEXTS], None)}), tokenizer, tmp_path / "tokens")
    assert plain["train"].fingerprint == train.fingerprint


def test_the_teacher_gives_the_tasks_order(teacher: Teacher, train: TokenizedSplit, tmp_path: Path) -> None:
    raw = BertForTokenClassification.from_pretrained(tmp_path / "teacher")
    torch.testing.assert_close(outputs(teacher.model, train, 1), outputs(raw, train, 1).flip(1))
    assert teacher.model.config.id2label == dict(enumerate(TAGS))
    with pytest.raises(MismatchError, match=r"teacher for task tags: the model's labels .* hskd teacher --task tags"):
        Teacher.load(str(tmp_path / "teacher"), replace(TASK, head=Tagger(("x", "y", "z"))))


def test_a_store_holds_the_teachers_output_for_every_token(
    teacher: Teacher, train: TokenizedSplit, superset: Store, tmp_path: Path
) -> None:
    spec = HSKSpec.parse("1l_2t_0.5w")
    derived = derive(superset, spec, 2, tmp_path / "derived", shard_bytes=300)
    assert len(superset.manifest.shards) > 1 and len(derived.manifest.shards) > 1
    assert superset.manifest.target.array == derived.manifest.target.array == TASK.head.target()
    amount = measure(spec, train.tokens, teacher.shape(2), train.max_length, TASK.head.target())
    stored = sum(tensor.nbytes for shard in derived._shards for tensor in shard.values())
    assert amount.bytes_per_example * len(train) == pytest.approx(stored)
    rng = np.random.default_rng(0)
    for order in (np.arange(len(train)), *(rng.permutation(len(train))[:size] for size in (6, 4, 1))):
        expected = torch.cat([outputs(teacher.model, train, int(row)) for row in order])
        for store in (superset, Store.open(derived.folder)):
            found = store.targets(store.rows(train.ids[order]))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    first, second = (derived.targets(np.array([row])) for row in (0, 1))
    assert len(first) != len(second) and not torch.equal(first[1], second[1])


def test_offline_is_online(teacher: Teacher, train: TokenizedSplit, superset: Store) -> None:
    offline = StoreSource(superset, train, 2)
    online = OnlineSource(teacher, train.sep_id, None, 2)
    batch = train.collate([5, 0, 3])
    torch.testing.assert_close(offline.targets(batch), online.targets(batch), atol=1e-5, rtol=1e-5)
    assert len(offline.targets(batch)) == int(batch["attention_mask"].sum())


def test_a_store_alone_says_its_task(train: TokenizedSplit, superset: Store) -> None:
    assert store_examples(superset).fingerprint == train.fingerprint
    assert store_task(superset).head == TASK.head
    HEADS.remove(Tagger.kind)
    with pytest.raises(HskdError, match="unknown head 'tagger'; known: classification, regression"):
        store_task(superset)
    HEADS.register(Tagger)


def test_a_student_learns_from_labels_and_from_the_store(
    tokenizer: BertTokenizerFast, teacher: Teacher, train: TokenizedSplit, superset: Store, tmp_path: Path
) -> None:
    make_bert(1).save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    folder = create_tinybert(
        TinyBertSettings(checkpoint=str(tmp_path / "checkpoint")), TASK, str(tmp_path / "teacher"), tmp_path / "student"
    )
    student = load_student(folder, TASK.head)
    assert isinstance(student, BertForTokenClassification) and TASK.head.matches(student)
    assert isinstance(load_student(folder), BertForTokenClassification), "the folder says which head it has"
    source, batch, head = StoreSource(superset, train, 2), train.collate(range(len(train))), TASK.head
    scores = []
    for loss_of in ("gold", "distil"):
        model = load_student(folder, head)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            rows = head.rows(model(**model_inputs(batch)), batch)
            if loss_of == "gold":
                loss = head.gold_loss(rows, head.labels(batch))
            else:
                loss = head.distil_loss(rows, source.targets(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        scores.append(head.metrics(rows.detach().numpy(), head.labels(batch).numpy())["score"])
    assert scores[0] > 0.9, "it learned the labels by heart"


def test_a_new_teacher_gets_the_head(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    make_bert(1).save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), TASK, new_head=True)
    assert isinstance(model, BertForTokenClassification) and output_names(model.config) == TAGS
