"""Students of the TinyBERT type from every kind of checkpoint folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file, save_file
from support.calls import Calls
from support.checkpoints import SIZES, as_now, save_old_checkpoint
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    PreTrainedModel,
)

from hskd.distill.projection import PROJECTION_FILE
from hskd.distill.trainer import HSKModule
from hskd.errors import HskdError, MismatchError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.students.base import STUDENT_FILE
from hskd.students.pretrained.create import create_tinybert
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.tasks import Task, load_task
from hskd.teachers.loading import load_tokenizer
from hskd.trials.prepare import Student


@pytest.fixture(scope="module")
def task(data_folder: Path) -> Task:
    return load_task("custom", str(data_folder), ["sentence"], "mood").task


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A published checkpoint. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_old_checkpoint(folder, tokenizer)
    return folder


class Make:
    """Makes students of the test's task and teacher in folders of its own, and collects the messages."""

    def __init__(self, task: Task, teacher: Path, root: Path) -> None:
        self.task, self.teacher, self.root = task, str(teacher), root
        self.said: list[str] = []
        self.count = 0

    def __call__(
        self, checkpoint: Path | str, seed: int = 0, task: Task | None = None, folder: Path | None = None
    ) -> Path:
        self.count += 1
        return create_tinybert(
            TinyBertSettings(checkpoint=str(checkpoint), seed=seed),
            task or self.task,
            self.teacher,
            folder or self.root / f"student-{self.count}",
            progress=Calls(say=self.said.append),
        )


@pytest.fixture
def make(task: Task, teacher_folder: Path, tmp_path: Path) -> Make:
    return Make(task, teacher_folder, tmp_path)


def model_of(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STUDENT_FILE).read_text())


def bare(folder: Path, tokenizer: BertTokenizerFast | None, pooler: bool = True, **sizes: Any) -> BertModel:
    """Save a body alone, as ``save_pretrained`` does: safetensors, names without a prefix."""
    torch.manual_seed(5)
    body = BertModel(BertConfig(**SIZES | sizes, initializer_range=0.2), add_pooling_layer=pooler)
    body.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return body


