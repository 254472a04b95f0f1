from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from hskd.errors import HskdError
from hskd.heads import SequenceRegression
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


def test_test_files_may_be_left_out(tmp_path: Path) -> None:
    folder = write_sst2(tmp_path / "tsv", "fine\t1\n")
    (folder / "test.tsv").unlink()
    assert list(load_task("sst2", str(folder)).splits) == ["train", "dev"]
    copy = write_hub_copy(tmp_path / "a[b]c", ["unacceptable", "acceptable"], [0, 1])
    next(copy.glob("cola/test-*")).unlink()
    assert list(load_task("cola", str(copy)).splits) == ["train", "dev"]


def test_numbers_of_stsb_are_ascii_and_finite(tmp_path: Path) -> None:
    for label in ("nan", "inf", "٣", "1_0", "1e39"):
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t{label}\n")
        with pytest.raises(HskdError, match=r"train\.tsv, line 2, column 'score': .*; expected a number"):
            load_task("stsb", str(tmp_path))


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


def test_copies_of_the_hub_of_pairs(tmp_path: Path) -> None:
    names = ["entailment", "neutral", "contradiction"]
    for config, columns, label, splits in (
        ("mnli", ("premise", "hypothesis"), datasets.ClassLabel(names=names), ("_matched", "_mismatched")),
        ("stsb", ("sentence1", "sentence2"), datasets.Value("float32"), ("",)),
    ):
        features = datasets.Features({**{column: datasets.Value("string") for column in columns}, "label": label})
        (tmp_path / config).mkdir()
        for split in ("train", *(part + kind for part in ("validation", "test") for kind in splits)):
            rows = {columns[0]: ["a"], columns[1]: ["b"], "label": [-1 if split.startswith("test") else 2]}
            file = tmp_path / config / f"{split}-00000-of-00001.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    mnli = load_task("mnli", str(tmp_path)).splits
    assert {name: split.labels for name, split in mnli.items()} == {
        "train": [2],
        "dev": [2],
        "dev_mismatched": [2],
        "test": None,
        "test_mismatched": None,
    }
    stsb = load_task("stsb", str(tmp_path)).splits
    assert (stsb["train"].labels, stsb["test"].labels) == ([2.0], None)


def test_without_hub_the_message_says_data(tmp_path: Path) -> None:
    code = "from hskd.tasks import load_task; load_task('cola')"
    # An empty hub cache, so that downloads on this machine have no influence.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "hskd.errors.HskdError" in run.stderr
    assert "Pass --data FOLDER" in run.stderr


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.tsv").write_bytes(text.encode())
    return folder


def test_mrpc(tmp_path: Path) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    write(
        tmp_path / "MRPC",
        train=f'\ufeff{header}\r\n1\t7028\t7029\tAmrozi accused "the witness\tHe called him that\r\n0\t1\t2\ta\tb\r\n',
        dev=f"{header}\n0\t3\t4\tc\td\n",
        test="index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\te\tf\n",
    )
    data = load_task("mrpc", str(tmp_path))
    assert data.splits["train"].texts == (['Amrozi accused "the witness', "a"], ["He called him that", "b"])
    assert data.splits["train"].labels == [1, 0]
    assert data.splits["test"].labels is None and data.splits["test"].texts == (["e"], ["f"])
    assert (data.task.head.metric_names, data.task.hsk_epochs, data.task.max_length) == (("accuracy", "f1"), 20, 128)


STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"


def test_stsb(tmp_path: Path) -> None:
    start = "main-captions\tMSRvid\t2012test\t0001\tnone\tnone"
    folder = write(
        tmp_path / "STS-B",
        train=f"{STSB}\tscore\n0\t{start}\ta plane\tan air plane\t5.000\n1\t{start}\ta\tb\t3.8\n",
        dev=f"{STSB}\tscore\n0\t{start}\tc\td\t0\n",
        test=f"{STSB}\n0\t{start}\te\tf\n",
    )
    data = load_task("stsb", str(folder))
    assert data.task.head == SequenceRegression(metric_names=("pearson", "spearman"))
    assert data.splits["train"].labels == [5.0, 3.8]
    assert data.splits["test"].labels is None
    (folder / "dev.tsv").write_text(f"{STSB}\tscore\n0\t{start}\tc\td\tsimilar\n")
    with pytest.raises(HskdError, match=r"dev\.tsv, line 2, column 'score': 'similar'; expected a number"):
        load_task("stsb", str(folder))


