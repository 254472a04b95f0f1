"""Alignment of a student's tokens with those of a teacher that has another tokenizer, by the characters they cover."""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hskd.artifacts import build
from hskd.errors import CorruptionError, HskdError
from hskd.hashing import fingerprint
from hskd.knowledge import Members, TeacherStates
from hskd.selectors import Tokens
from hskd.store_format.layout import ragged_rows
from hskd.tasks.task import Split, TaskData
from hskd.tasks.token_cache import read_arrays, write_arrays
from hskd.tasks.tokenized import CHUNK, TokenizedSplit, texts_sha256, tokenizer_fingerprint, word_starts_of

_VERSION = 1
"""Part of the cache key of alignments. Increase it whenever the alignment of a text changes."""

Span = tuple[int, int]
"""The characters of a token as ``(start, end)``, end excluded. An empty span means that the token covers no text."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """The teacher tokens that each of the student's ``M`` tokens learns from.

    Attributes:
        teacher: the same examples in the teacher's tokens.
        starts: ``(M + 1,)`` int64: token ``i`` learns from ``members[starts[i]:starts[i + 1]]``. Several members are
            averaged. A token without members has no target.
        members: ``(P,)`` int32: positions of teacher tokens within their example.
        student_tokenizer: fingerprint of the student's tokenizer.
        teacher_tokenizer: fingerprint of the teacher's tokenizer.
        vocabulary: vocabulary size of the student's tokenizer.
    """

    teacher: TokenizedSplit
    starts: NDArray[np.int64]
    members: NDArray[np.int32]
    student_tokenizer: str
    teacher_tokenizer: str
    vocabulary: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """``(M,)``: the number of teacher tokens that each student token learns from."""
        return np.diff(self.starts)

    @property
    def share(self) -> float:
        """The fraction of the student's tokens that have a target."""
        return float((self.counts > 0).mean())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify both tokenizers, the teacher's tokens and the alignment."""
        digest = hashlib.sha256(np.ascontiguousarray(self.starts, "<i8").data)
        digest.update(np.ascontiguousarray(self.members, "<i4").data)
        named = [self.student_tokenizer, self.teacher_tokenizer, self.teacher.fingerprint]
        return fingerprint([*named, digest.hexdigest()])

    def take(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Alignment:
        """Return the alignment of the examples at ``rows``; ``tokens`` are the student's tokens of these examples."""
        counts = self.counts[tokens]
        members = self.members[ragged_rows(self.starts[tokens], counts)]
        return replace(self, teacher=self.teacher.take(rows), starts=_running(counts), members=members)

    def followed_by(self, other: Alignment) -> Alignment:
        """Return the alignment of these examples followed by those of ``other``."""
        return replace(
            self,
            teacher=self.teacher.followed_by(other.teacher),
            starts=np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            members=np.concatenate([self.members, other.members]),
        )

    def describe(self) -> str:
        """Return a sentence that says how many student tokens have a target, and from how many teacher tokens."""
        total, means = len(self.counts), int((self.counts > 1).sum())
        none = int((self.counts == 0).sum())
        return (
            f"the teacher has another tokenizer: {100 * self.share:.2f} % of the student's {total:,} tokens have a "
            f"target ({total - none - means:,} from one of the teacher's tokens, {means:,} from the mean of several; "
            f"{none:,} have none)"
        )


def _running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def carried(states: TeacherStates, split: TokenizedSplit, rows: NDArray[np.int64]) -> TeacherStates:
    """Return a teacher's states mapped from its own tokens to the student's tokens.

    The result covers only student tokens that have a target. A token that learns from several teacher tokens gets the
    mean of their hidden states, of the attention paid to them, and of the prediction's sensitivity to them.

    Args:
        states: the states of the examples at ``rows``, in the teacher's tokens.
        split: the student's examples, aligned.
        rows: ``(B,)`` indices of the examples.
    """
    alignment = split.aligned
    assert alignment is not None
    lengths = split.lengths[rows]
    tokens = ragged_rows(split.offsets[:-1][rows], lengths)
    chosen = np.flatnonzero(alignment.counts[tokens])
    counts = alignment.counts[tokens[chosen]]
    example = np.repeat(np.arange(len(rows)), lengths)[chosen]
    members = alignment.members[ragged_rows(alignment.starts[tokens[chosen]], counts)]
    place = members + states.tokens.offsets[np.repeat(example, counts)]
    learner = np.repeat(np.arange(len(chosen)), counts)
    single = bool((counts == 1).all())

    def told(values: torch.Tensor) -> torch.Tensor:
        taken = values.index_select(0, torch.from_numpy(place).to(values.device))
        if single:
            return taken
        kept, position = (torch.from_numpy(part).to(values.device) for part in (learner, place))
        return Members(kept, position).mean(taken, len(chosen))

    def told_of(scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        return {
            layer: (np.bincount(learner, row[place], len(chosen)) / counts).astype(np.float32)
            for layer, row in scores.items()
        }

    every = Tokens(split.ids[rows], _running(lengths), split.input_ids[tokens], split.sep_id)
    return replace(
        states,
        tokens=every.take(chosen),
        hidden={layer: told(values) for layer, values in states.hidden.items()},
        attention=told_of(states.attention),
        gradient=told_of(states.gradient),
        received=told_of(states.received),
    )


def align(
    data: TaskData,
    student: Mapping[str, TokenizedSplit],
    teacher: Mapping[str, TokenizedSplit],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    cache: Path,
) -> dict[str, TokenizedSplit]:
    """Return the student's splits, each aligned with the teacher's split.

    A student token learns from the teacher token that ends at the same character. If there is none, it learns from the
    mean of the teacher tokens in the shortest surrounding span whose ends are token boundaries of both tokenizers. That
    span never exceeds the whitespace-delimited word. A student token has no target if no teacher token covers its
    characters, or if truncation removed a teacher token of that span. ``[CLS]`` learns from the teacher's ``[CLS]``,
    and ``[SEP]`` from the ``[SEP]`` after the same text.

    Args:
        data: the texts.
        student: the student's tokens of every split.
        teacher: the teacher's tokens of every split.
        tokenizers: the student's tokenizer and the teacher's.
        cache: folder of cached tokens; alignments are cached there too.

    Raises:
        HskdError: a tokenizer gives no character offsets, or a word with a predicted label has a student token but no
            teacher token.
        CorruptionError: a cached file differs from what was written.
    """
    for tokenizer in tokenizers:
        require_offsets(tokenizer)
    names = [tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers]
    sides = [tokenizer.truncation_side for tokenizer in tokenizers]
    result = {}
    for name, split in data.splits.items():
        pair = (student[name], teacher[name])
        words = pair[0].word_starts is not None
        recipe = {
            "alignment": _VERSION,
            "tokenizers": names,
            "sides": sides,
            "lengths": [part.max_length for part in pair],
            "words": words,
            "texts": texts_sha256(split),
        }

        def write(partial: Path, split: Split = split, pair: tuple[TokenizedSplit, TokenizedSplit] = pair) -> None:
            write_arrays(partial, _aligned(split, pair, tokenizers))

        folder = build(cache / fingerprint(recipe), write)
        arrays = read_arrays(folder)
        counts, teacher_split = arrays["counts"].astype(np.int64), pair[1]
        if len(counts) != len(pair[0].input_ids) or int(counts.sum()) != len(arrays["members"]):
            raise CorruptionError(f"{folder}: is not an alignment of split {name}. Delete it to align again.")
        if words:
            starts = arrays["words"].astype(bool)
            _require_words(split, pair[0], starts, teacher_split)
            teacher_split = replace(teacher_split, word_starts=starts)
        result[name] = replace(
            pair[0],
            aligned=Alignment(
                teacher_split, _running(counts), arrays["members"], names[0], names[1], len(tokenizers[0])
            ),
        )
    return result


def differ(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers turn a text into different tokens.

    Raises:
        HskdError: one of them is slow, so that the two can be neither compared nor aligned.
    """
    require_offsets(student)
    require_offsets(teacher)
    return tokenizer_fingerprint(student) != tokenizer_fingerprint(teacher)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a slow tokenizer, which gives no character offsets.

    Raises:
        HskdError: the tokenizer is slow.
    """
    if not tokenizer.is_fast:
        raise HskdError(
            f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r} is a slow tokenizer: it does not say which "
            "characters a token stands for, so its tokens cannot be aligned with another tokenizer's. Use a model with "
            "a fast tokenizer (a tokenizer.json)."
        )


def _require_words(split: Split, student: TokenizedSplit, starts: NDArray[np.bool_], teacher: TokenizedSplit) -> None:
    """Refuse words that have a student token but no teacher token: the student would have no target for them."""
    assert student.word_starts is not None
    asked, told = (
        np.add.reduceat(part.astype(np.int64), tokens.offsets[:-1])
        for part, tokens in ((student.word_starts, student), (starts, teacher))
    )
    lacking = np.flatnonzero(asked != told)
    if len(lacking):
        row = int(lacking[0])
        raise HskdError(
            f"{split.where(row)}: the student has tokens for {asked[row]} of its words, and the teacher for "
            f"{told[row]} of these ({len(lacking)} such examples). The teacher cuts it at {teacher.max_length} tokens: "
            "raise --max-length so that no text is cut, or leave such examples out."
        )


def _aligned(
    split: Split,
    pair: tuple[TokenizedSplit, TokenizedSplit],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> dict[str, NDArray[Any]]:
    counts: list[int] = []
    members: list[int] = []
    words: list[bool] = []
    for start in range(0, len(split), CHUNK):
        texts = [column[start : start + CHUNK] for column in split.texts]
        encoded = [
            _encoded(texts, tokenizer, tokens.max_length) for tokenizer, tokens in zip(tokenizers, pair, strict=True)
        ]
        for row, (fields, student, teacher) in enumerate(zip(zip(*texts, strict=True), *encoded, strict=True), start):
            for tokens, example in zip(pair, (student, teacher), strict=True):
                assert len(example.kept) == tokens.lengths[row]
            targets = align_example(fields, student, teacher)
            counts += [len(target) for target in targets]
            members += [member for target in targets for member in target]
            if pair[0].word_starts is not None:
                begun = {word for word in student.words(fields[0]) if word >= 0}
                words += [word in begun for word in teacher.words(fields[0])]
    arrays: dict[str, NDArray[Any]] = {
        "counts": np.array(counts, dtype=np.uint16),
        "members": np.array(members, dtype=np.int32),
    }
    return arrays | ({"words": np.array(words, dtype=np.uint8)} if pair[0].word_starts is not None else {})


@dataclass(frozen=True)
class Example:
    """The tokens of one example.

    Attributes:
        kept: for each token left after truncation, the index of its text and its position among the tokens of that
            text. A token that the tokenizer adds has -1 and the number of texts before it.
        spans: for each text, the characters of all its tokens, including those that truncation removes.
    """

    kept: tuple[tuple[int, int], ...]
    spans: tuple[tuple[Span, ...], ...]

    def words(self, text: str) -> list[int]:
        """Return the index of the word that each kept token begins, or -1. The example has a single text."""
        spans = [self.spans[0][place] if of >= 0 else (0, 0) for of, place in self.kept]
        return word_starts_of(text, spans, [of < 0 for of, _ in self.kept])


def _encoded(texts: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Return the examples of parallel lists of texts, truncated as :func:`~hskd.tasks.tokenized.tokenize` does."""
    encodings = tokenizer(*texts, truncation=True, max_length=max_length, padding=False, verbose=False).encodings
    assert encodings is not None
    left = tokenizer.truncation_side == "left"
    examples = []
    for row, encoding in enumerate(encodings):
        of = encoding.sequence_ids
        whole = encoding
        if encoding.overflowing:
            [whole] = tokenizer(*([column[row]] for column in texts), truncation=False, verbose=False).encodings or []
        spans: list[list[Span]] = [[] for _ in texts]
        for part, span in zip(whole.sequence_ids, whole.offsets, strict=True):
            if part is not None:
                spans[part].append(span)
        left_over = [len(span) - of.count(part) if left else 0 for part, span in enumerate(spans)]
        counters = [itertools.count(first) for first in left_over]
        before, kept = 0, []
        for part in of:
            if part is None:
                kept.append((-1, before))
            else:
                before = part + 1
                kept.append((part, next(counters[part])))
        examples.append(Example(tuple(kept), tuple(map(tuple, spans))))
    return examples


def align_example(texts: Sequence[str], student: Example, teacher: Example) -> list[tuple[int, ...]]:
    """Return the positions of the teacher tokens that each student token learns from (see :func:`align`)."""
    place_of = {token: place for place, token in enumerate(teacher.kept) if token[0] >= 0}
    by_text = [align_spans(text, *spans) for text, *spans in zip(texts, student.spans, teacher.spans, strict=True)]
    added: list[list[int]] = [[] for _ in range(len(texts) + 1)]
    for place, (of, before) in enumerate(teacher.kept):
        if of < 0:
            added[before].append(place)
    taken = [0] * len(added)
    targets: list[tuple[int, ...]] = []
    for of, place in student.kept:
        if of < 0:
            # RoBERTa puts two separators between texts: the first one belongs to the first text.
            group = added[place]
            targets.append((group[min(taken[place], len(group) - 1)],) if group else ())
            taken[place] += 1
            continue
        places = [place_of.get((of, member), -1) for member in by_text[of][place]]
        targets.append(() if -1 in places else tuple(places))
    return targets


def align_spans(text: str, student: Sequence[Span], teacher: Sequence[Span]) -> list[tuple[int, ...]]:
    """Return the indices of the teacher tokens that each student token learns from (see :func:`align`).

    Args:
        text: the text of both token sequences.
        student: the characters of the student's tokens, in text order.
        teacher: the characters of the teacher's tokens.
    """
    spans = [_stripped(text, span) for span in student]
    others = [(i, *_stripped(text, span)) for i, span in enumerate(teacher)]
    others = [(i, start, end) for i, start, end in others if start < end]
    others.sort(key=lambda token: token[2])  # stable; this changes the order only if a normaliser moves characters
    ends = [end for _, _, end in others]
    last = {end: i for i, _, end in others}
    common = sorted({end for start, end in spans if start < end and end in last})
    word_starts = [i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())]
    word_ends = [i + 1 for i, c in enumerate(text) if not c.isspace() and (i + 1 == len(text) or text[i + 1].isspace())]
    targets: list[tuple[int, ...]] = []
    for start, end in spans:
        if start >= end:
            targets.append(())
        elif end in last:
            targets.append((last[end],))
        else:
            cut = bisect_left(common, end)
            low = max(word_starts[bisect_right(word_starts, start) - 1], common[cut - 1] if cut else 0)
            high = min(word_ends[bisect_left(word_ends, end)], common[cut] if cut < len(common) else len(text))
            piece = others[bisect_right(ends, low) : bisect_right(ends, high)]
            shares = any(first < end and stop > start for _, first, stop in piece)
            targets.append(tuple(sorted(i for i, _, _ in piece)) if shares else ())
    return targets


def _stripped(text: str, span: Span) -> Span:
    """Return a token's characters without surrounding white space, which some tokenizers count as part of the token."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
