"""General distillation: reproducible, resumed to the same bytes, rejected where it does not fit."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BAD, GOOD
from pydantic import ValidationError
from safetensors.torch import load_file
from support.calls import CPU_RUN, Calls
from support.encoders import tiny
from transformers import AutoConfig, AutoModel, BertTokenizerFast
from typer.testing import CliRunner

from hskd.cli.app import app
from hskd.distill.projection import PROJECTION_FILE
from hskd.errors import HskdError, MismatchError
from hskd.heads import SequenceClassification
from hskd.students.general import distillation as general
from hskd.students.general.distillation import _DROPOUTS, GENERAL_FILE, general_distill, general_record, load_body
from hskd.students.general.settings import GeneralSettings
from hskd.students.pretrained.checkpoint import load_checkpoint
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.tasks.text import SHORTEST, chunks, documents, imdb_reviews
from hskd.teachers.loading import load_tokenizer, model_fingerprint
from hskd.training import last_checkpoint

STEPS = 24
SIZES = {"layers": 2, "width": 24, "heads": 3, "ffn": 48}

KILLED = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    + """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[5]))
from hskd.students.general import distillation as general
from hskd.runtime import RunOptions
from support.calls import Calls
general._SAVE_STEPS = 10
steps = 0
def advance():
    global steps
    steps += 1
    if steps == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
cpu = torch.device("cpu")
settings = general.GeneralSettings.model_validate_json(sys.argv[2])
general.general_distill(sys.argv[1], settings, Path(sys.argv[3]), RunOptions("fp32", cpu), Calls(advance))
"""
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 documents of one chunk each."""
    lines = []
    for i in range(192):
        words = [*(GOOD if i % 2 else BAD)[i % 4].split(), "the", "film", *str(i)]
        lines.append(" ".join(words[i % 3 :] + words[: i % 3] + words[: i % 5]))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings(text: Path) -> GeneralSettings:
    """24 steps: 192 chunks in batches of 16, twice."""
    return GeneralSettings(
        **SIZES, text=text, chunks=192, chunk_tokens=16, epochs=2, batch_size=16, seed=3, dropout=0.1
    )


def make(teacher: Path, settings: GeneralSettings, folder: Path, advance: Callable[[], None] = lambda: None) -> Path:
    return general_distill(str(teacher), settings, folder, CPU_RUN, Calls(advance))