def test_qqp_leaves_short_rows_out_and_counts_them(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    folder = write(
        tmp_path / "QQP",
        train=f"{header}\n133273\t1\t2\tHow?\tIn what way?\t1\n7\tqid\n402555\t3\t4\tWho?\tWhen?\t0\n",
        dev=f"{header}\n1\t1\t2\ta\tb\t0\n",
        test="id\tquestion1\tquestion2\n0\tc\td\n",
    )
    with pytest.warns(UserWarning, match=r"train\.tsv: 1 of 3 rows lack fields \(the first: line 3\); left out"):
        data = load_task("qqp", str(folder))
    assert data.splits["train"].texts == (["How?", "Who?"], ["In what way?", "When?"])
    assert data.splits["train"].labels == [1, 0]
    (folder / "dev.tsv").write_text(f"{header}\n1\t1\t2\ta\tb\t0\tmore\n")
    with pytest.warns(UserWarning), pytest.raises(HskdError, match=r"dev\.tsv, line 2: 7 fields; expected 6"):
        load_task("qqp", str(folder))
    (folder / "dev.tsv").write_text(f"{header}\nbroken\n")
    with pytest.warns(UserWarning), pytest.raises(HskdError, match=r"dev\.tsv: no row has 6 fields"):
        load_task("qqp", str(folder))


MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
)


def test_mnli_has_two_dev_and_two_test_sets(tmp_path: Path) -> None:
    start = "0\t1\t1n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)"
    five = "\t".join(f"label{i}" for i in range(1, 6))
    write(
        tmp_path / "MNLI",
        train=f"{MNLI}\tsentence1\tsentence2\tlabel1\tgold_label\n{start}\tp\th\tneutral\tneutral\n",
        dev_matched=f"{MNLI}\tsentence1\tsentence2\t{five}\tgold_label\n{start}\tq\ti\tx\tx\tx\tx\tx\tentailment\n",
        dev_mismatched=f"{MNLI}\tsentence1\tsentence2\t{five}\tgold_label\n{start}\tr\tj\tx\tx\tx\tx\tx\tcontradiction\n",
        test_matched=f"{MNLI}\tsentence1\tsentence2\n{start}\ts\tk\n",
        test_mismatched=f"{MNLI}\tsentence1\tsentence2\n{start}\tt\tl\n",
    )
    data = load_task("mnli", str(tmp_path))
    assert list(data.splits) == ["train", "dev", "dev_mismatched", "test", "test_mismatched"]
    assert {name: split.texts for name, split in data.splits.items()} == {
        "train": (["p"], ["h"]),
        "dev": (["q"], ["i"]),
        "dev_mismatched": (["r"], ["j"]),
        "test": (["s"], ["k"]),
        "test_mismatched": (["t"], ["l"]),
    }
    assert [split.labels for split in data.splits.values()] == [[1], [0], [2], None, None]


def test_qnli(tmp_path: Path) -> None:
    header = "index\tquestion\tsentence"
    folder = write(
        tmp_path / "QNLI",
        train=f"{header}\tlabel\n0\tWhen?\tIn 1990.\tentailment\n1\tWho?\tIn 1990.\tnot_entailment\n",
        dev=f"{header}\tlabel\n0\ta\tb\tnot_entailment\n",
        test=f"{header}\n0\tc\td\n",
    )
    data = load_task("qnli", str(tmp_path))
    assert data.splits["train"].labels == [0, 1]
    assert data.splits["train"].texts[0] == ["When?", "Who?"]
    (folder / "test.tsv").write_text("index\tsentence\n0\tc\n")
    with pytest.raises(HskdError, match=r"test\.tsv, line 1: no column 'question'"):
        load_task("qnli", str(folder))
    (folder / "test.tsv").write_text(f"{header}\n0\tc\n")
    with pytest.raises(HskdError, match=r"test\.tsv, line 2: 2 fields; expected 3"):
        load_task("qnli", str(folder))
