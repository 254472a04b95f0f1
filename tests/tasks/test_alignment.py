"""Tokens of two tokenizers, aligned by characters, with exact targets on texts written for this test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import byte_bpe, shifted, unigram, wordpiece
from transformers import PreTrainedTokenizerFast

from hskd.errors import CorruptionError, HskdError
from hskd.heads.sequence import SequenceClassification
from hskd.heads.token import TokenClassification
from hskd.knowledge import TeacherStates
from hskd.tasks import Split, Task, TaskData, TokenizedSplit, align, tokenize
from hskd.tasks.alignment import align_spans, carried, differ, require_offsets
from hskd.teachers.forward import tokens_of

BERT = wordpiece(
    *("play", "##ing", "##s", "un", "##happi", "##ness", "is", "fun", "cafe", "don", "'", "t", "!", "a", "the", "film")
)
BYTES = byte_bpe("pl", "aying", "playing", " is", " fun", "un", "hap", "piness", " caf", "é", " the", " film")
PIECES = unigram(
    *("▁", "▁play", "ing", "▁is", "▁fun", "▁un", "hap", "pi", "ness", "▁café", "▁the", "▁film", *"abcdeghilmnopstuy!")
)


def make_data(*columns: list[str], task: Task | None = None, labels: list | None = None) -> TaskData:
    head = SequenceClassification(("no", "yes"), ("accuracy",))
    made = task or Task("made-up", tuple(f"text{i}" for i in range(len(columns))), "label", head, 1, 64)
    return TaskData(made, {"train": Split.of("train", columns, labels)})


def aligned(
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    cache: Path,
    *columns: list[str],
    lengths: tuple[int, int] = (64, 64),
    **of_data: object,
) -> TokenizedSplit:
    data = make_data(*columns, **of_data)  # type: ignore[arg-type]
    pair = [
        tokenize(data, tokenizer, cache, length) for tokenizer, length in zip((student, teacher), lengths, strict=True)
    ]
    return align(data, pair[0], pair[1], (student, teacher), cache)["train"]


def named(split: TokenizedSplit, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> list[list[str]]:
    """Return the tokens of every example, each with those that it learns from: ``##ing<aying`` or ``a<-``."""
    result = []
    assert split.aligned is not None
    others = split.aligned.teacher
    for row in range(len(split)):
        own = range(split.offsets[row], split.offsets[row + 1])
        theirs_ids = others.input_ids[others.offsets[row] : others.offsets[row + 1]]
        names = teacher.convert_ids_to_tokens(theirs_ids.tolist())
        example = []
        for token in own:
            members = split.aligned.members[split.aligned.starts[token] : split.aligned.starts[token + 1]]
            [name] = student.convert_ids_to_tokens([int(split.input_ids[token])])
            example.append(f"{name}<{'+'.join(names[member] for member in members) or '-'}")
        result.append(example)
    return result


