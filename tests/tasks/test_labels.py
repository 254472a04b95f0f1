"""Labels mean what the file says: right values for every kind of column, and clear messages."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hskd.errors import HskdError
from hskd.grid.spec import load_grid
from hskd.tasks import TaskData, load_task
from hskd.trials.config import TaskPlan

Labels = list[Any]


def csv_task(folder: Path, train: Labels, dev: Labels, label_type: Any = None) -> TaskData:
    for split, labels in (("train", train), ("dev", dev)):
        rows = "".join(f"{split} {i},{label}\n" for i, label in enumerate(labels))
        (folder / f"{split}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    return load_task("custom", str(folder), "text", "label", label_type=label_type)


def json_task(folder: Path, train: Labels, dev: Labels, label_type: Any = None) -> TaskData:
    for split, labels in (("train", train), ("dev", dev)):
        rows = [json.dumps({"text": f"{split} {i}", "label": label}) for i, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return load_task("custom", str(folder), "text", "label", label_type=label_type)


def found(data: TaskData) -> tuple[str, tuple[str, ...], Labels, Labels]:
    train, dev = data.splits["train"].labels, data.splits["dev"].labels
    assert train is not None and dev is not None
    return data.task.head.kind, data.task.label_names, train, dev


@pytest.mark.parametrize(
    ("train", "dev", "label_type", "kind", "names", "indices"),
    [
        (["10", "2", "2"], ["10"], None, "classification", ("2", "10"), ([1, 0, 0], [1])),
        (["007", "7", "8"], ["7"], None, "classification", ("007", "7", "8"), ([0, 1, 2], [1])),
        (["٣", "٤"], ["٤"], None, "classification", ("٣", "٤"), ([0, 1], [1])),
        (["0.0", "1.0", "0.0"], ["1.0"], None, "classification", ("0.0", "1.0"), ([0, 1, 0], [1])),
        (["0.0", "0.5"], ["1"], None, "regression", (), ([0.0, 0.5], [1.0])),
        (["0.0", "1.0", "2.0"], ["1.0"], None, "regression", (), ([0.0, 1.0, 2.0], [1.0])),
        (["0.0", "1.0"], ["0.5"], "regression", "regression", (), ([0.0, 1.0], [0.5])),
        (["1", "2", "3"], ["4"], "regression", "regression", (), ([1.0, 2.0, 3.0], [4.0])),
        (["1.5", "0.5"], ["1.5"], "classification", "classification", ("0.5", "1.5"), ([1, 0], [1])),
        (["1", "2", "3+"], ["3+"], "classification", "classification", ("1", "2", "3+"), ([0, 1, 2], [2])),
        (["N/A", "none", "pos"], ["none"], None, "classification", ("N/A", "none", "pos"), ([0, 1, 2], [1])),
        (["1_0", "2_0"], ["2_0"], None, "classification", ("1_0", "2_0"), ([0, 1], [1])),
    ],
)
def test_labels_of_a_csv_file(
    tmp_path: Path, train: Labels, dev: Labels, label_type: Any, kind: str, names: tuple[str, ...], indices: Any
) -> None:
    assert found(csv_task(tmp_path, train, dev, label_type)) == (kind, names, *indices)


@pytest.mark.parametrize(
    ("train", "dev", "label_type", "kind", "names", "indices"),
    [
        ([1, 0], [1], None, "classification", ("0", "1"), ([1, 0], [1])),
        ([0.0, 1.0], [1.0], None, "classification", ("0.0", "1.0"), ([0, 1], [1])),
        ([0, 1, 2.5], [2], None, "regression", (), ([0.0, 1.0, 2.5], [2.0])),
        (["1", "007"], ["1"], None, "classification", ("007", "1"), ([1, 0], [1])),
        (["1", "two"], ["two"], None, "classification", ("1", "two"), ([0, 1], [1])),
        (["1.5", "2"], ["3"], "regression", "regression", (), ([1.5, 2.0], [3.0])),
        ([True, False], [True], None, "classification", ("False", "True"), ([1, 0], [1])),
    ],
)
def test_labels_of_a_json_file(
    tmp_path: Path, train: Labels, dev: Labels, label_type: Any, kind: str, names: tuple[str, ...], indices: Any
) -> None:
    assert found(json_task(tmp_path, train, dev, label_type)) == (kind, names, *indices)


@pytest.mark.parametrize(
    ("train", "dev", "label_type", "said"),
    [
        (["1", "2", "nan"], ["1"], None, r"train\.csv, row 2, .*'nan'; expected a number, as in other rows"),
        (["1", "N/A", "2"], ["1"], "classification", r"train\.csv, row 1, .*'N/A'; expected a number"),
        (["0.5", "NaN", "2"], ["1"], "regression", r"train\.csv, row 1, .*'NaN'; expected a number"),
        (["1", "2", "two"], ["1"], None, r"row 2, .*'two'; labels are both texts and .* give --label-type .*class"),
        (["a", "b", "7"], ["a"], None, r"row 2, .*'7'; labels are both texts and numbers"),
        (["1", "2", ""], ["1"], None, r"train\.csv, row 2, .*None; expected a text or a number"),
        (["1", "٣"], ["1"], None, r"train\.csv, row 1, .*'٣'; labels are both"),
        (
            ["0", "0.0", "1"],
            ["1"],
            None,
            r"train\.csv, row 1, .*'0\.0'; expected 0, as another row has the same number",
        ),
        (["007", "8"], ["7"], None, r"dev\.csv, row 0, .*'7'; expected one of train's labels, \['007', '8'\]"),
        (["1.5", "1e39"], ["1"], None, r"train\.csv, row 1, .*'1e39'; expected a number that float32 holds"),
        (["9" * 5000, "1"], ["1"], None, r"train\.csv, row 0, .*; expected a label of at most 4000 digits"),
        (["a", "b"], ["a"], "regression", r"train\.csv, row 0, .*'a'; expected a number\."),
        (["a", "b"], ["a"], "ranking", r"label type 'ranking': expected classification or regression"),
    ],
)
def test_what_is_refused_names_file_and_row(
    tmp_path: Path, train: Labels, dev: Labels, label_type: Any, said: str
) -> None:
    with pytest.raises(HskdError, match=said):
        csv_task(tmp_path, train, dev, label_type)


def test_json_refusals_name_the_row(tmp_path: Path) -> None:
    for labels, said in (
        ([0, "1"], r"train\.jsonl, row 1, .*labels are both texts and numbers"),
        ([0, None], r"train\.jsonl, row 1, column 'label': None"),
        (["a", "b\ud800"], r"train\.jsonl, row 1, column 'label': 'b\\ud800'; expected Unicode text"),
        ([0.5, float("nan")], r"train\.jsonl, row 1, column 'label': nan"),
        (["0", "nan"], r"train\.jsonl, row 1, .*'nan'; expected a number"),
        ([1, 10**400], r"train\.jsonl, row 1"),
    ):
        with pytest.raises(HskdError, match=said):
            json_task(tmp_path, labels, [1], "regression" if 10**400 in labels else None)


def class_labels(folder: Path, names: list[str], **splits: Labels) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    for split, labels in splits.items():
        rows = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_class_names_of_datasets_are_used(tmp_path: Path) -> None:
    folder = class_labels(tmp_path, ["neutral", "happy", "sad"], train=[2, 1, 2], dev=[1], test=[-1, -1])
    data = load_task("custom", str(folder), "text", "label")
    assert found(data) == ("classification", ("neutral", "happy", "sad"), [2, 1, 2], [1])
    assert data.splits["test"].labels is None
    (folder / "dev.parquet").unlink()
    (folder / "dev.csv").write_text("text,label\nx,sad\n")
    assert load_task("custom", str(folder), "text", "label").splits["dev"].labels == [2]
    (tmp_path / "more").mkdir()
    file = class_labels(tmp_path / "more", ["a", "b"], one=[0, 1] * 40) / "one.parquet"
    numbers = load_task("custom", str(file), "text", "label", label_type="regression")
    assert numbers.task.head.fits_numbers
    class_labels(tmp_path, ["neutral", "happy"], train=[1, -1])
    with pytest.raises(HskdError, match=r"train\.parquet, row 1, column 'label': -1; expected 0 to 1"):
        load_task("custom", str(folder), "text", "label")


def test_pandas_columns_with_gaps(tmp_path: Path) -> None:
    """pandas turns whole numbers with gaps into floats. Two such values are still classes."""
    for split in ("train", "dev"):
        pq.write_table(pa.table({"text": ["a", "b"], "label": np.array([0.0, 1.0])}), tmp_path / f"{split}.parquet")
    data = load_task("custom", str(tmp_path), "text", "label")
    assert found(data) == ("classification", ("0.0", "1.0"), [0, 1], [0, 1])


def test_the_kind_and_its_cause_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hskd")

    def said(train: Labels, label_type: Any = None) -> str:
        caplog.clear()
        csv_task(tmp_path, train, train[:1], label_type)
        return str(caplog.messages[0])

    assert said(["neg", "neu", "pos"]) == (
        "task custom: classification, 3 classes: neg, neu, pos (column 'label' of train.csv has texts)"
    )
    assert said(["0.0", "4.9", "4.9"]) == (
        "task custom: regression, 0.0 to 4.9, 3 values, 2 of them different (column 'label' of train.csv has numbers "
        "with a point; --label-type (label_type) decides otherwise)"
    )
    assert "classification, 2 classes: 0.0, 1.0 (column 'label' of train.csv has two whole numbers" in said(
        ["0.0", "1.0"]
    )
    assert said(["1", "2"], "regression").endswith(
        "regression, 1.0 to 2.0, 2 values, 2 of them different (as --label-type says)"
    )
    assert "30 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more" in said(list(map(str, range(30))))
    assert "classes: ' b', a" in said([" b", "a"])


def test_rows_that_dev_and_test_share_with_train_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\na,1\n")
    (tmp_path / "dev.csv").write_text("text,label\na,0\nA,1\na,1\n")
    (tmp_path / "test.csv").write_text("text\nb\nc\n")
    with caplog.at_level(logging.WARNING, "hskd"):
        load_task("custom", str(tmp_path), "text", "label")
    assert caplog.messages == [
        "task custom: 2 of 3 rows of dev and 1 of 2 rows of test have the texts of rows of train"
    ]


def test_a_grid_says_the_label_type(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    task = "task: {name: custom, data: d, text_columns: text, label_column: label, label_type: LABELS}"
    file.write_text(f"name: g\n{task.replace('LABELS', 'regression')}\n")
    plan = load_grid(str(file)).task
    assert (plan.label_type, plan.text_columns) == ("regression", ("text",))
    file.write_text(f"name: g\n{task.replace('LABELS', 'ranking')}\n")
    with pytest.raises(
        HskdError, match=r"g\.yaml, line 2: task\.label_type: Input should be 'classification', 'regression' or"
    ):
        load_grid(str(file))
    assert "label_type" not in TaskPlan().model_dump(), "the names of recorded trials stay as they are"
    with pytest.raises(HskdError, match="only custom a label type"):
        load_task("mr", label_type="regression")
