from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from hskd.errors import HskdError
from hskd.tasks import load_task


@pytest.mark.parametrize(
    ("name", "folder", "train", "dev", "test"),
    [("cola", "CoLA", 8551, 1043, 1063), ("rte", "RTE", 2490, 277, 3000), ("sst2", "SST-2", 67349, 872, 1821)],
)
def test_official_files(glue: Path, name: str, folder: str, train: int, dev: int, test: int) -> None:
    data = load_task(name, str(glue / folder))
    assert [len(data.splits[split]) for split in ("train", "dev", "test")] == [train, dev, test]
    assert data.splits["test"].labels is None
    for split in data.splits.values():
        assert len(split.texts) == len(data.task.text_columns)
        assert len(np.unique(split.ids)) == len(split)
    assert set(data.splits["train"].labels or []) == {0, 1}


def test_first_rows_of_official_files(glue: Path) -> None:
    cola = load_task("cola", str(glue)).splits
    assert cola["dev"].texts[0][0] == "The sailors rode the breeze clear of the rocks."
    assert cola["test"].texts[0][0] == "Bill whistled past the house."
    rte = load_task("rte", str(glue))
    assert rte.splits["train"].texts[1][0] == "Weapons of Mass Destruction Found in Iraq."
    assert rte.splits["train"].labels is not None
    assert rte.task.label_names[rte.splits["train"].labels[0]] == "not_entailment"


def write_sst2(folder: Path, train: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "train.tsv").write_bytes(("sentence\tlabel\n" + train).encode())
    (folder / "dev.tsv").write_bytes(b"sentence\tlabel\nfine\t1\n")
    (folder / "test.tsv").write_bytes(b"index\tsentence\n0\tNA\n")
    return folder


def test_quotes_and_none_stay_text(tmp_path: Path) -> None:
    folder = write_sst2(tmp_path, 'a "half quote\t1\n"\t0\nNone\t1\nnull\t0\nline\x85break\u2028here\t1\r\n')
    splits = load_task("sst2", str(folder)).splits
    assert splits["train"].texts[0] == ['a "half quote', '"', "None", "null", "line\x85break\u2028here"]
    assert splits["train"].labels == [1, 0, 1, 0, 1]
    assert splits["test"].texts[0] == ["NA"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("fine\t1\nno label\n", r"train\.tsv, line 3: 1 fields; expected 2"),
        ("fine\t1\nbad\tpositive\n", r"train\.tsv, line 3, column 'label': 'positive'; expected one of \['0', '1'\]"),
        ("", r"train\.tsv: no rows"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(HskdError, match=message):
        load_task("sst2", str(write_sst2(tmp_path, train)))


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"Expected train\.tsv, or SST-2/train\.tsv"):
        load_task("sst2", str(tmp_path))
    (write_sst2(tmp_path, "fine\t1\n") / "dev.tsv").unlink()
    with pytest.raises(HskdError, match=r"dev\.tsv: no such file"):
        load_task("sst2", str(tmp_path))
    with pytest.raises(HskdError, match="no column 'sentence1'; it has"):
        load_task("rte", str(tmp_path))


def write_hub_copy(folder: Path, names: list[str], train_labels: list[int]) -> Path:
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )
    rows = {"train": train_labels, "validation": [1, 0], "test": [-1, -1]}
    for split, labels in rows.items():
        table = {
            "sentence": [f"{split} {i}" for i in range(len(labels))],
            "label": labels,
            "idx": [*range(len(labels))],
        }
        file = folder / "cola" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(exist_ok=True, parents=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(file)
    return folder


def test_copy_of_the_hub(tmp_path: Path) -> None:
    splits = load_task("cola", str(write_hub_copy(tmp_path, ["unacceptable", "acceptable"], [0, 1, 1]))).splits
    assert list(splits) == ["train", "dev", "test"]
    assert splits["train"].labels == [0, 1, 1]
    assert splits["dev"].texts == (["validation 0", "validation 1"],)
    assert splits["test"].labels is None


def test_copy_of_the_hub_with_other_labels(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"labels are \['acceptable', 'unacceptable'\]; expected"):
        load_task("cola", str(write_hub_copy(tmp_path / "a", ["acceptable", "unacceptable"], [0, 1])))
    with pytest.raises(HskdError, match=r"train, row 1, column 'label': -1; expected 0 to 1"):
        load_task("cola", str(write_hub_copy(tmp_path / "b", ["unacceptable", "acceptable"], [0, -1])))


def test_without_hub_the_message_says_data(tmp_path: Path) -> None:
    code = "from hskd.tasks import load_task; load_task('cola')"
    # An empty hub cache of its own: what this machine may have downloaded does not count.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "hskd.errors.HskdError" in run.stderr
    assert "Pass --data FOLDER" in run.stderr
