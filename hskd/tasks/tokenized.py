"""Tokenised examples as flat arrays of variable-length sequences, and their collation into batches."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hskd.artifacts import build
from hskd.errors import HskdError
from hskd.hashing import fingerprint
from hskd.heads import BEGINS, IGNORED
from hskd.selectors import Tokens
from hskd.store_format.layout import ragged_rows
from hskd.tasks.choices import MAX_TOKENS
from hskd.tasks.files import fault_of, short_repr
from hskd.tasks.task import Split, TaskData
from hskd.tasks.token_cache import read_arrays, write_arrays

if TYPE_CHECKING:
    from hskd.tasks.alignment import Alignment

_log = logging.getLogger(__name__)

DTYPES = {"input_ids": np.int32, "token_type_ids": np.uint8, "words": np.int32}
CHUNK = 10_000
"""Number of examples tokenised at a time; it limits the memory that Python lists of ids take."""

Rows = Sequence[int] | NDArray[np.integer]


@dataclass(eq=False)
class TokenizedSplit:
    """The N examples of a split as token ids, without pads.

    The arrays may be read-only views of a memory-mapped file. A torch ``DataLoader`` with a batch sampler accepts the
    split as a data set whose batches need no further collation.
    """

    ids: NDArray[np.int64]
    """(N,) example ids."""
    offsets: NDArray[np.int64]
    """(N + 1,): example ``i`` is ``input_ids[offsets[i]:offsets[i + 1]]``."""
    input_ids: NDArray[np.int32]
    """(offsets[N],)."""
    token_type_ids: NDArray[np.uint8] | None
    """(offsets[N],), or None if the tokenizer has none."""
    labels: NDArray[np.int64] | NDArray[np.float32] | None
    """Labels as the task's head stores them: (N,), or (offsets[N],) if each token has a label; None if unknown."""
    cls_id: int
    sep_id: int
    pad_id: int
    max_length: int
    """Tokens that the examples were truncated to."""
    pad_to: int | None = None
    """Tokens that every batch is padded to; None pads to the longest example of the batch."""
    real: int | None = None
    """Number of leading examples that are the task's own; augmented ones follow. None: all are the task's own."""
    labels_per: Literal["example", "token"] = "example"
    """The unit that has a label."""
    cut: int = 0
    """Number of truncated examples of the split."""
    word_starts: NDArray[np.bool_] | None = None
    """(offsets[N],): which tokens begin a word; None if the head does not predict words."""
    aligned: Alignment | None = None
    """Alignment with a teacher that has another tokenizer; None if teacher and student share the tokenizer."""

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each example."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the ids, the tokens and the word starts. Labels are not included."""
        digest = hashlib.sha256(f"{len(self)} {self.max_length} {self.token_type_ids is not None}".encode())
        arrays = ((self.ids, "<i8"), (self.offsets, "<i8"), (self.input_ids, "<i4"), (self.token_type_ids, "u1"))
        for array, dtype in arrays:
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype=dtype).data)
        if self.word_starts is not None:  # Texts with the same tokens may have different words: "a-b" and "a - b".
            digest.update(b"words")
            digest.update(np.ascontiguousarray(self.word_starts, dtype="u1").data)
        return digest.hexdigest()[:16]

    @property
    def tokens(self) -> Tokens:
        """The tokens in the form that selectors take."""
        return Tokens(self.ids, self.offsets, self.input_ids, self.sep_id, word_starts=self.word_starts)

    @cached_property
    def with_targets(self) -> Tokens:
        """The tokens that have a target: all of them, unless the teacher has another tokenizer."""
        return self.tokens if self.aligned is None else self.tokens.take(np.flatnonzero(self.aligned.counts))

    @cached_property
    def _sorted_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.ids)
        return self.ids[order], order

    def rows(self, example_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row numbers of the examples with these ids, ``(B,)``.

        Raises:
            HskdError: an id is not in this split.
        """
        ids, order = self._sorted_ids
        place = np.minimum(np.searchsorted(ids, example_ids), len(ids) - 1)
        missing = int((ids[place] != example_ids).sum())
        if missing:
            raise HskdError(f"{missing} of {len(example_ids)} examples are not among the {len(ids)} of this split.")
        return order[place]

    def first_tokens(self, indices: Rows) -> NDArray[np.int64]:
        """Return where the words of the examples at ``indices`` begin.

        The result is ``(W,)`` positions in ``input_ids``, in the order of ``indices``.
        """
        assert self.word_starts is not None
        rows = np.asarray(indices, dtype=np.int64)
        tokens = ragged_rows(self.offsets[:-1][rows], self.lengths[rows])
        return tokens[self.word_starts[tokens]]

    def row_counts(self, indices: Rows) -> NDArray[np.int64]:
        """Return how many outputs a head has for each example: one, or one per word if words are predicted."""
        rows = np.asarray(indices, dtype=np.int64)
        if self.word_starts is None:
            return np.ones(len(rows), np.int64)
        tokens = ragged_rows(self.offsets[:-1][rows], self.lengths[rows])
        example = np.repeat(np.arange(len(rows)), self.lengths[rows])
        return np.bincount(example[self.word_starts[tokens]], minlength=len(rows))

    def take(self, indices: Rows) -> TokenizedSplit:
        """Return a copy of the examples at ``indices``, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self,
            ids=self.ids[rows],
            offsets=offsets,
            input_ids=self.input_ids[tokens],
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[tokens],
            labels=None if self.labels is None else self.labels[rows if self.labels_per == "example" else tokens],
            word_starts=None if self.word_starts is None else self.word_starts[tokens],
            aligned=None if self.aligned is None else self.aligned.take(rows, tokens),
            real=None,
        )

    def followed_by(self, augmented: TokenizedSplit) -> TokenizedSplit:
        """Return a copy of these examples followed by ``augmented`` ones, without labels since those have none."""
        types = (self.token_type_ids, augmented.token_type_ids)
        starts = (self.word_starts, augmented.word_starts)
        alignments = (self.aligned, augmented.aligned)
        return replace(
            self,
            ids=np.concatenate([self.ids, augmented.ids]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + augmented.offsets[1:]]),
            input_ids=np.concatenate([self.input_ids, augmented.input_ids]),
            token_type_ids=None if types[0] is None or types[1] is None else np.concatenate([types[0], types[1]]),
            labels=None,
            word_starts=None if starts[0] is None or starts[1] is None else np.concatenate([starts[0], starts[1]]),
            aligned=None
            if alignments[0] is None or alignments[1] is None
            else alignments[0].followed_by(alignments[1]),
            real=len(self),
        )

    def first(self, n: int) -> TokenizedSplit:
        """Return a fixed random subset: the ``n`` examples with the smallest ids, read as unsigned, in row order.

        Ids are hashes, so this is a random draw. A larger ``n`` extends the subset, and row order does not affect it.

        Raises:
            HskdError: the split has fewer than ``n`` examples, or ``n`` is not positive.
        """
        if not 0 < n <= len(self):
            raise HskdError(f"{n} examples asked for; the split has {len(self)}. Ask for 1 to {len(self)}.")
        return self.take(np.sort(self._drawn[:n]))

    def without_last(self, n: int) -> tuple[TokenizedSplit, TokenizedSplit]:
        """Split off a fixed random subset of ``n`` examples; return the other examples, then the subset.

        The subset consists of the last examples that :meth:`first` would take.

        Raises:
            HskdError: no example would be left, or ``n`` is not positive.
        """
        if not 0 < n < len(self):
            raise HskdError(f"{n} examples to be held out; the split has {len(self)}. Hold out 1 to {len(self) - 1}.")
        return self.take(np.sort(self._drawn[:-n])), self.take(np.sort(self._drawn[-n:]))

    @property
    def _drawn(self) -> NDArray[np.int64]:
        """The rows sorted by id, read as unsigned."""
        return np.argsort(self.ids.view(np.uint64), kind="stable")

    def collate(self, indices: Rows) -> dict[str, torch.Tensor]:
        """Return the examples at ``indices`` as a batch, padded on the right.

        Returns:
            ``example_ids`` (B,), ``input_ids`` (B, T) and ``attention_mask`` (B, T), all int64. ``token_type_ids``
            (B, T) int64 and ``labels`` are included if the split has them. Labels are (B,), or (B, T) with -100 for
            pads if tokens have labels; they are int64, and float32 for a regression. If words are predicted, ``words``
            (W,) are the positions of their first tokens among all ``B * T``.

        Raises:
            HskdError: an example is longer than ``pad_to``.
        """
        rows = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[rows]
        longest = int(lengths.max(initial=0))
        width = longest if self.pad_to is None else self.pad_to
        if longest > width:
            raise HskdError(f"An example has {longest} tokens, more than the {width} that batches are padded to.")
        positions = np.arange(width)
        real = positions < lengths[:, None]
        tokens = (self.offsets[rows][:, None] + positions)[real]
        batch = {
            "example_ids": torch.from_numpy(self.ids[rows]),
            "input_ids": _fill(self.input_ids[tokens], real, self.pad_id),
        }
        batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        if self.token_type_ids is not None:
            batch["token_type_ids"] = _fill(self.token_type_ids[tokens], real, 0)
        if self.word_starts is not None:
            batch["words"] = _fill(self.word_starts[tokens], real, 0).flatten().nonzero()[:, 0]
        if self.labels is not None and self.labels_per == "token":
            batch["labels"] = _fill(self.labels[tokens], real, IGNORED)
        elif self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a batch of one example."""
        return self.collate([index])

    def __getitems__(self, indices: Rows) -> dict[str, torch.Tensor]:
        """Return a batch; a torch ``DataLoader`` prefers this method over ``__getitem__``."""
        return self.collate(indices)


def _fill(values: NDArray[Any], real: NDArray[np.bool_], pad: int) -> torch.Tensor:
    """Return (B, T) with ``values`` where ``real``, and ``pad`` elsewhere; whole numbers become int64."""
    full = np.full(real.shape, pad, dtype=values.dtype if values.dtype.kind == "f" else np.int64)
    full[real] = values
    return torch.from_numpy(full)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hexadecimal digits that identify what the tokenizer does to a text.

    Padding and truncation settings left over from an earlier call are ignored.

    Raises:
        HskdError: the tokenizer has no ``cls``, ``sep`` or ``pad`` token, or is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise HskdError(f"{type(tokenizer).__name__} is not a fast tokenizer; save it with a tokenizer.json.")
    state = json.loads(backend.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return fingerprint([state, *special_ids(tokenizer)])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Return the ids of ``cls``, ``sep`` and ``pad``.

    Raises:
        HskdError: the tokenizer lacks one of them, or does not put the first two around a text.
    """
    ids: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "pad")}
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise HskdError(
            f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r} has no {' and no '.join(missing)} token. "
            "hskd needs [CLS], [SEP] and a pad: use a BERT-like encoder."
        )
    _require_frame(tokenizer, ids["cls"], ids["sep"], ("a",))
    return ids["cls"], ids["sep"], ids["pad"]


