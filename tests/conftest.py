"""Tiny real models and data: a WordPiece tokenizer, BERTs of a few thousand parameters, sentences with a pattern."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too: it changes the bits

import hypothesis
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

GLUE = Path(__file__).resolve().parents[2] / "shared" / "glue"

GOOD = ["a warm and funny film", "the story is moving", "great acting", "i loved every minute of this bright film"]
BAD = ["a cold and dull film", "the story is boring", "poor acting", "i hated every minute of this drab film"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread: its number changes the bits, and models as tiny as these wait for a second more than they gain."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glue() -> Path:
    """The folder of official GLUE files, where this machine has them."""
    if not GLUE.is_dir():
        pytest.skip(f"official GLUE files are not at {GLUE}")
    return GLUE


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """A WordPiece tokenizer of a fixed vocabulary: training one gives another on every run, and so other losses."""
    known = sorted({word for sentence in GOOD + BAD for word in sentence.split()} | set("0123456789abcdeghilmnorstuvy"))
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = [*specials, *known, *(f"##{piece}" for piece in "0123456789estr")]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_bert(seed: int = 0, **overrides: object) -> BertForSequenceClassification:
    """A random BERT classifier: 2 layers, width 32, 4 heads of 8, ffn 64, unless ``overrides`` say otherwise."""
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
