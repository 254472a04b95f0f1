"""Token classification, from loading data to a student's loss and score."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file, save_file
from support.kept import CPU, require_same_on_device
from support.shards import rewritten
from torch.nn import functional as F
from transformers import BertForTokenClassification, BertTokenizerFast, PreTrainedModel

from hskd.distill.source import OnlineSource, StoreSource
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.fast import LeanEncoder
from hskd.heads import BEGINS, HEADS, IGNORED, Head, TokenClassification, head_of, output_names
from hskd.spec import HSKSpec
from hskd.store.amount import measure
from hskd.store.derive import derive
from hskd.store.examples import store_examples, store_task
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.on_device import PlacedStore
from hskd.store.reader import Store
from hskd.students import load_student
from hskd.students.pretrained.create import create_tinybert
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.model import RositaForTokenClassification
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import Split, Task, TaskData, TokenizedSplit, model_inputs, tokenize
from hskd.tasks.content import labelled
from hskd.teachers.forward import ForwardOptions, teacher_forward
from hskd.teachers.loading import Teacher, load_classifier
from hskd.training import HeadModule, Predictor

SMALL_SHARD = 2_000
TAGS = ("other", "noun", "praise")
HEAD = TokenClassification(TAGS, ("token_accuracy",))
TASK = Task("tags", ("text",), "tags", HEAD, hsk_epochs=1, max_length=12)
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
    """A teacher whose labels have another order than the task's."""
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
    """Return the model's logits for the words of one example, computed without padding."""
    logits: torch.Tensor = model.eval()(**model_inputs(split.collate([row]))).logits[0]
    starts = split.word_starts
    assert starts is not None
    return logits[torch.from_numpy(starts[split.offsets[row] : split.offsets[row + 1]])]


def test_labels_follow_their_words(tokenizer: BertTokenizerFast, train: TokenizedSplit) -> None:
    batch = train.collate(range(len(train)))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    for row, text in enumerate(TEXTS):
        expected: list[int] = [BEGINS]
        for word in text.split():
            pieces = tokenizer.tokenize(word)
            expected += [KINDS.get(word, 0), *[IGNORED] * (len(pieces) - 1)]
        expected = [*expected[: TASK.max_length - 1], IGNORED]
        assert batch["labels"][row, : len(expected)].tolist() == expected, text
        assert int(batch["attention_mask"][row].sum()) == len(expected)
    labelled = (batch["labels"].flatten() >= 0).nonzero()[:, 0]
    assert torch.equal(batch["words"], labelled)
    assert torch.equal(HEAD.labels(batch), batch["labels"][batch["labels"] >= 0])
    assert len(tokenizer.tokenize(TEXTS[-1])) > TASK.max_length, "one is truncated"
    assert len(tokenizer.tokenize("2020s")) > 1, "a word has several pieces"
    order = [4, 0, 2]
    taken = train.take(order).collate(range(3))
    for name in ("labels", "words"):
        assert torch.equal(taken[name], train.collate(order)[name])
    assert torch.equal(train.first(3).collate([1])["labels"][0], train.collate([_third(train)])["labels"][0])


def _third(train: TokenizedSplit) -> int:
    """Return the row of ``train`` that is the second of its subset of three."""
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
    assert replace(train, word_starts=None).fingerprint == plain["train"].fingerprint != train.fingerprint


def test_words_are_part_of_the_data(
    tokenizer: BertTokenizerFast, teacher: Teacher, superset: Store, train: TokenizedSplit, tmp_path: Path
) -> None:
    """Texts that differ only in white space have the same tokens, but other words."""

    def split(text: str) -> TokenizedSplit:
        texts = [text, *TEXTS[1:]]
        data = TaskData(TASK, {"train": Split.of("train", [texts], [[0] * len(text.split()) for text in texts])})
        return replace(tokenize(data, tokenizer, tmp_path / "tokens")["train"], ids=train.ids)

    joined, apart = split("warm,film"), split("warm , film")
    assert np.array_equal(joined.input_ids, apart.input_ids) and joined.fingerprint != apart.fingerprint
    assert labelled(HEAD, replace(joined, labels=None)) != labelled(HEAD, replace(apart, labels=None))
    store = extract(teacher, TASK, apart, Superset((1,), ()), tmp_path / "apart")
    assert len(store.targets(np.array([0]))) == 3
    with pytest.raises(MismatchError, match="the texts differ in white space"):
        StoreSource(store, joined, 2)
    with pytest.raises(MismatchError, match="holds the teacher's outputs for words, and those for examples are needed"):
        StoreSource(superset, replace(train, word_starts=None), 2)