def _require_frame(tokenizer: PreTrainedTokenizerBase, cls_id: int, sep_id: int, texts: tuple[str, ...]) -> None:
    """Refuse a tokenizer that does not put ``[CLS]`` first and ``[SEP]`` after every text.

    Otherwise everything that reads ``[CLS]`` or its attention would read the first word instead.
    """
    ids = list(tokenizer(*texts, verbose=False)["input_ids"])
    if ids[:1] != [cls_id] or ids[-1] != sep_id or ids.count(sep_id) < len(texts):
        raise HskdError(
            f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r} makes {tokenizer.convert_ids_to_tokens(ids)} of "
            f"{' and '.join(map(repr, texts))}; expected {tokenizer.cls_token} first and {tokenizer.sep_token} behind "
            "each text. Give its tokenizer.json the post-processor of a BERT-like encoder, or save it with one."
        )


def tokenize(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    max_length: int | None = None,
    positions: int | None = None,
) -> dict[str, TokenizedSplit]:
    """Tokenise every split of a task, truncated to ``max_length`` tokens (by default the task's).

    A split is tokenised once. Its tokens are cached in ``cache`` as an Arrow data set and memory-mapped from there. The
    cache key is the fingerprint of the texts, the tokenizer and the length. Labels are not cached. A warning of the
    logger ``hskd`` says how many texts are truncated.

    If a task's head predicts tokens, each example has a list of labels: one for each whitespace-delimited word of its
    text. The first token of a word gets its label. Every other token gets ``-100``, except the first token of an
    example, which gets ``-101``. Words without a token, such as words beyond the maximum length, get no prediction, and
    a warning counts them.

    Args:
        data: the task with its texts.
        tokenizer: a fast tokenizer that puts ``[CLS]`` first and ``[SEP]`` after each text.
        cache: folder of cached tokens.
        max_length: tokens, special tokens included, that an example is truncated to [default: the task's].
        positions: tokens that the model can take. If an example is longer, all splits are truncated to this length.

    Raises:
        HskdError: the tokenizer is unsuitable (see :func:`tokenizer_fingerprint`), a text has no token, a store could
            not hold examples of this length, or the cache cannot be written.
        CorruptionError: a cached file differs from what was written.
    """
    cls_id, sep_id, _ = special_ids(tokenizer)
    if len(data.task.text_columns) > 1:
        _require_frame(tokenizer, cls_id, sep_id, ("a", "a"))
    length = data.task.max_length if max_length is None else max_length
    # The shortest possible example has the special tokens and one token of each text.
    least = tokenizer.num_special_tokens_to_add(pair=len(data.task.text_columns) > 1) + len(data.task.text_columns)
    for name, tokens in (("--max-length", length), ("positions of the model:", positions or length)):
        if tokens < least:
            raise HskdError(f"{name} {tokens}: an example of task {data.task.name} takes at least {least} tokens.")
    if length > MAX_TOKENS:
        raise HskdError(f"--max-length {length}: a store counts tokens in 16 bits; expected at most {MAX_TOKENS:,}.")
    splits = _tokenized(data, tokenizer, cache, length)
    if (
        positions is not None
        and positions < length
        and any(s.lengths.max(initial=0) > positions for s in splits.values())
    ):
        _log.warning(
            "task %s: the model has positions for %s tokens, not for %s",
            data.task.name,
            f"{positions:,}",
            f"{length:,}",
        )
        splits = _tokenized(data, tokenizer, cache, positions)
    _say_cut(data.task.name, splits)
    _say_lost(data, splits)
    return splits


