"""Tiny real models and data: a WordPiece tokenizer, BERTs of a few thousand parameters, sentences with a pattern."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in processes that tests start: it changes the last bits
# Messages are wrapped and coloured as in a terminal of this size without colours, wherever the tests run. rich and
# typer read these when they are imported. GITHUB_ACTIONS would make typer colour its messages.
os.environ.update(COLUMNS="80", LINES="24", _TYPER_FORCE_DISABLE_TERMINAL="1")
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("TERMINAL_WIDTH", None)
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from support.distill_lab import Lab
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

from hskd.store.extract import Superset, extract
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.training import HeadModule, Predictor

# A busy machine is slow, which is not a failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

GLUE = Path(__file__).resolve().parents[2] / "shared" / "glue"

GOOD = ["a warm and funny film", "the story is moving", "great acting", "i loved every minute of this bright film"]
BAD = ["a cold and dull film", "the story is boring", "poor acting", "i hated every minute of this drab film"]


SLOWEST = (
    "test_package.py",
    "test_docs.py",
    "test_processes.py",
    "grid/test_executors.py",
    "grid/test_paper.py",
    "trials/test_trial.py",
    "grid/test_kill.py",
)
"""The slowest test files. Most of their time is spent in processes that they start."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist, if it is used, distribute the files in the order of the next function."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the slowest files under pytest-xdist, so that none of them remains at the end."""
    if hasattr(config, "workerinput"):
        rank = {file: place for place, file in enumerate(SLOWEST)}
        folder = Path(__file__).parent
        items.sort(
            key=lambda item: (
                rank.get(item.path.relative_to(folder).as_posix(), len(rank))
                if item.path.is_relative_to(folder)
                else len(rank)
            )
        )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread. The thread count changes the last bits, and tiny models do not gain from a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glue() -> Path:
    """The folder of official GLUE files; tests are skipped where this machine does not have them."""
    if not GLUE.is_dir():
        pytest.skip(f"official GLUE files are not at {GLUE}")
    return GLUE


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """A WordPiece tokenizer of a fixed vocabulary. A trained one, and so the losses, would differ from run to run."""
    known = sorted({word for sentence in GOOD + BAD for word in sentence.split()} | set("0123456789abcdeghilmnorstuvy"))
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = [*specials, *known, *(f"##{piece}" for piece in "0123456789estr")]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_bert(seed: int = 0, **overrides: object) -> BertForSequenceClassification:
    """Return a random BERT classifier: 2 layers, width 32, 4 heads of 8, FFN 64, unless ``overrides`` change this."""
    settings: dict[str, object] = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "num_labels": 2,
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
        **overrides,
    }
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**settings)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A saved tiny teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    make_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own task: train.csv (64 rows), dev.csv and test.csv (16 rows each), columns ``sentence``, ``mood``."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("dev", 16), ("test", 16)):
        rows = ["sentence,mood"]
        for i in range(count):
            words, mood = (GOOD, "positive") if i % 2 else (BAD, "negative")
            extra = " ".join(["and", "the", "film", "story"][: i % 5])
            rows.append(f"{words[i // 2 % 4]} {extra} {'minute ' * (i % 3)}{split[0]} {i},{mood}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, data_folder: Path) -> Lab:
    """A teacher of 4 layers with dropout, a ROSITA student and a narrower BERT of 2, and a superset of everything."""
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every end, which is slow if it covers all imported objects
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("lab")
    teacher = make_bert(num_hidden_layers=4)
    teacher.save_pretrained(root / "teacher")
    tokenizer.save_pretrained(root / "teacher")
    with torch.no_grad():  # a teacher whose output varies with dropout
        opened = Lab.open(root, data_folder)
        rows = Predictor(HeadModule(teacher, opened.task.head), "fp32").rows(opened.train)
        shift = torch.from_numpy(rows).mean(dim=0)
        teacher.classifier.bias.sub_(shift)
        teacher.classifier.weight.mul_(4)
        teacher.classifier.bias.mul_(4)
    teacher.save_pretrained(root / "teacher")
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.5}
    make_bert(seed=1, **narrow).save_pretrained(root / "narrow")
    tokenizer.save_pretrained(root / "narrow")
    opened = Lab.open(root, data_folder)
    create_rosita(opened.teacher, opened.train, RositaSettings(layers=2, heads=2, ffn=24, rank=8), root / "rosita")
    everything = Superset(layers=(0, 1, 2, 3, 4), attention_layers=(1, 2, 3, 4))
    extract(opened.teacher, opened.task, opened.train, everything, root / "superset")
    return opened
