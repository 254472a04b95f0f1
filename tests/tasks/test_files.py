"""Formats that give equal data, and files that are rejected with file and row or line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hskd.errors import HskdError
from hskd.tasks import load_task
from hskd.tasks.files import read_table

ROWS = [{"text": 'warm, "funny"', "label": "pos"}, {"text": "né\u2028😀 ", "label": "neg"}]


def content(suffix: str) -> bytes:
    match suffix.removesuffix(".gz"):
        case ".csv":
            text = "text,label\n" + "".join(
                f'"{row["text"].replace(chr(34), chr(34) * 2)}",{row["label"]}\n' for row in ROWS
            )
        case ".tsv":
            text = "text\tlabel\r\n" + "".join(f"{row['text']}\t{row['label']}\r\n" for row in ROWS)
        case ".jsonl":
            text = "\n".join(map(json.dumps, ROWS))
        case _:
            text = json.dumps(ROWS, indent=1)
    encoded = text.encode("utf-8-sig")  # with a byte order mark
    return gzip.compress(encoded) if suffix.endswith(".gz") else encoded


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"train{suffix}").write_bytes(content(suffix))
    (tmp_path / f"validation{suffix}").write_bytes(content(suffix))
    data = load_task("custom", str(tmp_path), "text", "label")
    assert data.splits["dev"].texts == ([row["text"] for row in ROWS],)
    assert (data.task.label_names, data.splits["train"].labels) == (("neg", "pos"), [1, 0])


def test_json_may_have_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, ROWS)))
    assert read_table(tmp_path / "a.json").column("label") == ["pos", "neg"]


def test_two_files_of_a_split_are_refused(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "validation.tsv"):
        (tmp_path / name).write_bytes(content(name[-4:]))
    with pytest.raises(HskdError, match=r"dev\.csv and validation\.tsv are both there"):
        load_task("custom", str(tmp_path), "text", "label")


REFUSED: list[tuple[str, bytes, str]] = [
    ("a.csv", b'text,label\na,0\n"b,1\nc,2\n', r"a\.csv, row 1 \(line 3\): a quote is opened and never closed"),
    ("a.csv", b'text,label\na,0\n"b"x,1\n', r"a\.csv, row 1 \(line 3\): .*; not a CSV row"),
    ("a.csv", b'text,label\n"a\nb",0\nc\n', r"a\.csv, row 1 \(line 4\): 1 fields; expected 2"),
    ("a.csv", b"text,text,label\na,b,0\n", r"a\.csv: 2 columns are called 'text'; expected one"),
    ("a.csv", b"text,label\n\n\n", r"a\.csv: no rows"),
    ("a.csv", b"", r"a\.csv: no rows"),
    ("a.csv", b"\xef\xbb\xbf", r"a\.csv: no rows"),
    ("a.csv", b"text,label\na,0\nb\xff,1\n", r"a\.csv, line 3: byte 16 is not UTF-8"),
    ("a.csv", "text,label\na,0\n".encode("utf-16"), r"a\.csv, line 1: byte 0 is not UTF-8\. It seems to be UTF-16"),
    ("a.tsv", b"text\tlabel\na\t0\t1\n", r"a\.tsv, row 0 \(line 2\): 3 fields; expected 2"),
    ("a.jsonl", b'{"text": "a", "label": 0}\n' + b"[" * 100_000, r"a\.jsonl, line 2: nested too deep"),
    ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 100_000 + b"}", r"a\.jsonl, line 1: a number has too many digits"),
    ("a.jsonl", rb'{"text": "a \ud800", "label": 0}', r"a\.jsonl, row 0, column 'text': character 2 is a lone surr"),
    ("a.jsonl", b'{"text": "a", "text": "b", "label": 0}', r"a\.jsonl, line 1: an object has 2 fields 'text'"),
    ("a.jsonl", b'{"text": "a", "label": 0}\n3\n', r"a\.jsonl, line 2: int; expected an object"),
    ("a.json", b'[{"text": "a", "label": 0},\n{"text": ]', r"a\.json, line 2: not JSON"),
    ("a.json", b'[{"text": "a", "label": 0}, 3]', r"a\.json, row 1: int; expected an object"),
    ("a.json", b'{"data": {"a": 1},\n"b": 2}', r"a\.json, line 1: not JSON"),
    ("a.json", b"[]", r"a\.json: no rows"),
    ("a.csv.gz", b"text,label\n", r"a\.csv\.gz: is not a whole gzip file"),
    ("a.csv.gz", gzip.compress(b"text,label\na,0\n")[:-9], r"a\.csv\.gz: is not a whole gzip file"),
    ("a.parquet", b"PAR1", r"a\.parquet: cannot be read"),
    ("a.xml", b"<a/>", r"a\.xml: unknown format '\.xml'; expected one of \.csv"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "held", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_names_the_place(tmp_path: Path, name: str, held: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(held)
    with pytest.raises(HskdError, match=said) as refused:
        load_task("custom", str(tmp_path / name), "text", "label")
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


def test_a_damaged_name_in_a_parquet_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "na\u00efve": [1]}), file, store_schema=False)
    file.write_bytes(file.read_bytes().replace(b"na\xc3\xafve", b"na\xf4\xafve"))
    with pytest.raises(HskdError, match=r"a\.parquet: is damaged: a name in it is not UTF-8"):
        read_table(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").mkdir()
    with pytest.raises(HskdError, match=r"train\.csv: is a folder; expected a file"):
        load_task("custom", str(tmp_path), "text", "label")


def test_what_is_odd_and_right_is_read(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "a.csv").write_text(f"text,label,,\n{long},0,,\nnul\0 \tb,1,,\n", newline="")
    assert read_table(tmp_path / "a.csv").texts(["text"]) == [[long, "nul\0 \tb"]]
    deep: Any = 1
    for _ in range(800):
        deep = [deep]
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "a", "label": 0, "more": deep}))
    assert read_table(tmp_path / "b.jsonl").texts(["text"]) == [["a"]]
    (tmp_path / "x=1").mkdir()
    pq.write_table(pa.table({"a.b": ["t"], "a": ["u"]}), tmp_path / "x=1" / "c.parquet")
    table = read_table(tmp_path / "x=1" / "c.parquet")
    assert (table.names, table.column("a.b"), table.column("a")) == (("a.b", "a"), ["t"], ["u"])


def test_bombs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a" * (80 * 2**20)))
    with pytest.raises(HskdError, match=r"grows to more than 67,108,864 bytes"):
        read_table(tmp_path / "a.csv.gz")
    pq.write_table(pa.table({"text": pa.nulls(3_000_000)}), tmp_path / "b.parquet")
    with pytest.raises(HskdError, match=r"says that it has 3,000,000 rows in [0-9,]+ bytes"):
        read_table(tmp_path / "b.parquet")
    rows = "\n".join(json.dumps({f"k{i}": i}) for i in range(20_000))  # every row has another column
    (tmp_path / "c.jsonl").write_text(rows)
    with pytest.raises(HskdError, match=r"no column 'text'; it has \['k0', .*, and 19,980 more\]"):
        load_task("custom", str(tmp_path / "c.jsonl"), "text", "label")