def _say_cut(task: str, splits: dict[str, TokenizedSplit]) -> None:
    """Log how many texts were truncated."""
    cut = sum(split.cut for split in splits.values())
    if cut:
        parts = [f"{name} {split.cut:,} of {len(split):,}" for name, split in splits.items() if split.cut]
        total, length = sum(map(len, splits.values())), next(iter(splits.values())).max_length
        _log.warning(
            "task %s: %s of %s texts are cut at %s tokens (%s); --max-length (max_length) says how many are kept",
            task,
            f"{cut:,}",
            f"{total:,}",
            f"{length:,}",
            ", ".join(parts),
        )


def _say_lost(data: TaskData, splits: dict[str, TokenizedSplit]) -> None:
    """Log how many labelled words have no token."""
    for name, split in splits.items():
        labels = data.splits[name].labels
        if split.word_starts is None or labels is None:
            continue
        total = sum(map(len, labels))
        lost = total - int(split.word_starts.sum())
        if lost:
            _log.warning(
                "task %s, split %s: %s of %s words have no token, because their example is longer than the maximum "
                "length or the tokenizer drops them; they are neither learnt nor scored",
                data.task.name,
                name,
                f"{lost:,}",
                f"{total:,}",
            )


def _tokenized(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, cache: Path, length: int
) -> dict[str, TokenizedSplit]:
    cls_id, sep_id, pad_id = special_ids(tokenizer)
    head = data.task.head
    per: Literal["example", "token"] = "token" if head.target().per == "token" else "example"
    recipe = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "token_types": "token_type_ids" in tokenizer.model_input_names,
        "truncation_side": tokenizer.truncation_side,
        "max_length": length,
        "counts_cut": True,
        "checksums": 2,  # the form that hskd.artifacts reads
        **({"words": True} if per == "token" else {}),
    }
    result = {}
    for name, split in data.splits.items():
        folder = cache / fingerprint({**recipe, "texts": texts_sha256(split)})

        def write(partial: Path, split: Split = split) -> None:
            write_arrays(partial, _encode(split, tokenizer, length, words=per == "token"))

        arrays = read_arrays(build(folder, write))
        labels: Any = None
        if split.labels is not None:
            labels = head.label_array(split.labels if per == "example" else _token_labels(split, arrays))
        result[name] = TokenizedSplit(
            ids=split.ids,
            offsets=arrays["offsets"],
            input_ids=arrays["input_ids"],
            token_type_ids=arrays.get("token_type_ids"),
            labels=labels,
            labels_per=per,
            word_starts=arrays["words"] >= 0 if per == "token" else None,
            cls_id=cls_id,
            sep_id=sep_id,
            pad_id=pad_id,
            max_length=length,
            cut=int(arrays["cut"][0]),
        )
    return result


