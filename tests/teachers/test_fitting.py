"""Models in all states of practice: those that plain transformers accepts work here, others give one line of error."""

from __future__ import annotations

import gc
import json
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file, save_file
from support.calls import CPU_RUN, Calls
from transformers import BertTokenizerFast, FunnelConfig, FunnelForSequenceClassification, pipeline

from hskd.errors import CorruptionError, HskdError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.runtime import RunOptions
from hskd.students import load_student
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import Task, TokenizedSplit, tokenize
from hskd.tasks.task import Split, TaskData
from hskd.teachers.finetune import finetune
from hskd.teachers.fitting import require_fit
from hskd.teachers.loading import Teacher, load_classifier, load_tokenizer
from hskd.teachers.settings import TeacherSettings

CLASSES = SequenceClassification(("negative", "positive"), ("accuracy",))
TEXTS = ["a warm and funny film", "the story is boring", "great acting", "a cold and dull film", "poor", "i loved it"]
ONE = TeacherSettings(epochs=1, lr=1e-3, batch_size=3)


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> None:
    """Trainer collects garbage at every end, which is slow if it covers all imported objects."""
    gc.collect()
    gc.freeze()


def toy(head: Any = CLASSES, columns: int = 1) -> TaskData:
    """Return six examples, of one length each or not."""
    labels: list[Any] = [1, 0, 1, 0, 0, 1] if head is CLASSES else [4.0, 1.5, 3.5, 1.0, 0.5, 4.5]
    task = Task("toy", ("a", "b")[:columns], "label", head, 1, 32)
    texts = [TEXTS, TEXTS[::-1]][:columns]
    return TaskData(task, {name: Split.of(name, texts, labels) for name in ("train", "dev")})