def test_every_weight_of_the_body_is_an_old_checkpoints(
    make: Make, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    weights = save_old_checkpoint(tmp_path / "old", tokenizer)
    folder = make(tmp_path / "old")
    student = model_of(folder).bert.state_dict()
    body = {as_now(name): weight for name, weight in weights.items() if name.startswith("bert.")}
    assert {f"bert.{name}" for name in student} == {*body}
    assert all(torch.equal(weight, body[f"bert.{name}"]) for name, weight in student.items())


def test_what_has_no_place_is_said_in_one_line_and_written_down(make: Make, checkpoint: Path) -> None:
    folder = make(checkpoint)
    unexpected = record(folder)["unexpected_keys"]
    assert {name.split(".")[0] for name in unexpected} == {"cls"}
    assert len(unexpected) == 9
    [line] = make.said
    assert "9 of its weights do not exist in the student: cls.predictions.bias" in line


def test_the_record_says_what_the_student_was_made_from(make: Make, checkpoint: Path) -> None:
    folder = make(checkpoint)
    made = record(folder)
    assert made["kind"] == "tinybert"
    assert made["teacher"] is None, "it may learn from any teacher of its tokenizer"
    assert made["name"] == str(checkpoint)
    assert made["parameters"] == model_of(folder).num_parameters()
    assert made["fit_dense"] == [32, 16]
    assert made["drawn"] == ["classifier"]
    assert {"torch", "transformers", "git_commit"} <= {*made["made_by"]}


def test_the_student_can_be_distilled_into(
    make: Make, task: Task, checkpoint: Path, tokenizer: BertTokenizerFast
) -> None:
    student = Student.load(make(checkpoint), task)
    assert student.layers == 2
    assert student.teacher is None
    student.require_teacher("any teacher", student.tokenizer, "a store")
    with pytest.raises(MismatchError, match="different tokenizers"):
        student.require_teacher("any teacher", "another tokenizer", "a store")
    assert student.model.config.id2label == {0: "negative", 1: "positive"}


def test_fit_dense_is_where_w_starts(make: Make, task: Task, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    weights = save_old_checkpoint(tmp_path / "old", tokenizer)
    folder = make(tmp_path / "old")
    module = HSKModule(Student.load(folder, task).model, 32, 0, folder)
    assert module.projection is not None
    assert torch.equal(module.projection.weight, weights["fit_dense.weight"])
    assert torch.equal(module.projection.bias, weights["fit_dense.bias"])
    with pytest.raises(MismatchError, match=r"maps width 16 to 32; .* the teacher's 48"):
        HSKModule(Student.load(folder, task).model, 48, 0, folder)


def test_without_fit_dense_w_is_left_to_the_seed(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    save_old_checkpoint(tmp_path / "old", tokenizer, fit_dense=None)
    folder = make(tmp_path / "old")
    assert not (folder / PROJECTION_FILE).exists()
    assert record(folder)["fit_dense"] is None


def test_fit_dense_of_another_width_is_refused(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    bare(tmp_path / "bare", tokenizer)
    save_file({"weight": torch.zeros(32, 24), "bias": torch.zeros(32)}, tmp_path / "bare" / PROJECTION_FILE)
    with pytest.raises(HskdError, match=r"fit_dense has weights of shape \(32, 24\).*width 16"):
        make(tmp_path / "bare")


def test_a_body_alone_with_fit_dense_beside_it(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """The layout of ``hskd general``."""
    body = bare(tmp_path / "bare", tokenizer)
    own = {"weight": torch.randn(32, 16), "bias": torch.randn(32)}
    save_file(own, tmp_path / "bare" / PROJECTION_FILE)
    folder = make(tmp_path / "bare")
    student = model_of(folder).bert.state_dict()
    assert all(torch.equal(weight, student[name]) for name, weight in body.state_dict().items())
    taken = load_file(folder / PROJECTION_FILE)
    assert all(torch.equal(taken[name], own[name]) for name in own)
    assert make.said == []


def test_a_missing_pooler_is_drawn_and_said(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    bare(tmp_path / "bare", tokenizer, pooler=False)
    folders = [make(tmp_path / "bare", seed) for seed in (3, 3, 4)]
    assert make.said[0].endswith("has no pooler; it is drawn from seed 3, as the classifier is")
    assert record(folders[0])["drawn"] == ["pooler", "classifier"]
    first, again, other = (model_of(folder).bert.pooler.dense.weight for folder in folders)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.1 < first.std() < 0.3, "as BERT draws them: from a normal distribution of initializer_range"


def test_the_head_is_drawn_from_the_seed(make: Make, checkpoint: Path) -> None:
    torch.manual_seed(torch.randint(1000, ()).item())
    state = torch.get_rng_state()
    folders = [make(checkpoint, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    heads = [model_of(folder).classifier for folder in folders]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert not heads[0].bias.any()


def test_a_fine_tuned_checkpoint_gives_its_body_alone(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    tuned = make_bert(num_labels=3, id2label=dict(enumerate("abc")), label2id={c: i for i, c in enumerate("abc")})
    tuned.save_pretrained(tmp_path / "three")
    same = make_bert()
    same.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "two")
    three, two = (model_of(make(tmp_path / name)) for name in ("three", "two"))
    assert three.config.id2label == two.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(two.bert.pooler.dense.weight, same.bert.pooler.dense.weight)
    assert not torch.equal(two.classifier.weight, same.classifier.weight)
    assert torch.equal(three.classifier.weight, two.classifier.weight), "from the same seed"


def test_a_regression_has_one_output(make: Make, task: Task, checkpoint: Path) -> None:
    regression = replace(task, head=SequenceRegression())
    student = model_of(make(checkpoint, task=regression))
    assert student.classifier.weight.shape == (1, 16)
    assert student.config.num_labels == 1


@pytest.mark.parametrize(
    "lacking", ["bert.encoder.layer.1.attention.self.key.weight", "bert.embeddings.LayerNorm.gamma"]
)
def test_a_body_that_is_not_whole_is_refused(
    lacking: str, make: Make, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    save_old_checkpoint(tmp_path / "old", tokenizer, without={lacking})
    with pytest.raises(HskdError, match=as_now(lacking)):
        make(tmp_path / "old")
    assert not list(tmp_path.glob("student-*.partial/*"))


def test_weights_of_another_shape_than_the_configuration_are_refused(
    make: Make, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    save_old_checkpoint(tmp_path / "old", tokenizer)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(HskdError, match=r"intermediate\.dense\.bias.*shape \(24,\).*config\.json expects \(48"):
        make(tmp_path / "old")


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(
    zipped: bool, make: Make, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    weights: dict[str, Any] = dict(save_old_checkpoint(tmp_path / "old", tokenizer))
    weights["bert.payload"] = Payload(tmp_path / "executed")
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(HskdError, match="weights cannot be loaded"):
        make(tmp_path / "old")
    assert not (tmp_path / "executed").exists()


DAMAGES = {
    "no folder": ("nowhere", "no config.json"),
    "no weights": ("pytorch_model.bin", "no weights there"),
    "no config": ("config.json", "no config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_checkpoint_is_refused(damage: str, make: Make, checkpoint: Path, tmp_path: Path) -> None:
    victim, message = DAMAGES[damage]
    shutil.copytree(checkpoint, tmp_path / "old")
    (tmp_path / "old" / victim).unlink(missing_ok=True)
    with pytest.raises(HskdError, match=message):
        make(tmp_path / ("nowhere" if victim == "nowhere" else "old"))


def test_an_unknown_type_of_model_is_refused(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    save_old_checkpoint(tmp_path / "old", tokenizer)
    (tmp_path / "old" / "config.json").write_text(json.dumps(SIZES | {"model_type": "bret"}))
    with pytest.raises(HskdError, match="'bret'"):
        make(tmp_path / "old")


def test_another_tokenizer_is_kept(make: Make, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "old")
    vocabulary = (checkpoint / "vocab.txt").read_text().splitlines()
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    folder = make(tmp_path / "old")
    pieces = load_tokenizer(str(folder)).convert_ids_to_tokens([len(vocabulary) - 2, len(vocabulary) - 1])
    assert pieces == vocabulary[-2:]


def test_a_checkpoint_without_tokenizer_takes_the_teachers(
    make: Make, task: Task, checkpoint: Path, tmp_path: Path
) -> None:
    save_old_checkpoint(tmp_path / "same")
    save_old_checkpoint(tmp_path / "other", vocab_size=201)
    assert Student.load(make(tmp_path / "same"), task).tokenizer == Student.load(make(checkpoint), task).tokenizer
    with pytest.raises(MismatchError, match=r"no tokenizer, and embeddings for 201 tokens.* has 200"):
        make(tmp_path / "other")


def test_fewer_embeddings_than_tokens_are_refused(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    save_old_checkpoint(tmp_path / "old", tokenizer, vocab_size=20)
    with pytest.raises(MismatchError, match="embeddings for 20 tokens"):
        make(tmp_path / "old")


def test_a_finished_student_is_left_and_another_refused(
    make: Make, task: Task, checkpoint: Path, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    folder = make(checkpoint)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    make(checkpoint, folder=folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    save_old_checkpoint(tmp_path / "other", tokenizer, seed=1)
    shutil.copytree(checkpoint, tmp_path / "changed")
    save_old_checkpoint(tmp_path / "changed", tokenizer, seed=2)
    with pytest.raises(MismatchError, match="another checkpoint"):
        make(tmp_path / "other", folder=folder)
    with pytest.raises(MismatchError, match="another checkpoint"):
        make(checkpoint, seed=1, folder=folder)
    with pytest.raises(MismatchError, match="another checkpoint"):
        make(checkpoint, task=replace(task, head=SequenceClassification(("positive", "negative"))), folder=folder)
    (tmp_path / "full").mkdir()
    with pytest.raises(HskdError, match="not made by this command"):
        make(checkpoint, folder=tmp_path / "full")


def test_a_name_is_looked_up_where_the_hub_keeps_its_files(
    make: Make, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of a download: files by their hash, and links to them in a snapshot."""
    home = tmp_path / "hub" / "models--someone--Tiny_2L_16D"
    snapshot, commit = home / "snapshots", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(checkpoint, snapshot / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    local, named = make(checkpoint), make("someone/Tiny_2L_16D")
    assert (local / "model.safetensors").read_bytes() == (named / "model.safetensors").read_bytes()
    assert (local / PROJECTION_FILE).read_bytes() == (named / PROJECTION_FILE).read_bytes()
    assert record(named)["checkpoint"] == record(local)["checkpoint"]
    with pytest.raises(HskdError, match="someone/Other"):
        make("someone/Other")


def test_sharded_weights(make: Make, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    body = bare(tmp_path / "whole", tokenizer)
    body.save_pretrained(tmp_path / "cut", max_shard_size="8KB")
    tokenizer.save_pretrained(tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 1
    whole, cut = (model_of(make(tmp_path / name)) for name in ("whole", "cut"))
    assert all(torch.equal(weight, cut.state_dict()[name]) for name, weight in whole.state_dict().items())
    assert AutoConfig.from_pretrained(make.root / "student-2").model_type == "bert"