@pytest.mark.parametrize("value", [1, 2])
def test_words_that_cannot_be_are_refused(superset: Store, tmp_path: Path, value: int) -> None:
    folder = shutil.copytree(superset.folder, tmp_path / "copy")

    def change(arrays: dict[str, torch.Tensor]) -> None:
        arrays["word_starts"][0 if value == 1 else 1] = value

    rewritten(folder, change)
    with pytest.raises(CorruptionError, match="word starts that are neither 0 nor 1, or one at the first"):
        Store.open(folder).word_starts(np.array([0]))


def test_words_are_verified_before_they_are_read(superset: Store, tmp_path: Path) -> None:
    folder = shutil.copytree(superset.folder, tmp_path / "copy")
    shard = folder / superset.manifest.shards[0].file
    arrays = load_file(shard)
    arrays["word_starts"][1] ^= 1
    save_file(arrays, shard)
    for read in ("word_starts", "targets", "target_array"):
        with pytest.raises(CorruptionError, match="SHA-256"):
            getattr(Store.open(folder), read)(np.array([0]))


def test_the_teacher_gives_the_tasks_order(teacher: Teacher, train: TokenizedSplit, tmp_path: Path) -> None:
    raw = BertForTokenClassification.from_pretrained(tmp_path / "teacher")
    torch.testing.assert_close(outputs(teacher.model, train, 1), outputs(raw, train, 1).flip(1))
    assert teacher.model.config.id2label == dict(enumerate(TAGS))
    with pytest.raises(MismatchError, match=r"teacher for task tags: the model's labels .* hskd teacher --task tags"):
        Teacher.load(str(tmp_path / "teacher"), replace(TASK, head=TokenClassification(("x", "y", "z"))))


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
    assert len(offline.targets(batch)) == len(batch["words"]) < int(batch["attention_mask"].sum()) - 3


@pytest.mark.parametrize("text", ["1l_2t_0.5w", "all_all_all", "2l_2t_0.5w,length=pool", "1l_1t_all_0.5e"])
def test_a_store_on_the_device_holds_the_same(superset: Store, tmp_path: Path, text: str) -> None:
    store = derive(superset, HSKSpec.parse(text), 2, tmp_path / "derived", shard_bytes=300)
    assert len(store.manifest.shards) > 1
    require_same_on_device(store)
    rows = np.array([5, 0, 3, 0])
    assert torch.equal(PlacedStore(superset, CPU).targets(rows), superset.targets(rows))
    assert PlacedStore(store, torch.device("meta")).targets(rows).shape == superset.targets(rows).shape


def test_tokens_are_ranked_by_what_the_words_predictions_depend_on(teacher: Teacher, train: TokenizedSplit) -> None:
    batch = train.collate([1, 0])
    found = teacher_forward(
        teacher.model, batch, train.sep_id, (1,), (), head=HEAD, options=ForwardOptions(gradients=(1,))
    )
    output = teacher.model(**model_inputs(batch), output_hidden_states=True)
    loss = -HEAD.rows(output, batch).log_softmax(-1).amax(-1).sum()
    state = output.hidden_states[1]
    scores = (state * torch.autograd.grad(loss, state)[0]).sum(-1).abs()[batch["attention_mask"].bool()]
    torch.testing.assert_close(torch.from_numpy(found.states.gradient[1]), scores.detach(), atol=1e-6, rtol=1e-4)