def saved(folder: Path, tokenizer: BertTokenizerFast, config: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Save a BERT with its tokenizer; ``config`` changes its ``config.json`` afterwards."""
    make_bert(**settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config), encoding="utf-8")
    return folder


def splits_of(data: TaskData, folder: Path, tokens: Path) -> dict[str, TokenizedSplit]:
    return tokenize(data, load_tokenizer(str(folder)), tokens)


# Models that work


@pytest.mark.parametrize("pad", ["in no split", "null", "another"])
def test_pads_of_any_kind(tmp_path: Path, tokenizer: BertTokenizerFast, pad: str) -> None:
    """Nothing attends to a pad, so the pad token in the model's configuration does not matter."""
    folder = saved(
        tmp_path / "body", tokenizer, {"null": {"pad_token_id": None}, "another": {"pad_token_id": 7}}.get(pad)
    )
    if pad == "in no split":
        assert not any((split.input_ids == split.pad_id).any() for split in splits_of(toy(), folder, tmp_path).values())
    data = toy()
    splits = splits_of(data, folder, tmp_path / "tokens")
    finetune(str(folder), data.task, splits, ONE, tmp_path / "teacher", CPU_RUN)
    expected = saved(tmp_path / "plain", tokenizer)
    finetune(str(expected), data.task, splits, ONE, tmp_path / "plain-teacher", CPU_RUN)
    found, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "plain-teacher"))
    for name, weight in plain.items():
        if name != "bert.embeddings.word_embeddings.weight":  # the row of a pad is not used and not trained
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_more_tokens_than_embeddings_where_none_of_them_occurs(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    larger = BertTokenizerFast.from_pretrained(saved(tmp_path / "body", tokenizer, vocab_size=len(tokenizer)))
    larger.add_tokens(["zyzzyva"])
    larger.save_pretrained(tmp_path / "body")
    data = toy()
    splits = splits_of(data, tmp_path / "body", tmp_path / "tokens")
    finetune(str(tmp_path / "body"), data.task, splits, ONE, tmp_path / "teacher", CPU_RUN)
    one = TaskData(
        data.task,
        {name: Split.of(name, [["zyzzyva", *TEXTS[1:]]], split.labels) for name, split in data.splits.items()},
    )
    with pytest.raises(
        HskdError, match=rf"gives the token {len(tokenizer)}, and it has embeddings for {len(tokenizer)}"
    ):
        finetune(
            str(tmp_path / "body"), data.task, splits_of(one, tmp_path / "body", tmp_path / "tokens"), ONE,
            tmp_path / "other", CPU_RUN, Calls(_fail),
        )  # fmt: skip


def _fail() -> None:
    raise AssertionError("trained")


# Errors before any training


def test_one_token_type_for_pairs(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = saved(tmp_path / "body", tokenizer, type_vocab_size=1)
    data = toy(columns=2)
    splits = splits_of(data, folder, tmp_path / "tokens")
    with pytest.raises(HskdError, match=r"tells two texts apart by 2 token types, and it has embeddings for 1"):
        finetune(str(folder), data.task, splits, ONE, tmp_path / "teacher", CPU_RUN, Calls(_fail))
    single = toy()
    finetune(str(folder), single.task, splits_of(single, folder, tmp_path), ONE, tmp_path / "single", CPU_RUN)


def test_hidden_states_shorter_than_the_tokens(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    config = FunnelConfig(vocab_size=200, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=16, num_labels=2)
    FunnelForSequenceClassification(config).save_pretrained(tmp_path / "funnel")
    tokenizer.save_pretrained(tmp_path / "funnel")
    data = toy()
    with pytest.raises(HskdError, match=r"hidden state 2 has .* positions for .* tokens; a funnel joins tokens"):
        finetune(
            str(tmp_path / "funnel"), data.task, splits_of(data, tmp_path / "funnel", tmp_path), ONE,
            tmp_path / "teacher", CPU_RUN, Calls(_fail),
        )  # fmt: skip


def test_too_few_positions(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = saved(tmp_path / "body", tokenizer, max_position_embeddings=4)
    data = toy()
    with pytest.raises(HskdError, match=r"has positions for 4 tokens, and an example .* 7; give --max-length 4"):
        finetune(
            str(folder), data.task, splits_of(data, folder, tmp_path), ONE, tmp_path / "teacher", CPU_RUN, Calls(_fail)
        )


def test_labels_numbered_from_one(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    names = {"id2label": {"1": "negative", "2": "positive"}, "label2id": {"negative": 1, "positive": 2}}
    folder = saved(tmp_path / "teacher", tokenizer, names)
    with pytest.raises(
        HskdError, match=r"teacher: its config.json numbers the labels 1, 2 \(id2label\); expected 0 to 1"
    ):
        Teacher.load(str(folder), toy().task)


def test_labels_of_configuration_and_weights_differ(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    three = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    folder = saved(tmp_path / "teacher", tokenizer, three)
    for load in (lambda: Teacher.load(str(folder), toy().task), lambda: load_student(folder)):
        with pytest.raises(HskdError, match=r"the weights have 2 outputs there, and config.json says 3 labels"):
            load()
    assert load_classifier(str(folder), toy().task, new_head=True).config.num_labels == 2, "the head is a new one"


def test_a_student_that_lacks_a_weight_is_refused(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = saved(tmp_path / "student", tokenizer)
    weights = load_file(folder / "model.safetensors")
    gone = ("classifier.weight", "bert.encoder.layer.1.output.dense.weight")
    save_file({name: weight for name, weight in weights.items() if name not in gone}, folder / "model.safetensors")
    before = torch.get_rng_state()
    with pytest.raises(HskdError, match=f"{gone[1]}, {gone[0]} are missing from its weights. A student must be"):
        load_student(folder, CLASSES)
    assert torch.equal(torch.get_rng_state(), before)
    # Fine-tuning may draw a new head, but never a body.
    with pytest.raises(HskdError, match=f"{gone[1]} is missing from its weights; expected a complete bert"):
        load_classifier(str(folder), toy().task, new_head=True)


# Damaged or malicious files


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer(tmp_path: Path, tokenizer: BertTokenizerFast, file: str) -> None:
    folder = saved(tmp_path / "model", tokenizer)
    pointer = (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 9\n"
    )
    (folder / file).write_text(pointer, encoding="utf-8")
    for load in (
        lambda: load_classifier(str(folder), toy().task),
        lambda: load_student(folder),
        lambda: load_tokenizer(str(folder)),
    ):
        with pytest.raises(HskdError, match=rf"{file}: is a git-lfs pointer, .* Run `git lfs pull`"):
            load()


EVIL = """
from transformers import PretrainedConfig
open({mark!r}, "w").close()
class Evil(PretrainedConfig):
    model_type = "evil"
"""


def test_code_in_a_folder_is_not_run_and_not_asked_about(
    tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = saved(tmp_path / "model", tokenizer), tmp_path / "ran"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)), encoding="utf-8")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": auto, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def ask(*_: Any) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    for load in (lambda: load_classifier(str(folder), toy().task), lambda: load_student(folder, CLASSES)):
        with pytest.raises(
            HskdError, match=r"needs code of its own \(auto_map in its config.json\), which is never run"
        ):
            load()
    # A type that transformers knows needs no code.
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), encoding="utf-8")
    load_classifier(str(folder), toy().task)
    load_tokenizer(str(folder))
    assert not mark.exists()


class Mine:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def test_old_weights_are_tensors_or_refused(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder, mark = saved(tmp_path / "model", tokenizer), tmp_path / "ran"
    weights = load_file(folder / "model.safetensors")
    expected = load_classifier(str(folder), toy().task)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    old = load_classifier(str(folder), toy().task)
    assert all(torch.equal(weight, old.state_dict()[name]) for name, weight in expected.state_dict().items())
    for content in (pickle.dumps(Mine(mark)), pickle.dumps({"classifier.bias": Mine(mark)})):
        (folder / "pytorch_model.bin").write_bytes(content)
        for load in (lambda: load_classifier(str(folder), toy().task), lambda: load_student(folder, CLASSES)):
            with pytest.raises(
                HskdError, match="holds other things than tensors, or is damaged; only tensors are read"
            ):
                load()
    assert not mark.exists()


# Saved models in transformers' pipeline


def test_a_regression_is_one_for_pipeline_too(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    """The saved problem type is that of the task, whatever the original model says."""
    head = SequenceRegression()
    data = toy(head)
    for inherited in ("single_label_classification", "multi_label_classification", None):
        base = tmp_path / str(inherited)
        folder = saved(base / "body", tokenizer, {"problem_type": inherited})
        finetune(str(folder), data.task, splits_of(data, folder, tmp_path / "tokens"), ONE, base / "teacher", CPU_RUN)
    # A given teacher with a wrong configuration.
    config = json.loads((base / "teacher" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    shutil.copytree(base / "teacher", base / "given", ignore=shutil.ignore_patterns("checksums.json"))
    (base / "given" / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    given = Teacher.load(str(base / "given"), data.task)
    splits = splits_of(data, base / "given", tmp_path / "tokens")
    create_rosita(given, splits["train"], RositaSettings(layers=1, heads=1, ffn=8), base / "student")
    for folder in (base / "teacher", base / "student"):
        model = load_student(folder, head)
        with torch.no_grad():
            model.classifier.bias.fill_(3.75)
            model.classifier.weight.zero_()
        model.save_pretrained(base / "as trained")
        tokenizer.save_pretrained(base / "as trained")
        [said] = pipeline("text-classification", model=str(base / "as trained"), device="cpu")("a warm film")
        assert said["score"] == pytest.approx(3.75), "not the sigmoid of it, 0.977"


def test_a_classification_says_what_it_is(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    data = toy()
    folder = saved(tmp_path / "body", tokenizer, {"problem_type": "multi_label_classification"})
    finetune(str(folder), data.task, splits_of(data, folder, tmp_path / "tokens"), ONE, tmp_path / "teacher", CPU_RUN)
    assert (
        json.loads((tmp_path / "teacher" / "config.json").read_text())["problem_type"] == "single_label_classification"
    )
    found = pipeline("text-classification", model=str(tmp_path / "teacher"), top_k=None, device="cpu")(["a film"])[0]
    assert sum(entry["score"] for entry in found) == pytest.approx(1)


# Checkpoints and logs


FOUR = TeacherSettings(epochs=4, lr=1e-3, batch_size=3)


def interrupted(folder: Path, body: Path, tokens: Path, after: int = 5) -> None:
    """A teacher of four epochs of two steps that is interrupted in the third."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            raise KeyboardInterrupt

    data = toy()
    with pytest.raises(KeyboardInterrupt):
        finetune(str(body), data.task, splits_of(data, body, tokens), FOUR, folder, CPU_RUN, Calls(step))


def finished(folder: Path, body: Path, tokens: Path) -> bytes:
    data = toy()
    finetune(str(body), data.task, splits_of(data, body, tokens), FOUR, folder, CPU_RUN)
    return (folder / "model.safetensors").read_bytes()


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def test_a_damaged_checkpoint_names_its_file(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    body = saved(tmp_path / "body", tokenizer)
    interrupted(tmp_path / "teacher", body, tmp_path / "tokens")
    [checkpoint] = (tmp_path / "teacher.partial" / "training").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    for file in FILES:
        whole = (checkpoint / file).read_bytes()
        for damaged in (whole[:-9], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
            (checkpoint / file).write_bytes(damaged)
            with pytest.raises(CorruptionError) as refused:
                finished(tmp_path / "teacher", body, tmp_path / "tokens")
            said = str(refused.value)
            assert str(checkpoint / file) in said and f"Delete the checkpoint {checkpoint}" in said and "\n" not in said
        (checkpoint / file).write_bytes(whole)
    expected = finished(tmp_path / "undisturbed", body, tmp_path / "tokens")
    shutil.copytree(tmp_path / "teacher.partial", tmp_path / "mended.partial")
    assert finished(tmp_path / "mended", body, tmp_path / "tokens") == expected
    shutil.rmtree(checkpoint)  # as the message says
    assert finished(tmp_path / "teacher", body, tmp_path / "tokens") == expected


def test_a_full_disk_while_a_checkpoint_is_saved(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    """A limit on the size of files acts like a full disk."""
    body = saved(tmp_path / "body", tokenizer)
    expected = finished(tmp_path / "undisturbed", body, tmp_path / "tokens")  # this also writes the tokens
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, room in (("weights", 20_000), ("optimizer", len(expected) + 4096)):
        folder = tmp_path / name
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(HskdError) as refused:
                finished(folder, body, tmp_path / "tokens")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said = str(refused.value)
        assert "checkpoint-2: cannot be written (" in said and "\n" not in said
        assert "are free there. Free some space or repair the folder, and run the same command again" in said
        assert not list(folder.with_name(f"{name}.partial").rglob("checkpoint-*"))
        assert finished(folder, body, tmp_path / "tokens") == expected


def test_the_logs_of_a_reporter_stay(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    body = saved(tmp_path / "body", tokenizer)
    interrupted(tmp_path / "teacher", body, tmp_path / "tokens")
    data = toy()
    splits, run = splits_of(data, body, tmp_path / "tokens"), RunOptions("fp32", report_to="tensorboard")
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(str(body), data.task, splits, FOUR, tmp_path / "logged", run, Calls(step))
    before = {path.name for path in (tmp_path / "logged.partial").rglob("events.out.tfevents.*")}
    finetune(str(body), data.task, splits, FOUR, tmp_path / "logged", run)
    after = {path.name for path in (tmp_path / "logged" / "training" / "runs").rglob("events.out.tfevents.*")}
    assert before and before < after
    assert not list((tmp_path / "logged").rglob("checkpoint-*"))
    finetune(str(body), data.task, splits, FOUR, tmp_path / "logged", run, Calls(_fail))  # logs are not part of it
    assert not (tmp_path / "teacher").exists()


def test_a_model_that_fits_is_left_as_it_was(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = saved(tmp_path / "body", tokenizer)
    model = load_classifier(str(folder), toy().task)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    require_fit(str(folder), model, splits_of(toy(), folder, tmp_path).values())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[index,union-attr]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