@pytest.fixture(scope="module")
def made(teacher_folder: Path, settings: GeneralSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A general student of an uninterrupted run."""
    steps: list[None] = []
    folder = make(teacher_folder, settings, tmp_path_factory.mktemp("made") / "student", lambda: steps.append(None))
    assert len(steps) == STEPS
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_it_is_a_checkpoint_like_a_hubs(made: Path, teacher_folder: Path) -> None:
    model, info = AutoModel.from_pretrained(made, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 24, 3)
    assert (config.intermediate_size, config.hidden_dropout_prob) == (48, 0.1)
    assert load_tokenizer(str(made)).get_vocab() == load_tokenizer(str(teacher_folder)).get_vocab()
    projection = load_file(made / PROJECTION_FILE)
    assert {name: tuple(tensor.shape) for name, tensor in projection.items()} == {"weight": (32, 24), "bias": (32,)}
    assert not (made / "training").exists()


def test_its_record_says_what_was_done(made: Path, teacher_folder: Path, settings: GeneralSettings) -> None:
    record = general_record(made)
    assert record["settings"] == settings.model_dump(mode="json")
    assert record["teacher"] == model_fingerprint(load_body(str(teacher_folder)))
    assert (record["chunks"], record["steps"]) == (192, STEPS)
    assert record["tokens_seen"] == 2 * record["tokens"]
    assert record["last_loss"] < record["first_loss"]
    assert 0 < record["start_loss"] != record["end_loss"] > 0  # dropout is off in these
    assert record["seconds"] == record["seconds_to_fit"] + record["seconds_to_train"]


def test_it_learns_from_random_weights_too(
    tmp_path: Path, tokenizer: BertTokenizerFast, settings: GeneralSettings
) -> None:
    """A teacher of an undescribed type provides only word embeddings, and the loss still falls."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("roformer", vocab_size=200, max_position_embeddings=64, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    record = general_record(make(tmp_path / "teacher", settings.model_copy(update={"lr": 1e-2}), tmp_path / "student"))
    assert record["last_loss"] < 0.9 * record["first_loss"]


@pytest.mark.parametrize("model_type", ["roberta", "mpnet", "modernbert"])
def test_a_student_of_the_teachers_type(
    tmp_path: Path, tokenizer: BertTokenizerFast, settings: GeneralSettings, model_type: str
) -> None:
    """It is made, trained and saved, and a student with a head is made from its checkpoint."""
    tiny(model_type, vocab_size=len(tokenizer), pad_token_id=0).base_model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    sizes = {"width": 16, "heads": 2, "ffn": 20, "dropout": 0.1, "lr": 1e-2}
    folder = make(tmp_path / "teacher", settings.model_copy(update=sizes), tmp_path / "student")
    record = general_record(folder)
    assert record["last_loss"] < record["first_loss"]
    student = AutoModel.from_pretrained(folder)
    assert student.config.model_type == model_type and student.config.hidden_size == 16
    assert all(getattr(student.config, field) == 0.1 for field in _DROPOUTS if hasattr(student.config, field))
    head = SequenceClassification(("no", "yes"))
    loaded = load_checkpoint(str(folder), head).model
    assert loaded.config.model_type == model_type
    config = TinyBertSettings(general=settings.model_copy(update=sizes)).config(student.config, head)
    assert type(config) is type(student.config) and config.hidden_size == 16


def test_without_training_it_is_as_it_was_fitted(
    tmp_path: Path, made: Path, teacher_folder: Path, settings: GeneralSettings
) -> None:
    steps: list[None] = []
    untrained = settings.model_copy(update={"epochs": 0})
    record = general_record(make(teacher_folder, untrained, tmp_path / "student", lambda: steps.append(None)))
    assert not steps
    assert record["tokens_seen"] == 0
    assert record["start_loss"] == record["end_loss"] == general_record(made)["start_loss"]


def test_of_the_teachers_width_there_is_no_projection(
    tmp_path: Path, teacher_folder: Path, settings: GeneralSettings
) -> None:
    wide = settings.model_copy(update={"width": 32, "heads": 4, "ffn": 64, "epochs": 1})
    folder = make(teacher_folder, wide, tmp_path / "student")
    assert not (folder / PROJECTION_FILE).exists()


@pytest.mark.parametrize("point", [4, 13, 23])
def test_killed_and_resumed(
    made: Path,
    teacher_folder: Path,
    settings: GeneralSettings,
    tmp_path: Path,
    point: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL before the first checkpoint, inside the second epoch, and one step before the end: the same bytes."""
    folder = tmp_path / "student"
    arguments = [str(teacher_folder), settings.model_dump_json(), str(folder), str(point), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    checkpoint = last_checkpoint(folder.with_name("student.partial") / "training")
    assert (checkpoint is None) == (point < 10)
    monkeypatch.setattr(general, "_SAVE_STEPS", 10)
    steps: list[None] = []
    make(teacher_folder, settings, folder, lambda: steps.append(None))
    assert len(steps) == STEPS - point // 10 * 10
    assert bytes_of(folder) == bytes_of(made)
    assert general_record(folder)["last_loss"] == general_record(made)["last_loss"]


def test_a_finished_one_is_left_alone(made: Path, teacher_folder: Path, settings: GeneralSettings) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    steps: list[None] = []
    make(teacher_folder, settings, made, lambda: steps.append(None))
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"width": 12}, {"chunks": 100}])
def test_other_settings_are_refused(
    made: Path, teacher_folder: Path, settings: GeneralSettings, change: dict[str, float]
) -> None:
    with pytest.raises(MismatchError, match="holds a general student of another teacher or text, or distilled with"):
        make(teacher_folder, settings.model_copy(update=change), made)


def test_other_text_in_the_same_file_is_refused(
    teacher_folder: Path, settings: GeneralSettings, text: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "text.txt"
    mine.write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    changed = settings.model_copy(update={"text": mine, "epochs": 1})
    make(teacher_folder, changed, tmp_path / "student")
    mine.write_text("the film and the story and the film and the story\n", encoding="utf-8")
    with pytest.raises(MismatchError):
        make(teacher_folder, changed, tmp_path / "student")


def test_a_folder_of_something_else_is_refused(teacher_folder: Path, settings: GeneralSettings, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    with pytest.raises(HskdError, match="not made by this command"):
        make(teacher_folder, settings, tmp_path / "student")


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 24 cannot be divided among 5 heads"):
        GeneralSettings(width=24, heads=5)


def test_chunks_of_documents(tokenizer: BertTokenizerFast) -> None:
    words = "the film the story and the film the story and the film"  # 11 tokens
    split = chunks([words, "the film", words], tokenizer, 10, 10)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert SHORTEST > 5  # so neither the rest of 3 nor the document of 2 is a chunk
    assert split.lengths.tolist() == [10, 10]
    assert split.input_ids[:10].tolist() == [cls, *ids[:8], sep]
    assert len(set(split.ids.tolist())) == 2
    assert chunks([words] * 9, tokenizer, 4, 10).lengths.tolist() == [10] * 4
    with pytest.raises(HskdError, match="no document of at least"):
        chunks(["the film"], tokenizer, 4, 10)


def test_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(HskdError, match="no such file"):
        documents(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HskdError, match="not UTF-8 text"):
        documents(path)
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(HskdError, match="is empty"):
        documents(path)


def test_the_reviews_are_the_25_000() -> None:
    reviews = imdb_reviews()
    assert len(reviews) == 25_000
    assert not any("<br" in review for review in reviews)
    digests = [hashlib.sha256(review.encode()).digest() for review in reviews]
    assert digests != sorted(digests)  # the order is that of the text file, including markup


def test_on_the_command_line(teacher_folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    sizes = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
    arguments = ["general", "--model", str(teacher_folder), "--out", str(out), "--text", str(text), *sizes]
    result = CliRunner().invoke(app, [*arguments, "--chunks", "64", "--chunk-tokens", "16"], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.search(rf"general student: {re.escape(str(out))} \(\d+\.\d minutes\)", result.stdout)
    assert json.loads((out / GENERAL_FILE).read_text(encoding="utf-8"))["chunks"] == 64
