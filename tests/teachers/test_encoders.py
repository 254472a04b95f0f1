"""Teachers of every type of encoder, fine-tuned, extracted, and distilled into students of the TinyBERT type."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD
from support.distill_lab import CPU, arguments, losses
from support.real_tokenizers import byte_pairs, distil_wordpiece, mpnet_pieces, wordpiece
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hskd.distill.source import KnowledgeSource, OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import HskdError, MismatchError
from hskd.fast import fast_training
from hskd.fast.embeddings import compact_embeddings
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.students.pretrained.create import create_tinybert
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import Task, TaskData, TokenizedSplit, load_task, model_inputs, tokenize
from hskd.teachers.finetune import TeacherSettings, finetune
from hskd.teachers.forward import ForwardOptions, teacher_forward
from hskd.teachers.loading import Teacher
from hskd.training import HeadModule, Predictor
from hskd.trials.prepare import Distillation, Student, from_store, from_teacher
from hskd.trials.settings import DistillSettings
from hskd.trials.stages import RunOptions, TrialInputs
from hskd.trials.trial import About, run_prepared

MAX_LENGTH = 24
SPECS = ("all_all_all,precision=fp32", "2l_3t_0.5w,precision=fp32")


@dataclass(frozen=True)
class Kind:
    """A type of encoder with its tokenizer."""

    model_type: str
    tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    token_types: bool
    more: tuple[tuple[str, Any], ...] = ()

    def body(self, tokenizer: PreTrainedTokenizerBase, width: int, layers: int, dropout: float) -> PreTrainedModel:
        """Return a random encoder of these sizes, without a head."""
        if self.model_type == "distilbert":
            sizes = {"dim": width, "n_layers": layers, "n_heads": 4, "hidden_dim": 48}
            dropouts = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
        else:
            sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
            sizes["intermediate_size"] = 48
            dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = AutoConfig.for_model(
            self.model_type,
            vocab_size=len(tokenizer) + 3,
            max_position_embeddings=MAX_LENGTH + 2,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
            **sizes,
            **dropouts,
            **dict(self.more),
        )
        torch.manual_seed(layers)
        return AutoModel.from_config(config)


KINDS = {
    "minilm": Kind("bert", wordpiece, True),
    "roberta": Kind("roberta", byte_pairs, False, (("type_vocab_size", 1),)),
    "distilbert": Kind("distilbert", distil_wordpiece, False),
    "electra": Kind("electra", wordpiece, True, (("embedding_size", 32),)),
    "electra-small": Kind("electra", wordpiece, True, (("embedding_size", 16),)),
    "mpnet": Kind("mpnet", mpnet_pieces, False),
    "modernbert": Kind("modernbert", distil_wordpiece, False, (("local_attention", 8), ("mlp_dropout", 0.1))),
}


@dataclass(frozen=True, eq=False)
class World:
    """A teacher of one kind in ``root/teacher``, its data and superset, and students in ``root/<name>``."""

    name: str
    root: Path
    data: TaskData
    teacher: Teacher
    splits: dict[str, TokenizedSplit]

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def train(self) -> TokenizedSplit:
        return self.splits["train"]

    @property
    def superset(self) -> Store:
        return Store.open(self.root / "superset")

    def batch(self, split: str = "train") -> dict[str, torch.Tensor]:
        return self.splits[split].collate(range(len(self.splits[split])))

    def student(self, name: str) -> Student:
        return Student.load(self.root / name, self.task)

    def offline(self, spec: HSKSpec, layers: int) -> StoreSource:
        store = derive(self.superset, spec, layers, self.root / f"{spec.fingerprint}-{layers}")
        return StoreSource(store, self.train, layers)

    def online(self, spec: HSKSpec, layers: int) -> OnlineSource:
        return OnlineSource(self.teacher, self.train.sep_id, spec, layers)


def write_pairs(folder: Path) -> Path:
    """Write a task of two sentences."""
    for split, count in (("train", 24), ("dev", 8)):
        rows = ["first,second,mood"]
        for i in range(count):
            words, mood = (GOOD, "positive") if i % 2 else (BAD, "negative")
            rows.append(f"{words[i // 2 % 4]} {split[0]} {i},{'the film ' * (i % 3)}and,{mood}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every end, which is slow if it covers all imported objects
    kind, root = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    data = load_task("custom", str(write_pairs(root / "data")), ["first", "second"], "mood")
    tokenizer = kind.tokenizer(root / "body")
    kind.body(tokenizer, 32, 3, dropout=0.1).save_pretrained(root / "body")
    splits = tokenize(data, tokenizer, root / "tokens", MAX_LENGTH)
    settings = TeacherSettings(epochs=1, lr=1e-3, batch_size=8)
    finetune(str(root / "body"), data.task, splits, settings, root / "teacher", RunOptions("fp32", CPU))
    teacher = Teacher.load(str(root / "teacher"), data.task)
    extract(
        teacher,
        data.task,
        splits["train"],
        Superset((0, 1, 2, 3), (1, 2, 3)),
        root / "superset",
        ExtractOptions(batch_size=8),
    )
    # A narrower encoder of the same type, and a BERT without a tokenizer of its own.
    kind.tokenizer(root / "same checkpoint")
    kind.body(tokenizer, 16, 2, dropout=0.0).save_pretrained(root / "same checkpoint")
    KINDS["minilm"].body(tokenizer, 16, 2, dropout=0.0).save_pretrained(root / "bert checkpoint")
    for name in ("same", "bert"):
        made_from = TinyBertSettings(checkpoint=str(root / f"{name} checkpoint"))
        create_tinybert(made_from, data.task, str(root / "teacher"), root / name)
    return World(request.param, root, data, teacher, splits)


def test_special_tokens_are_the_tokenizers_own(world: World) -> None:
    tokenizer, train = world.teacher.tokenizer, world.train
    expected = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    assert world.superset.manifest.special_ids == expected
    assert (train.cls_id, train.sep_id, train.pad_id) == tuple(expected.values())
    like_roberta = world.kind.tokenizer in (byte_pairs, mpnet_pieces)
    assert (tokenizer.cls_token, tokenizer.sep_token) == (("<s>", "</s>") if like_roberta else ("[CLS]", "[SEP]"))
    for i in range(len(train)):
        ids = train.input_ids[train.offsets[i] : train.offsets[i + 1]]
        assert ids[0] == train.cls_id
        assert ids[-1] == train.sep_id
        inner = np.flatnonzero(ids == train.sep_id)[:-1]
        assert len(inner) == (2 if like_roberta else 1), "RoBERTa puts two of them between two sentences"
        assert (np.diff(inner) == 1).all()


def test_token_types_only_where_the_tokenizer_has_them(world: World) -> None:
    student = tokenize(world.data, AutoTokenizer.from_pretrained(world.root / "bert"), world.root / "t", MAX_LENGTH)
    for train in (world.train, student["train"]):
        assert (train.token_type_ids is not None) == world.kind.token_types
        assert ("token_type_ids" in train.collate([0])) == world.kind.token_types
    assert student["train"].fingerprint == world.train.fingerprint


def test_the_cls_row_is_that_of_eager_attention(world: World) -> None:
    eager = AutoModelForSequenceClassification.from_pretrained(world.root / "teacher", attn_implementation="eager")
    batch = world.batch()
    with torch.no_grad():
        weights = eager.eval()(**model_inputs(batch), output_attentions=True).attentions
    states = world.superset.states(world.superset.rows(batch["example_ids"].numpy()))
    assert (batch["attention_mask"] == 0).any()
    for layer in (1, 2, 3):
        row = weights[layer - 1][:, :, 0].mean(dim=1)
        expected = row[batch["attention_mask"].bool()]
        np.testing.assert_allclose(states.attention[layer], expected.numpy(), atol=1e-6, rtol=1e-5)
        assert expected.std() > 0.01, "it looks at some more than at others"


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
READ: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "rosita": SMALL | {"num_attention_heads": 3, "attention_head_size": 8, "embedding_rank": 6},
    "roberta": SMALL,
    "roberta-prelayernorm": SMALL,
    "xlm-roberta": SMALL,
    "xlm-roberta-xl": SMALL,
    "camembert": SMALL,
    "data2vec-text": SMALL,
    "electra": SMALL | {"embedding_size": 16},
    "ernie": SMALL,
    "megatron-bert": SMALL,
    "rembert": SMALL,
    "roformer": SMALL | {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "mpnet": SMALL,
    "albert": SMALL | {"embedding_size": 16},
    "albert-groups": SMALL | {"num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16},
    "deberta": SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1},
    "deberta-v2": SMALL
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "share_att_key": True,
       "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    "deberta-v2-conv": SMALL | {"conv_kernel_size": 3, "relative_attention": True, "pos_att_type": ["c2p"]},
    "modernbert": SMALL | {"local_attention": 4, "global_attn_every_n_layers": 2, "num_hidden_layers": 3},
    "nomic_bert": SMALL,
    "eurobert": SMALL | {"num_key_value_heads": 2},
    "xmod": SMALL | {"languages": ["en_XX"], "default_language": "en_XX"},
    "esm": SMALL | {"position_embedding_type": "rotary", "mask_token_id": 4},
}  # fmt: skip
"""Types of encoder whose attention can be read, with sizes."""


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("implementation", ["eager", None])
def test_the_cls_row_of_every_type_that_is_read(kind: str, implementation: str | None) -> None:
    model_type = next(name for name in (kind, kind.rpartition("-")[0]) if name in CONFIG_MAPPING)
    config = AutoConfig.for_model(
        model_type, vocab_size=50, pad_token_id=1, max_position_embeddings=20, initializer_range=0.3, **READ[kind]
    )
    layers = config.num_hidden_layers
    torch.manual_seed(0)
    eager = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in eager.named_parameters():
            if "relative_attention_bias" in name or name.endswith("bias"):
                weight.normal_(std=0.3)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 6:], mask[1, 4:] = 0, 0
    batch = {"input_ids": torch.randint(5, 50, (3, 9)).where(mask.bool(), 1), "attention_mask": mask}
    with torch.no_grad():
        output = eager(**batch, output_attentions=True, output_hidden_states=True)
    model = AutoModel.from_config(config, attn_implementation=implementation).eval()
    model.load_state_dict(eager.state_dict())
    chosen = model.config._attn_implementation
    every = range(1, layers + 1)
    given = teacher_forward(model, batch | {"example_ids": torch.arange(3)}, 2, (0, *every), every)
    assert model.config._attn_implementation == chosen
    for layer in every:
        expected = output.attentions[layer - 1][:, :, 0].mean(dim=1)[mask.bool()]
        np.testing.assert_allclose(given.states.attention[layer], expected.numpy(), atol=1e-6)
        assert expected.std() > 0.005, "it looks at some more than at others"
    for layer in (0, *every):
        torch.testing.assert_close(given.states.hidden[layer], output.hidden_states[layer][mask.bool()])
    one = teacher_forward(model, batch | {"example_ids": torch.arange(3)}, 2, (), (2,)).states.attention
    assert list(one) == [2]
    np.testing.assert_array_equal(one[2], given.states.attention[2])


@pytest.mark.parametrize(
    ("model_type", "more"),
    [("big_bird", {}), ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}), ("fnet", {}), ("convbert", {})],
)
def test_attention_of_another_kind_is_refused(model_type: str, more: dict[str, int]) -> None:
    """Local attention, causal attention, no attention, and a type whose attention hskd does not read."""
    config = AutoConfig.for_model(model_type, vocab_size=50, max_position_embeddings=20, **(more or SMALL))
    model = AutoModel.from_config(config)
    batch = {"input_ids": torch.full((1, 4), 7), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    batch["example_ids"] = torch.arange(1)
    with pytest.raises(HskdError, match=rf"attention of a {model_type} model .*,length=left, .* --attention-layers"):
        teacher_forward(model, batch, 2, (0,), (1,))
    assert teacher_forward(model, batch, 2, (0, 2), ()).states.hidden[2].shape == (4, 32)


def test_scores_before_softmax_are_refused_where_there_are_none() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("mpnet", vocab_size=50, pad_token_id=1, **SMALL))
    batch = {"input_ids": torch.full((1, 4), 7), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with pytest.raises(HskdError, match="before softmax"):
        teacher_forward(
            model, batch | {"example_ids": torch.arange(1)}, 2, (), (1,), options=ForwardOptions(softmax=False)
        )


def test_hidden_states_are_those_of_the_model(world: World) -> None:
    batch = world.batch()
    with torch.no_grad():
        expected = world.teacher.model(**model_inputs(batch), output_hidden_states=True)
    found = teacher_forward(world.teacher.model, batch, world.train.sep_id, (0, 1, 2, 3), (), head=world.teacher.head)
    assert len(expected.hidden_states) == 4
    for layer, states in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.states.hidden[layer], states[batch["attention_mask"].bool()])
    torch.testing.assert_close(found.target, expected.logits)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["bert", "same"])
def test_offline_is_online(world: World, name: str, spec: str, tmp_path: Path) -> None:
    parsed = HSKSpec.parse(spec)

    def trace(source: KnowledgeSource) -> list[float]:
        student = world.student(name)
        module = HSKModule(student.model.train(), 32, 0, student.folder)
        assert module.projection is not None
        return losses(HSKTrainer(module, arguments(tmp_path, batch_size=8, epochs=3), world.train, source))

    online = trace(world.online(parsed, 2))
    assert len(online) == 9
    assert sum(online[-3:]) < sum(online[:3])
    assert trace(world.offline(parsed, 2)) == pytest.approx(online, rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "same"])
def test_offline_is_online_in_the_prediction_stage(world: World, name: str, tmp_path: Path) -> None:
    def trace(source: KnowledgeSource) -> list[float]:
        model = HeadModule(world.student(name).model.train(), world.task.head)
        return losses(PredictionTrainer(model, arguments(tmp_path, batch_size=8, epochs=2), world.train, source))

    parsed = HSKSpec.parse(SPECS[0])
    assert trace(world.offline(parsed, 2)) == pytest.approx(trace(world.online(parsed, 2)), rel=1e-5)


def test_a_whole_trial_from_a_store_and_from_the_teacher(world: World, tmp_path: Path) -> None:
    settings = DistillSettings(hsk_epochs=1, prediction_epochs=1, batch_size=8, hsk_lr=1e-3, prediction_lr=1e-3)
    spec, results = HSKSpec.parse(SPECS[1]), []
    for name in ("offline", "online"):
        student = world.student("bert")
        if name == "offline":
            prepared = from_store(
                world.superset, Distillation(settings, spec, student, world.task, world.train), tmp_path / "derived"
            )
        else:
            prepared = from_teacher(
                world.teacher, Distillation(settings, spec, student, world.task, world.train), "fp32"
            )
        inputs = TrialInputs(
            settings, world.task, world.splits, student.model, prepared.teacher_width, prepared.source, student.folder
        )
        results.append(run_prepared(inputs, tmp_path / name, RunOptions("fp32"), About(prepared.record)).as_json())
    offline, online = results
    assert offline["teacher"] == online["teacher"] == world.teacher.fingerprint
    for stage in ("hsk", "prediction"):
        assert offline["stages"][stage]["last_loss"] == pytest.approx(online["stages"][stage]["last_loss"], rel=1e-5)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "offline" / "student")
    logits = np.load(tmp_path / "offline" / "predictions.npz")["dev"]
    rows = Predictor(HeadModule(again, world.task.head), "fp32").rows(world.splits["dev"])
    np.testing.assert_allclose(rows, logits, atol=2e-3)


@pytest.mark.parametrize("name", ["bert", "same"])
def test_a_model_of_touched_rows_computes_the_same(world: World, name: str) -> None:
    """This includes types that count positions from tokens that are not pads."""
    model, batch = world.student(name).model, model_inputs(world.batch())
    with torch.no_grad():
        expected = model(**batch).logits
        with compact_embeddings(model, [world.train.input_ids]):
            rows = model.get_input_embeddings().weight.shape[0]
            found = model(**batch).logits
        again = model(**batch).logits
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)
    assert rows < model.get_input_embeddings().weight.shape[0]


def test_a_student_pruned_from_every_type(world: World, tmp_path: Path) -> None:
    """It is made, saved, loaded, and distilled from the store and from the teacher alike."""
    settings = RositaSettings(layers=2, heads=3, ffn=24, rank=8, importance_examples=16)
    folder = create_rosita(world.teacher, world.train, settings, tmp_path / "student")
    pruned = Student.load(folder, world.task).model
    assert pruned.config.model_type.startswith("rosita") and pruned.config.pad_token_id == world.train.pad_id
    assert AutoTokenizer.from_pretrained(folder)("the film").input_ids[0] == world.train.cls_id

    def trace(source: KnowledgeSource) -> list[float]:
        student = Student.load(folder, world.task).model.eval()  # the same start, without dropout
        module = HSKModule(student, 32, 0)
        with fast_training(student, [split.input_ids for split in world.splits.values()]) as encoder:
            module.encoder = encoder
            return losses(HSKTrainer(module, arguments(tmp_path, batch_size=8, epochs=3), world.train, source))

    parsed = HSKSpec.parse(SPECS[1])
    online = trace(world.online(parsed, 2))
    assert sum(online[-3:]) < sum(online[:3])
    assert trace(world.offline(parsed, 2)) == pytest.approx(online, rel=1e-5)


def test_a_student_of_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = byte_pairs if world.kind.tokenizer is not byte_pairs else wordpiece
    tokenizer = other(tmp_path / "checkpoint")
    KINDS["minilm"].body(tokenizer, 16, 2, dropout=0.0).save_pretrained(tmp_path / "checkpoint")
    checkpoint = TinyBertSettings(checkpoint=str(tmp_path / "checkpoint"))
    # It is made with its own tokenizer. Without an alignment, distilling it is an error.
    create_tinybert(checkpoint, world.task, str(world.root / "teacher"), tmp_path / "student")
    student = Student.load(tmp_path / "student", world.task)
    wanted = Distillation(DistillSettings(), None, student, world.task, world.train)
    with pytest.raises(MismatchError, match="have different tokenizers"):
        from_store(world.superset, wanted, tmp_path / "derived")
    with pytest.raises(MismatchError, match="have different tokenizers"):
        from_teacher(world.teacher, wanted, "fp32")


def test_token_types_are_the_teachers(tmp_path: Path) -> None:
    """A DistilBERT's tokenizer splits texts like a BERT's but gives no types; its student learns from a BERT."""
    data = load_task("custom", str(write_pairs(tmp_path / "data")), ["first", "second"], "mood")
    tokenizer = wordpiece(tmp_path / "teacher")
    body = KINDS["minilm"].body(tokenizer, 32, 2, dropout=0.0)
    classifier = AutoModelForSequenceClassification.from_config(body.config)
    classifier.config.id2label, classifier.config.label2id = dict(enumerate(data.task.label_names)), {}
    classifier.save_pretrained(tmp_path / "teacher")
    KINDS["distilbert"].tokenizer(tmp_path / "checkpoint")
    KINDS["distilbert"].body(tokenizer, 16, 2, dropout=0.0).save_pretrained(tmp_path / "checkpoint")
    settings = TinyBertSettings(checkpoint=str(tmp_path / "checkpoint"))
    create_tinybert(settings, data.task, str(tmp_path / "teacher"), tmp_path / "student")
    own = AutoTokenizer.from_pretrained(tmp_path / "student")
    train = tokenize(data, own, tmp_path / "tokens", MAX_LENGTH)["train"]
    assert train.token_type_ids is not None
    student, teacher = Student.load(tmp_path / "student", data.task), Teacher.load(str(tmp_path / "teacher"), data.task)
    prepared = from_teacher(teacher, Distillation(DistillSettings(), None, student, data.task, train), "fp32")
    assert prepared.source is not None
    classifier = HeadModule(student.model, data.task.head)
    [loss, *_] = losses(
        PredictionTrainer(classifier, arguments(tmp_path, batch_size=8, epochs=1), train, prepared.source)
    )
    assert np.isfinite(loss)

    without = tokenize(data, AutoTokenizer.from_pretrained(tmp_path / "checkpoint"), tmp_path / "t", MAX_LENGTH)[
        "train"
    ]
    assert without.token_type_ids is None
    with pytest.raises(MismatchError, match="gives no token types"):
        from_teacher(teacher, Distillation(DistillSettings(), None, student, data.task, without), "fp32")


def test_a_student_of_one_token_type_is_refused_where_there_are_two(tmp_path: Path) -> None:
    data = load_task("custom", str(write_pairs(tmp_path / "data")), ["first", "second"], "mood")
    tokenizer = wordpiece(tmp_path / "teacher")
    KINDS["minilm"].body(tokenizer, 32, 2, dropout=0.0).save_pretrained(tmp_path / "teacher")
    wordpiece(tmp_path / "checkpoint")
    one = Kind("bert", wordpiece, True, (("type_vocab_size", 1),))
    one.body(tokenizer, 16, 2, dropout=0.0).save_pretrained(tmp_path / "checkpoint")
    settings = TinyBertSettings(checkpoint=str(tmp_path / "checkpoint"))
    with pytest.raises(MismatchError, match="has embeddings for 1 token type"):
        create_tinybert(settings, data.task, str(tmp_path / "teacher"), tmp_path / "student")
