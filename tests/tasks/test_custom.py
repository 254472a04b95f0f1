from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hskd.errors import HskdError
from hskd.heads import SequenceRegression
from hskd.tasks import TaskData, load_task


def load(path: Path, text: tuple[str, ...] = ("text",), label: str = "label") -> TaskData:
    return load_task("custom", str(path), text, label)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_csv_folder(data_folder: Path) -> None:
    data = load(data_folder, ("sentence",), "mood")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 64, "dev": 16, "test": 16}
    assert data.task.label_names == ("negative", "positive")
    assert data.task.head.metric_names == ("accuracy",)
    assert data.splits["train"].labels == [0, 1] * 32


def test_formats_agree_and_none_stays_text(tmp_path: Path) -> None:
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(['a "quoted", text', "None", "NA", "null\nline"])]
    folders = {suffix: tmp_path / suffix for suffix in ("csv", "jsonl", "parquet")}
    for folder in folders.values():
        folder.mkdir()
    for split in ("train", "dev"):
        quoted = [f'"{str(row["text"]).replace(chr(34), chr(34) * 2)}",{row["label"]}' for row in rows]
        (folders["csv"] / f"{split}.csv").write_text("\n".join(["text,label", *quoted]))
        write_jsonl(folders["jsonl"] / f"{split}.jsonl", rows)
        pq.write_table(pa.Table.from_pylist(rows), folders["parquet"] / f"{split}.parquet")
    for folder in folders.values():
        data = load(folder)
        assert data.splits["train"].texts[0] == [row["text"] for row in rows]
        assert data.splits["dev"].labels == [0, 1, 2, 0]
        assert data.task.label_names == ("0", "1", "2")


def test_numbers_make_a_regression(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,score\nx,y,1\nx,z,2.5\n")
    (tmp_path / "dev.csv").write_text("a,b,score\nx,y,3\n")
    (tmp_path / "test.csv").write_text("a,b\nx,y\n")
    data = load(tmp_path, ("a", "b"), "score")
    assert data.task.head == SequenceRegression(metric_names=("pearson", "spearman"))
    assert [data.splits[name].labels for name in ("train", "dev", "test")] == [[1.0, 2.5], [3.0], None]
    assert data.splits["train"].texts == (["x", "x"], ["y", "z"])


def test_one_file_is_split_by_content(tmp_path: Path) -> None:
    rows = [f"text {i},{i % 2}" for i in range(400)]
    file = tmp_path / "all.csv"
    file.write_text("\n".join(["text,label", *rows, *rows]))
    splits = load(file).splits
    texts = {name: set(split.texts[0]) for name, split in splits.items()}
    assert sum(len(split) for split in splits.values()) == 800
    assert sum(map(len, texts.values())) == 400  # repeated texts are on the same side
    assert 0.7 < len(splits["train"]) / 800 < 0.9
    file.write_text("\n".join(["text,label", *(f"new {i},1" for i in range(9)), *reversed(rows)]))
    again = load(file).splits
    assert all(text in again[name].texts[0] for name in texts for text in texts[name])


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ("words,label\na,0\n", "text,label\na,0\n", r"train\.csv: no column 'text'; it has \['words', 'label'\]"),
        ("text,label\na,0\nb,1\n", "text,label\na,0\nb,2\n", r"dev\.csv, row 1, column 'label': '2'; expected one of"),
        ("text,label\na,0\n,1\n", "text,label\na,0\n", r"train\.csv, row 1, column 'text': None; expected a text"),
        ("text,label\na,0\nb,\n", "text,label\na,0\n", r"train\.csv, row 1, column 'label': None"),
        ("text,label\na,0\nb,1,c\n", "text,label\na,0\n", r"train\.csv, row 1 \(line 3\): 3 fields; expected 2"),
        ("text,label\n", "text,label\na,0\n", r"train\.csv: no rows"),
        ("text,label\na,x\n", "text,label\na,x\n", r"every label is 'x'; expected at least two classes"),
        ("text,label\na,0.5\nb,2\n", "text,label\na,high\n", r"dev\.csv, row 0, .*'high'; expected a number"),
    ],
)
def test_messages_name_file_row_and_column(tmp_path: Path, train: str, dev: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "dev.csv").write_text(dev)
    with pytest.raises(HskdError, match=message):
        load(tmp_path)


def test_json_labels_of_two_kinds(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": "1"}])
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(HskdError, match="labels are both texts and numbers"):
        load(tmp_path)


def test_missing_files_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(
        HskdError, match=r"no train file; expected train with .* endings \.csv, \.tsv, \.jsonl, \.json, \.parquet"
    ):
        load(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
    with pytest.raises(HskdError, match="no dev file"):
        load(tmp_path)
    (tmp_path / "odd.csv").write_text("a,b,label\nx,y,0\ny,x,1\n")
    with pytest.raises(
        HskdError, match=r"needs one or two text columns.*has \['a', 'b', 'label'\], .*which hold texts"
    ):
        load_task("custom", str(tmp_path / "odd.csv"))
    with pytest.raises(HskdError, match="needs --data"):
        load_task("custom")
    with pytest.raises(HskdError, match=r"unknown format '\.txt'"):
        (tmp_path / "a.txt").write_text("a")
        load(tmp_path / "a.txt")