@pytest.mark.parametrize(
    ("student", "teacher", "text", "expected"),
    [
        # One token ends where the other does; otherwise the target is the mean of the shortest common piece.
        (BERT, BYTES, "playing is fun", "[CLS]<<s> play<pl+aying ##ing<aying is<Ġis fun<Ġfun [SEP]<</s>"),
        (BYTES, BERT, "playing is fun", "<s><[CLS] pl<play+##ing aying<##ing Ġis<is Ġfun<fun </s><[SEP]"),
        (BERT, BYTES, "unhappiness", "[CLS]<<s> un<un ##happi<hap+piness ##ness<piness [SEP]<</s>"),
        (BYTES, BERT, "unhappiness", "<s><[CLS] un<un hap<##happi+##ness piness<##ness </s><[SEP]"),
        (PIECES, BYTES, "unhappiness", "<s><<s> ▁un<un hap<hap pi<piness ness<piness </s><</s>"),
        (BYTES, PIECES, "unhappiness", "<s><<s> un<▁un hap<hap piness<ness </s><</s>"),
        # Upper case, and an accent in one character and in two, which WordPiece drops.
        (BERT, BYTES, "A café!", "[CLS]<<s> a<A cafe<Ã© !<! [SEP]<</s>"),
        (BYTES, BERT, "A café!", "<s><[CLS] A<a Ġcaf<cafe é<cafe !<! </s><[SEP]"),
        (BERT, BYTES, "Cafe\u0301 is", "[CLS]<<s> cafe<e is<Ġis [SEP]<</s>"),
        (BYTES, BERT, "Cafe\u0301 is", "<s><[CLS] C<cafe a<cafe f<cafe e<cafe Ì<- ģ<- Ġis<is </s><[SEP]"),
        # An emoji of four bytes, and an unknown word.
        (BERT, BYTES, "🎉 fun", "[CLS]<<s> [UNK]<ī fun<Ġfun [SEP]<</s>"),
        (BYTES, BERT, "🎉 fun", "<s><[CLS] ð<[UNK] Ł<[UNK] İ<[UNK] ī<[UNK] Ġfun<fun </s><[SEP]"),
        # White space of any kind. A token of only white space has no target.
        (BERT, BYTES, "a\u00a0fun  is", "[CLS]<<s> a<a fun<un is<Ġis [SEP]<</s>"),
        (BYTES, BERT, "a  is", "<s><[CLS] a<a Ġ<- Ġis<is </s><[SEP]"),
        # NFKC turns a ligature into two letters.
        (PIECES, BYTES, "ﬁlm the", "<s><<s> ▁film<m ▁the<Ġthe </s><</s>"),
        (BYTES, PIECES, "ﬁlm the", "<s><<s> ï<▁film ¬<▁film ģ<▁film l<▁film m<▁film Ġthe<▁the </s><</s>"),
        # A control character that WordPiece drops, between words and at the end of one.
        (BYTES, BERT, "is\u0007 fun", "<s><[CLS] i<is s<is ć<- Ġfun<fun </s><[SEP]"),
    ],
)  # fmt: skip
def test_targets_are_exactly_these(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, text: str, expected: str, tmp_path: Path
) -> None:
    split = aligned(student, teacher, tmp_path, [text])
    named_tokens = " ".join(named(split, student, teacher)[0])
    # The vocabulary has a piece of two letters' bytes.
    assert named_tokens.replace("Ã©<", "é<") == expected


def test_spans_that_share_no_end() -> None:
    """The common piece is the shortest possible: at most the word, and it always contains the token."""
    text = "20€ abcdef gh"
    student = [(0, 3), (4, 6), (6, 8), (8, 10), (11, 13)]
    teacher = [(0, 2), (4, 7), (7, 10), (10, 12), (12, 13)]
    # "20€" gets "20", the whole of its word; "ab" and "cd" get the mean of "abc" and "def".
    assert align_spans(text, student, teacher) == [(0,), (1, 2), (1, 2), (2,), (4,)]
    # The euro sign alone has no target, neither before nor after a number.
    assert align_spans("€20 a", [(0, 1), (1, 3), (4, 5)], [(1, 3), (4, 5)]) == [(), (0,), (1,)]
    assert align_spans("20€ a", [(0, 2), (2, 3), (4, 5)], [(0, 2), (4, 5)]) == [(0,), (), (1,)]
    # In a sentence without spaces, as in Chinese, no more than the text between two common ends.
    assert align_spans("abcdefgh", [(0, 2), (2, 5), (5, 6), (6, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)]) == [
        (0,), (1, 2), (2,), (3,),
    ]  # fmt: skip
    assert align_spans("", [], [(0, 0)]) == []


