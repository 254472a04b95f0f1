"""A tiny tokenizer of every kind that encoders use, over the words of the tests' data."""

from __future__ import annotations

from pathlib import Path

from conftest import BAD, GOOD
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    DistilBertTokenizerFast,
    MPNetTokenizerFast,
    PreTrainedTokenizerBase,
    RobertaTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode


def wordpiece(folder: Path, cls: type = BertTokenizerFast) -> PreTrainedTokenizerBase:
    """Return a tokenizer of BERT's kind, over the words of the data."""
    words = sorted({word for sentence in GOOD + BAD for word in sentence.split()} | set("0123456789abcdefghijklmnopqr"))
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    cls(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def byte_pairs(folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer of RoBERTa's kind: merged bytes; its padding is not token 0."""
    merges = [("Ġ", word[0]) for word in ("the", "film", "and")] + [("Ġt", "h"), ("Ġth", "e"), ("i", "n"), ("l", "l")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values(), *map("".join, merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    RobertaTokenizerFast(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def mpnet_pieces(folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer of MPNet's kind: BERT's words with RoBERTa's special tokens."""
    tokenizer = wordpiece(folder)
    words = [word for word in sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get) if word[0] != "["]
    (folder / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *words, "<mask>"]))
    for stale in ("tokenizer.json", "tokenizer_config.json"):
        (folder / stale).unlink()
    MPNetTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def distil_wordpiece(folder: Path) -> PreTrainedTokenizerBase:
    return wordpiece(folder, DistilBertTokenizerFast)