def _require_texts(split: Split) -> None:
    """Refuse values that are not text, with a clearer message than the tokenizer's.

    Raises:
        HskdError: a value is not text; the message names file and row.
    """
    for texts in split.texts:
        for example, text in enumerate(texts):
            fault = fault_of(text) if isinstance(text, str) else f"{short_repr(text)}; expected a text"
            if fault is not None:
                raise HskdError(f"{split.where(example)}: {fault}.")


def texts_sha256(split: Split) -> str:
    """Return the SHA-256 of the texts of a split."""
    digest = hashlib.sha256()
    for fields in zip(*split.texts, strict=True):
        digest.update(json.dumps(fields).encode("ascii"))
    return digest.hexdigest()


def _token_labels(split: Split, arrays: dict[str, NDArray[Any]]) -> list[Any]:
    """Return the labels of a split's words as labels of its tokens, concatenated."""
    assert split.labels is not None
    labels: list[Any] = []
    offsets, words = arrays["offsets"], arrays["words"]
    for row, (example, text) in enumerate(zip(split.labels, split.texts[0], strict=True)):
        if len(example) != len(text.split()):
            raise HskdError(
                f"{split.where(row)}: {len(example)} labels for {len(text.split())} words; expected one for "
                "each word between white space."
            )
        own = words[offsets[row] : offsets[row + 1]]
        labels += [BEGINS, *(IGNORED if word < 0 else example[word] for word in own[1:])]
    return labels