def test_words_are_kept_of_which_the_teacher_is_least_certain(
    teacher: Teacher, train: TokenizedSplit, superset: Store, tmp_path: Path
) -> None:
    spec = HSKSpec.parse("2l_2t_all,length=entropy,precision=fp32")
    offline = StoreSource(derive(superset, spec, 2, tmp_path / "derived"), train, 2)
    online = OnlineSource(teacher, train.sep_id, spec, 2)
    rows = np.arange(len(train))
    batch = train.collate(rows)
    one, other = online.kept(batch), offline.kept(batch)
    assert torch.equal(one.positions, other.positions) and torch.equal(one.counts, other.counts)
    torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)
    row = 0
    assert train.word_starts is not None
    for b in rows.tolist():
        places = np.flatnonzero(train.word_starts[train.offsets[b] : train.offsets[b + 1]])
        logs = outputs(teacher.model, train, b).double().log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1).numpy()
        expected = sorted(places[np.argsort(-entropy, kind="stable")[:2]].tolist())
        assert one.positions[row : row + one.counts[b], 0].tolist() == expected
        row += len(expected)
    stored = sum(tensor.nbytes for shard in offline._store._shards for tensor in shard.values())
    amount = measure(spec, train.tokens, teacher.shape(2), train.max_length, TASK.head.target())
    assert amount.bytes_per_example * len(train) == pytest.approx(stored)