@given(st.text(st.sampled_from("ab é\u0301🎉ﬁ\u0007 İß"), max_size=12))
def test_whatever_the_text_every_target_shares_a_word_with_its_token(text: str) -> None:
    for student, teacher in ((BERT, BYTES), (BYTES, PIECES), (PIECES, BERT)):
        spans = [
            [span for span, of in zip(encoding.offsets, encoding.sequence_ids, strict=True) if of == 0]
            for encoding in (tokenizer([text]).encodings[0] for tokenizer in (student, teacher))
        ]
        starts = {place for place in range(len(text)) if not text[place].isspace()}
        for (start, end), members in zip(spans[0], align_spans(text, *spans), strict=True):
            for member in members:
                first, stop = spans[1][member]
                between = range(min(end, stop), max(start, first))  # the gap between the two, if they are apart
                assert all(place in starts for place in between)
        # With one tokenizer for both, a token learns from itself, or from the last token of the same characters.
        for i, (span, members) in enumerate(zip(spans[0], align_spans(text, spans[0], spans[0]), strict=True)):
            if members:
                [member] = members
                assert member >= i and spans[0][member][1] >= span[1] - 1


def test_mpnet_and_bert_come_out_at_100_percent(tmp_path: Path) -> None:
    mpnet = shifted(BERT)
    assert differ(BERT, mpnet)
    texts = ["playing is fun !", "unhappiness", "the films don't play", "Café 🎉 is"]
    split = aligned(BERT, mpnet, tmp_path, texts, lengths=(7, 7))
    assert split.aligned is not None and split.aligned.share == 1
    assert (split.aligned.counts == 1).all()
    places = split.tokens.position
    np.testing.assert_array_equal(split.aligned.members, places)
    assert "100.00 %" in split.aligned.describe()
    words = split.input_ids > 4
    np.testing.assert_array_equal(split.aligned.teacher.input_ids[words], split.input_ids[words] + 4)