def word_starts_of(text: str, spans: Sequence[tuple[int, int]], special: Sequence[int]) -> list[int]:
    """Return for each token the index of the word that it begins, or -1; ``spans`` are the tokens' characters."""
    begins = [i for i, character in enumerate(text) if not character.isspace() and (i == 0 or text[i - 1].isspace())]
    words, last = [], -1
    for (start, end), is_special in zip(spans, special, strict=True):
        while start < end and text[start].isspace():  # Some tokenizers count the space before a word as part of it.
            start += 1
        word = -1 if is_special else bisect_right(begins, start) - 1
        words.append(word if word > last else -1)
        last = max(last, word)
    return words


def _encode(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, words: bool = False
) -> dict[str, NDArray[Any]]:
    """Return concatenated token ids, offsets, token types if any and, if ``words``, the word that each token begins.

    Raises:
        HskdError: an example has only special tokens.
    """
    _require_texts(split)
    texts = split.texts
    special = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)
    lengths: list[int] = []
    cut = 0
    flat: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(texts[0]), CHUNK):
        part = [column[start : start + CHUNK] for column in texts]
        more = {"return_offsets_mapping": True, "return_special_tokens_mask": True} if words else {}
        encoded = tokenizer(
            *part, truncation=True, max_length=max_length, padding=False, return_attention_mask=False, **more
        )
        for example, tokens in enumerate(encoded["input_ids"], start):
            if len(tokens) <= special:
                raise HskdError(
                    f"{split.where(example)}: {' and '.join(short_repr(column[example]) for column in texts)}: no "
                    "token is left of it; expected a text. Leave the row out."
                )
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        if words:
            spans = zip(part[0], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
            encoded["words"] = [word_starts_of(*example) for example in spans]
        lengths.extend(len(tokens) for tokens in encoded["input_ids"])
        for name in DTYPES:
            if name in encoded:
                joined = [token for tokens in encoded[name] for token in tokens]
                flat.setdefault(name, []).append(np.array(joined, dtype=DTYPES[name]))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    joined_arrays = {name: np.concatenate(parts) for name, parts in flat.items()}
    return {"offsets": offsets, "cut": np.array([cut]), **joined_arrays}
