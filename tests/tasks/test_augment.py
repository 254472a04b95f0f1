"""Augmented data: files of further sentences in every format, and sentences that must be left out."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizerFast

from hskd.errors import HskdError
from hskd.tasks import TaskData, load_task, tokenize
from hskd.tasks.augment import AUGMENTED

EXTRA = ["a truly new film", 'quoted "words", with a comma', "null"]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Return a task of one text."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\nA warm  film,0\na cold film,1\na cold film,0\n")
    (folder / "dev.csv").write_text("text,label\nfrom dev,0\n")
    (folder / "test.csv").write_text("text,label\nfrom test,0\n")
    return folder


def load(folder: Path, file: Path) -> TaskData:
    return load_task("custom", str(folder), ["text"], "label", str(file))


def write(file: Path, sentences: list[str]) -> Path:
    match file.suffix:
        case ".txt":
            file.write_text("\n".join(sentences) + "\n\n")
        case ".tsv":
            file.write_text("label\ttext\n" + "".join(f"7\t{sentence}\n" for sentence in sentences))
        case ".csv":
            quoted = (sentence.replace('"', '""') for sentence in sentences)
            file.write_text("text,label\n" + "".join(f'"{sentence}",unheard of\n' for sentence in quoted))
        case ".jsonl":
            file.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences))
        case ".parquet":
            pq.write_table(pa.table({"text": sentences}), file)
    return file


@pytest.mark.parametrize("suffix", ["txt", "tsv", "csv", "jsonl", "parquet"])
def test_formats_agree_and_the_real_splits_stay(one: Path, tmp_path: Path, suffix: str) -> None:
    plain = load_task("custom", str(one), ["text"], "label")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(one, write(tmp_path / f"extra.{suffix}", EXTRA))
    extra = data.splits[AUGMENTED]
    assert extra.texts == (EXTRA,) and extra.labels is None
    assert {name: split.texts for name, split in data.splits.items() if name != AUGMENTED} == {
        name: split.texts for name, split in plain.splits.items()
    }
    assert data.splits["train"].ids.tolist() == plain.splits["train"].ids.tolist()


def test_what_occurs_already_is_left_out_and_counted(one: Path, tmp_path: Path) -> None:
    """A sentence of dev or test would be trained on before it is scored, and one of train would count twice."""
    sentences = ["from dev", "FROM  TEST", "a warm film", "new", "New ", "a cold film", "other"]
    file = write(tmp_path / "extra.txt", sentences)
    with pytest.warns(UserWarning, match=r"extra\.txt: of 7 sentences, 2 occur in dev or test and 3 in train or earl"):
        data = load(one, file)
    assert data.splits[AUGMENTED].texts == (["new", "other"],)
    file.write_text("from dev\na warm film\n")
    with pytest.warns(UserWarning), pytest.raises(HskdError, match=r"extra\.txt: no sentence is left"):
        load(one, file)


def test_ids_differ_from_those_of_train(one: Path, tmp_path: Path) -> None:
    data = load(one, write(tmp_path / "extra.txt", EXTRA))
    ids = np.concatenate([data.splits["train"].ids, data.splits[AUGMENTED].ids])
    assert len(np.unique(ids)) == 3 + len(EXTRA)


def test_pairs_are_compared_as_pairs(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\nx,y,0\nx,z,1\n")
    (tmp_path / "dev.csv").write_text("a,b,label\nx,w,0\n")
    extra = tmp_path / "extra.jsonl"
    extra.write_text('{"a": "x", "b": "y"}\n{"a": "y", "b": "x"}\n{"a": "x", "b": "w"}\n{"a": "w", "b": "x"}\n')
    with pytest.warns(UserWarning, match="1 occur in dev or test and 1 in train"):
        data = load_task("custom", str(tmp_path), ["a", "b"], "label", str(extra))
    assert data.splits[AUGMENTED].texts == (["y", "w"], ["x", "x"])
    (tmp_path / "extra.txt").write_text("only one text\n")
    with pytest.raises(HskdError, match=r"extra\.txt: task custom has two texts, \['a', 'b'\]; expected columns"):
        load_task("custom", str(tmp_path), ["a", "b"], "label", str(tmp_path / "extra.txt"))


def write_glue(folder: Path, header: str, row: str) -> None:
    for split in ("train", "dev", "dev_matched", "dev_mismatched", "test", "test_matched", "test_mismatched"):
        (folder / f"{split}.tsv").write_text(header + row.replace("SPLIT", split))


def test_augmented_glue_has_the_columns_of_train(tmp_path: Path) -> None:
    """Augmented GLUE is distributed in this form: ``train_aug.tsv`` beside ``train.tsv``, with repeated labels."""
    write_glue(tmp_path, "index\tsentence1\tsentence2\tgold_label\n", "0\tSPLIT one\tSPLIT two\tneutral\n")
    augmented = tmp_path / "train_aug.tsv"
    augmented.write_text("index\tsentence1\tsentence2\tgold_label\n0\tsome one\tsome two\tno label of the task\n")
    assert load_task("mnli", str(tmp_path), augment=str(augmented)).splits[AUGMENTED].texts == (
        ["some one"],
        ["some two"],
    )
    (tmp_path / "extra.csv").write_text("premise,hypothesis\np,h\n")
    extra = load_task("mnli", str(tmp_path), augment=str(tmp_path / "extra.csv")).splits[AUGMENTED]
    assert extra.texts == (["p"], ["h"])


def test_fields_that_a_csv_writer_quoted(tmp_path: Path) -> None:
    """TinyBERT's script writes with Python's ``csv``, which doubles quotes that official files leave as they are."""
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ntrain\t1\n")
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\nsaid " no "\t1\n')
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\ttest\n")
    sentences = ['a " quote', '"', '" whole "', '""', "plain", 'said " no "']
    with (tmp_path / "train_aug.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["sentence", "label"], *([text, "1"] for text in sentences)])
    with pytest.warns(UserWarning, match="1 occur in dev or test and 0 in train"):
        data = load_task("sst2", str(tmp_path), augment=str(tmp_path / "train_aug.tsv"))
    assert data.splits[AUGMENTED].texts == (sentences[:-1],)
    (tmp_path / "plain.tsv").write_text('sentence\n"as it is"\na "word"\n"\n')
    data = load_task("sst2", str(tmp_path), augment=str(tmp_path / "plain.tsv"))
    assert data.splits[AUGMENTED].texts == (['"as it is"', 'a "word"', '"'],)


def test_augmented_cola_has_no_header(tmp_path: Path) -> None:
    write_glue(tmp_path, "", "gj04\t1\t\tSPLIT sentence\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\ttest sentence\n")
    augmented = tmp_path / "train_aug.tsv"
    augmented.write_text("gj04\t0\t*\tfirst\ngj04\t1\t\tsecond\n")
    assert load_task("cola", str(tmp_path), augment=str(augmented)).splits[AUGMENTED].texts == (["first", "second"],)
    augmented.write_text("sentence\nfirst\n")
    assert load_task("cola", str(tmp_path), augment=str(augmented)).splits[AUGMENTED].texts == (["first"],)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.tsv", "text\tlabel\nfine\t1\nshort\n", r"x\.tsv, line 3: 1 fields; expected 2"),
        ("x.tsv", "sentence\nfine\n", r"x\.tsv, line 1: no column 'text'; it has \['sentence'\]"),
        ("x.tsv", "text\tlabel\nfine\t1\n\t1\n", r"x\.tsv, line 3, column 'text': empty; expected a text"),
        ("x.tsv", "text\n", r"x\.tsv: no rows; expected augmented sentences of task custom"),
        ("x.csv", "text,label\nfine,1\n,1\n", r"x\.csv, row 1, column 'text': None; expected a text"),
        ("x.csv", "sentence\nfine\n", r"x\.csv: no column 'text'; it has \['sentence'\]"),
        ("x.jsonl", '{"text": "fine"}\n{"text": 3}\n', r"x\.jsonl, row 1, column 'text': 3; expected a text"),
        ("x.jsonl", '{"text": "fine"}\n{\n', r"x\.jsonl, line 2: not JSON"),
        ("x.txt", "\n  \n", r"x\.txt: no rows"),
        ("x.txt", b"fine\n\xff\n", r"x\.txt, line 2: byte 5 is not UTF-8"),
        ("x.tsv", b"text\nfine\n\xff\n", r"x\.tsv, line 3: byte 10 is not UTF-8"),
        ("x.xml", "<a/>", r"x\.xml: unknown format '\.xml'; expected one of \.csv, \.tsv, .*, \.txt"),
    ],
)
def test_errors_name_file_and_line(one: Path, tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HskdError, match=said):
        load(one, file)


def test_a_file_that_is_not_there(one: Path, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"none\.txt: no such file; expected augmented sentences of task custom"):
        load(one, tmp_path / "none.txt")


def test_followed_by_joins_the_tokens(one: Path, tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    splits = tokenize(load(one, write(tmp_path / "extra.txt", EXTRA)), tokenizer, tmp_path / "tokens")
    train, extra = splits["train"], splits[AUGMENTED]
    joined = train.followed_by(extra)
    assert len(joined) == 6 and joined.real == 3 and joined.labels is None
    np.testing.assert_array_equal(joined.lengths, [*train.lengths, *extra.lengths])
    for rows, part in (((0, 1, 2), train), ((3, 4, 5), extra)):
        mine, theirs = joined.collate(rows), part.collate(range(3))
        assert all((mine[name] == theirs[name]).all() for name in mine)
    assert "labels" not in joined.collate([0]) and "labels" in train.collate([0])
    assert joined.first(2).real is None