@pytest.mark.parametrize("examples", ["disagree", "entropy"])
def test_examples_are_ranked_by_the_mean_over_their_words(
    teacher: Teacher, train: TokenizedSplit, tmp_path: Path, examples: str
) -> None:
    spec = HSKSpec.parse(f"1l_all_all_0.5e,examples={examples}")
    held = Superset.of([spec], teacher.shape(2))
    assert held.gold_losses == (examples == "disagree")
    superset = extract(teacher, TASK, train, held, tmp_path / "superset", ExtractOptions(batch_size=3))
    assert train.labels is not None
    scores = []
    for row in range(len(train)):
        logs = outputs(teacher.model, train, row).double().log_softmax(1)
        labels = train.labels[train.offsets[row] : train.offsets[row + 1]]
        words = labels[labels >= 0]
        assert len(words) == len(logs)
        losses = -logs[range(len(words)), words] if examples == "disagree" else -(logs.exp() * logs).sum(1)
        scores.append(float(losses.mean()))
    expected = sorted(np.argsort(scores)[::-1][: len(train) // 2].tolist())
    rows = derive(superset, spec, 2, tmp_path / "derived").rows_with_hsk
    assert rows.tolist() == expected
    assert OnlineSource(teacher, train.sep_id, spec, 2).rows_with_hsk(train).tolist() == expected


def test_a_store_alone_says_its_task(train: TokenizedSplit, superset: Store) -> None:
    alone = store_examples(superset)
    assert alone.fingerprint == train.fingerprint and alone.labels is None
    assert torch.equal(alone.collate([4, 1])["words"], train.collate([4, 1])["words"])
    assert replace(store_task(superset).head, metric_names=HEAD.metric_names) == HEAD
    HEADS.remove(TokenClassification.kind)
    try:
        with pytest.raises(HskdError, match=r"unknown head 'token_classification'; known: .*regression"):
            store_task(superset)
    finally:
        HEADS.register(TokenClassification)


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
        scores.append(Predictor(HeadModule(model.eval(), head), "fp32").score(train)["score"])
    assert scores[0] > 0.9, "it learned the labels by heart"


def test_a_new_teacher_gets_the_head(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    make_bert(1).save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), TASK, new_head=True)
    assert isinstance(model, BertForTokenClassification) and output_names(model.config) == TAGS


def test_the_lean_pass_is_the_whole_one(teacher: Teacher, train: TokenizedSplit) -> None:
    lean = LeanEncoder(teacher.model)
    assert lean.reads_every_parameter
    inputs = model_inputs(train.collate([0, 1, 2]))
    with torch.no_grad():
        whole = teacher.model(**inputs).logits
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(lean.output(inputs).logits[real], whole[real], atol=1e-5, rtol=1e-5)


def test_a_pruned_student(teacher: Teacher, train: TokenizedSplit, tmp_path: Path) -> None:
    whole = RositaSettings(layers=2, heads=4, ffn=64)
    folder = create_rosita(teacher, train, whole, tmp_path / "whole")
    student = load_student(folder, HEAD)
    assert isinstance(student, RositaForTokenClassification) and HEAD.matches(student)
    torch.testing.assert_close(outputs(student, train, 1), outputs(teacher.model, train, 1), atol=1e-5, rtol=1e-5)
    small = load_student(create_rosita(teacher, train, RositaSettings(layers=1, heads=2, ffn=8), tmp_path / "small"))
    assert isinstance(small, RositaForTokenClassification) and small.num_parameters() < student.num_parameters()


ENTITIES = TokenClassification(("O", "B-x", "I-x", "B-y", "I-y"))


def scored(head: TokenClassification, gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Return the metrics of examples that have [CLS] and [SEP]."""
    names = list(head.label_names)
    labels = [[BEGINS, *map(names.index, tags), IGNORED] for tags in gold]
    rows = [[0, *map(names.index, tags), 0] for tags in predicted]
    return head.metrics(np.eye(len(names))[np.concatenate(rows)], np.concatenate(labels))


def test_entities_are_counted_whole() -> None:
    gold = [["B-x", "I-x", "O"], ["B-y", "O", "B-x"]]
    assert scored(ENTITIES, gold, gold) == {"entity_f1": 1.0, "token_accuracy": 1.0, "score": 1.0}
    # Of three, one has a wrong end, one a wrong type, and one is right.
    found = scored(ENTITIES, gold, [["B-x", "O", "O"], ["B-x", "O", "B-x"]])
    assert found == {
        "entity_f1": pytest.approx(1 / 3),
        "token_accuracy": pytest.approx(4 / 6),
        "score": found["entity_f1"],
    }
    assert scored(ENTITIES, gold, [["O"] * 3] * 2)["score"] == 0.0
    # As in conlleval and seqeval, an I without a B of its type before it opens an entity.
    assert scored(ENTITIES, [["O", "B-x", "I-x"]], [["O", "I-x", "I-x"]])["score"] == 1.0
    # An entity does not continue in the next example.
    assert scored(ENTITIES, [["B-x"], ["B-x"]], [["B-x"], ["I-x"]])["score"] == 1.0
    bilou = TokenClassification(("O", "B-x", "I-x", "L-x", "U-x"))
    assert scored(bilou, [["U-x", "U-x", "B-x", "L-x"]], [["U-x", "O", "B-x", "L-x"]])["entity_f1"] == pytest.approx(
        0.8
    )
    parts = TokenClassification(("noun", "verb"), ("token_accuracy",))
    assert scored(parts, [["noun", "verb"]], [["noun", "noun"]]) == {"token_accuracy": 0.5, "score": 0.5}
    with pytest.raises(HskdError, match="no word has a label"):
        ENTITIES.metrics(np.zeros((2, 5)), np.array([BEGINS, IGNORED]))


def test_scores_without_some_examples() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, 20)
    labels = np.concatenate([[BEGINS, *rng.integers(0, 5, n), IGNORED] for n in lengths])
    rows = np.eye(5)[np.where(rng.random(len(labels)) < 0.3, rng.integers(0, 5, len(labels)), np.maximum(labels, 0))]
    example = ENTITIES.examples(labels)
    assert example.tolist() == [i for i, n in enumerate(lengths) for _ in range(n + 2)]
    blocks = [np.flatnonzero(np.isin(example, part)) for part in (range(5), range(5, 12), [19])]
    fast = ENTITIES.scores_without(rows, labels, blocks)
    np.testing.assert_allclose(fast, Head.scores_without(ENTITIES, rows, labels, blocks))
    assert len(set(fast)) == 3


def test_a_result_says_the_head() -> None:
    record = ENTITIES.record()
    assert head_of(record["kind"], record["label_names"], record["metric_names"]) == ENTITIES


def test_losses_are_of_words_alone(train: TokenizedSplit) -> None:
    model = BertForTokenClassification(make_bert(num_labels=3).config).eval()
    batch = train.collate([1, 3])
    rows = HeadModule(model, HEAD)(**model_inputs(batch), words=batch["words"])
    logits = model(**model_inputs(batch)).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten().clamp(min=IGNORED))
    torch.testing.assert_close(HEAD.gold_loss(rows, HEAD.labels(batch)), expected)