def test_pairs_and_their_separators(tmp_path: Path) -> None:
    pairs = (["is fun", "", "play"], ["the film", "fun", ""])
    there = aligned(BERT, BYTES, tmp_path, *pairs)
    assert named(there, BERT, BYTES)[1:] == [
        ["[CLS]<<s>", "[SEP]<</s>", "fun<un", "[SEP]<</s>"],
        ["[CLS]<<s>", "play<ay", "[SEP]<</s>", "[SEP]<</s>"],
    ]
    back = aligned(BYTES, BERT, tmp_path, *pairs)
    assert back.aligned is not None and there.aligned is not None
    # RoBERTa's two separators between texts both learn from BERT's one, which follows the first text.
    first = named(back, BYTES, BERT)[0]
    assert [token for token in first if token.startswith("</s>")] == ["</s><[SEP]"] * 3
    row = slice(there.offsets[0], there.offsets[1])
    seps = np.flatnonzero(there.input_ids[row] == there.sep_id)
    others = there.aligned.teacher
    teacher_seps = np.flatnonzero(others.input_ids[: others.offsets[1]] == others.sep_id)
    learnt = [there.aligned.members[there.aligned.starts[sep]] for sep in seps]
    assert learnt == [teacher_seps[0], teacher_seps[2]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_cut_off_has_no_target(side: str, tmp_path: Path) -> None:
    student, teacher = wordpiece("playing", "is", "fun", "un", "##happiness"), wordpiece("pl", "##aying", "is", "fun")
    for tokenizer in (student, teacher):
        tokenizer.truncation_side = side
    text = ["is playing fun"]
    whole = named(aligned(student, teacher, tmp_path, text), student, teacher)
    assert whole == [["[CLS]<[CLS]", "is<is", "playing<##aying", "fun<fun", "[SEP]<[SEP]"]]
    # The teacher has room for two pieces: "is", "pl" from the left, "##aying", "fun" from the right.
    short = named(aligned(student, teacher, tmp_path, text, lengths=(64, 4)), student, teacher)[0]
    expected = {"right": ["is<is", "playing<-", "fun<-"], "left": ["is<-", "playing<##aying", "fun<fun"]}
    assert short == ["[CLS]<[CLS]", *expected[side], "[SEP]<[SEP]"]
    # A mean needs all its parts: "playing" in one piece learns nothing if one of its parts is missing.
    pieces = wordpiece("is", "p", "##layi", "##ng", "fun")
    pieces.truncation_side = side
    joined = wordpiece("is", "pla", "##ying", "fun")
    joined.truncation_side = side
    assert named(aligned(joined, pieces, tmp_path, text), joined, pieces)[0][2] == "pla<p+##layi+##ng"
    cut = named(aligned(joined, pieces, tmp_path, text, lengths=(64, 5)), joined, pieces)[0]
    assert cut[2] == "pla<-"
    # Where the student's text is truncated, the remaining targets are those of the whole text.
    own = named(aligned(student, teacher, tmp_path, text, lengths=(4, 64)), student, teacher)[0]
    assert own[1:-1] == {"right": whole[0][1:3], "left": whole[0][2:4]}[side]


def test_pairs_are_cut_in_either_tokenizer(tmp_path: Path) -> None:
    texts = (["is fun is fun"], ["fun is is"])
    whole = named(aligned(BERT, BYTES, tmp_path, *texts), BERT, BYTES)[0]
    split = aligned(BERT, BYTES, tmp_path, *texts, lengths=(7, 64))
    # [CLS], two of four tokens, [SEP], two of three, [SEP], with the targets of the whole text.
    assert named(split, BERT, BYTES)[0] == [*whole[:3], whole[5], *whole[6:8], whole[9]]
    short = named(aligned(BERT, BYTES, tmp_path, *texts, lengths=(64, 9)), BERT, BYTES)[0]
    assert [token.rpartition("<")[0] for token in short[:6]] == [token.rpartition("<")[0] for token in whole[:6]]
    lost = [token for token, of_whole in zip(short, whole, strict=True) if token != of_whole]
    assert lost and all(token.endswith("<-") for token in lost)


# ---- the teacher's states for the student's tokens


def states_of(split: TokenizedSplit, rows: np.ndarray) -> TeacherStates:
    """A teacher whose state of a token is (example, place) and whose attention is the place."""
    assert split.aligned is not None
    tokens = tokens_of(split.aligned.teacher.collate(rows), split.aligned.teacher.sep_id)
    hidden = torch.stack([torch.from_numpy(tokens.example), torch.from_numpy(tokens.position)], 1).float()
    return TeacherStates(tokens, {0: hidden, 2: 10 * hidden}, {1: tokens.position.astype(np.float32)})


def test_states_and_attention_are_carried_over(tmp_path: Path) -> None:
    split = aligned(BERT, BYTES, tmp_path, ["is fun", "unhappiness", "🎉 a\u00a0! Cafe\u0301"])
    assert split.aligned is not None
    rows = np.array([2, 1])
    told = carried(states_of(split, rows), split, rows)
    assert told.tokens.sep_id == BERT.sep_token_id
    place = told.tokens.offsets[1]
    second = told.hidden[0][place:]
    # "unhappiness": "##happi" gets the mean of the places of "hap" and "piness".
    assert second.tolist() == [[1, 0], [1, 1], [1, 2.5], [1, 3], [1, 4]]
    torch.testing.assert_close(told.hidden[2], 10 * told.hidden[0])
    np.testing.assert_array_equal(told.attention[1], told.hidden[0][:, 1].numpy())
    assert told.attention[1].dtype == np.float32
    assert BERT.convert_ids_to_tokens(told.tokens.input_ids[place:].tolist())[2] == "##happi"
    assert told.tokens.position[place:].tolist() == [0, 1, 2, 3, 4]


def test_tokens_without_a_target_are_not_among_them(tmp_path: Path) -> None:
    split = aligned(BYTES, BERT, tmp_path, ["a  is", "Cafe\u0301 is"])
    assert split.aligned is not None
    rows = np.arange(2)
    told = carried(states_of(split, rows), split, rows)
    np.testing.assert_array_equal(told.tokens.offsets, [0, 4, 4 + 7])
    assert told.tokens.position.tolist() == [0, 1, 3, 4, 0, 1, 2, 3, 4, 7, 8]
    np.testing.assert_array_equal(told.tokens.input_ids, split.with_targets.input_ids)
    assert len(split.tokens.input_ids) == 14


def test_take_and_followed_by_keep_the_alignment(tmp_path: Path) -> None:
    texts = ["is fun", "unhappiness", "Cafe\u0301 is", "playing the film"]
    split = aligned(BYTES, BERT, tmp_path, texts)
    every = named(split, BYTES, BERT)
    taken = split.take([3, 1])
    assert named(taken, BYTES, BERT) == [every[3], every[1]]
    joined = taken.followed_by(split.take([0, 2]))
    assert named(joined, BYTES, BERT) == [every[i] for i in (3, 1, 0, 2)]
    assert joined.aligned is not None and split.aligned is not None
    assert joined.aligned.fingerprint != split.aligned.fingerprint
    assert joined.take([2, 1, 3, 0]).aligned.fingerprint == split.aligned.fingerprint  # type: ignore[union-attr]
    assert joined.fingerprint != split.fingerprint


def test_the_cache_is_read_again_and_checked(tmp_path: Path) -> None:
    first = aligned(BERT, BYTES, tmp_path, ["is fun", "playing"])
    folders = {path.parent for path in tmp_path.glob("*/checksums.json")}
    again = aligned(BERT, BYTES, tmp_path, ["is fun", "playing"])
    assert first.aligned is not None and again.aligned is not None
    assert first.aligned.fingerprint == again.aligned.fingerprint
    assert {path.parent for path in tmp_path.glob("*/checksums.json")} == folders and len(folders) == 3
    for path in tmp_path.glob("*/data*.arrow"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CorruptionError, match="not the file that was written there"):
        aligned(BERT, BYTES, tmp_path, ["is fun", "playing"])


# ---- texts that cannot be aligned


def test_a_slow_tokenizer_is_refused_with_the_reason() -> None:
    from transformers import CanineTokenizer

    slow = CanineTokenizer()
    with pytest.raises(HskdError, match="is a slow tokenizer: it does not say which characters a token stands for"):
        require_offsets(slow)
    with pytest.raises(HskdError, match="CanineTokenizer"):
        differ(BERT, slow)


# ---- words with labels


def tagged(texts: list[str], tags: list[list[int]]) -> dict[str, object]:
    head = TokenClassification(("O", "B-X"), ("token_accuracy",))
    return {"task": Task("made-up", ("text",), "tags", head, 1, 64), "labels": tags}


def test_words_are_those_that_both_have_a_token_for(tmp_path: Path) -> None:
    texts = ["playing is fun", "un\u0007 the film"]
    split = aligned(BERT, BYTES, tmp_path, texts, **tagged(texts, [[0, 0, 1], [1, 0, 0]]))
    assert split.aligned is not None and split.word_starts is not None
    others = split.aligned.teacher
    assert others.word_starts is not None
    begins = BYTES.convert_ids_to_tokens(others.input_ids[others.word_starts].tolist())
    assert begins == ["pl", "Ġis", "Ġfun", "un", "Ġthe", "Ġfilm"]
    assert split.word_starts.sum() == 6


def test_a_word_that_only_the_teacher_has_is_left_out(tmp_path: Path) -> None:
    """The control character is a word to bytes, but nothing to WordPiece."""
    texts = ["is \u0007 fun"]
    split = aligned(BERT, BYTES, tmp_path, texts, **tagged(texts, [[0, 1, 1]]))
    assert split.aligned is not None and split.aligned.teacher.word_starts is not None
    assert split.word_starts is not None and split.word_starts.sum() == 2
    others = split.aligned.teacher
    assert BYTES.convert_ids_to_tokens(others.input_ids[others.word_starts].tolist()) == ["i", "Ġfun"]


def test_a_word_that_only_the_student_has_is_refused(tmp_path: Path) -> None:
    texts = ["is fun", "is fun is fun is fun"]
    with pytest.raises(HskdError, match=r"row 1: the student has tokens for 6 of its words, and the teacher for 3"):
        aligned(BERT, BYTES, tmp_path, texts, lengths=(64, 6), **tagged(texts, [[0, 1], [0, 1, 0, 1, 0, 1]]))
