"""Files of words with tags."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import datasets
import pytest

from hskd.errors import HskdError
from hskd.tasks import TASKS, TaskData, load_task

IOB2 = "EU\tB-org\nrejects\tO\nGerman\tB-misc\n\nPeter\tB-per\nBlackburn\tI-per\n"
NAMES = ("O", "B-misc", "I-misc", "B-org", "I-org", "B-per", "I-per")


def folder(place: Path, **texts: str) -> str:
    """Make a folder with these files; ``dev`` defaults to ``train``. Underscores in names stand for the dot."""
    if not any(name.startswith("dev") for name in texts):
        texts |= {name.replace("train", "dev"): text for name, text in texts.items() if name.startswith("train")}
    for name, text in texts.items():
        (place / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return str(place)


def tags(data: TaskData, split: str = "train") -> list[list[str]]:
    names = data.task.head.label_names
    labels = data.splits[split].labels
    assert labels is not None
    return [[names[label] for label in sentence] for sentence in labels]


def refused(place: Path, match: str, **texts: str) -> None:
    with pytest.raises(HskdError, match=match):
        load_task("tagging", folder(place, **texts))


def test_two_columns(tmp_path: Path) -> None:
    data = load_task("tagging", folder(tmp_path, train_conll=IOB2, test_conll="EU\tO\n"))
    assert data.task.head.label_names == NAMES
    assert data.task.head.metric_names == ("entity_f1", "token_accuracy")
    assert data.splits["train"].texts == (["EU rejects German", "Peter Blackburn"],)
    assert tags(data) == [["B-org", "O", "B-misc"], ["B-per", "I-per"]]
    assert tags(data, "test") == [["O"]]


def test_more_columns_document_starts_and_comments(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\n# id = 1 O\n# a comment\nEU NNP B-NP B-org\n"
        "#tag NNP B-NP O\r\n\n\n# 7 X O\nof IN O O\n"
    )
    data = load_task("tagging", folder(tmp_path, train_txt=text))
    assert data.splits["train"].texts == (["EU #tag", "# of"],)
    assert tags(data) == [["B-org", "O"], ["O", "O"]]


def test_schemes(tmp_path: Path) -> None:
    bilou = load_task("tagging", folder(tmp_path, train_tsv="a\tB-x\nb\tI-x\nc\tL-x\nd\tU-y\n"))
    assert bilou.task.head.label_names == ("O", *(f"{letter}-{kind}" for kind in "xy" for letter in "BILU"))
    parts = load_task("tagging", folder(tmp_path / ".", train_tsv="dogs\tNNS\nbark\tVBP\n"))
    assert parts.task.head.label_names == ("NNS", "VBP") and parts.task.head.metric_names == ("token_accuracy",)


def test_iob1_becomes_iob2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "a\tI-x\nb\tI-x\nc\tB-x\nd\tI-y\ne\tO\nf\tI-y\n"
    data = load_task("tagging", folder(tmp_path, train_conll=text))
    assert "train.conll: its tags are in IOB1; they are turned into IOB2" in caplog.text
    assert tags(data) == [["B-x", "I-x", "B-x", "B-y", "O", "B-y"]]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\tB-x\nb\tO\n\nc\tI-x\n", r"train\.conll, line 4: I-x follows O; expected B-x .*IOB2; correct the sequence"),
        ("a\tB-x\nb\tI-y\n", r"train\.conll, line 2: I-y follows B-x; expected B-y"),
        ("a\tB-x\nb\tL-x\nc\tB-x\n", r"line 3: the sentence ends after B-x, so the entity has no end; .*\(L\)"),
        ("a\tB-x\nb\tU-x\n", r"line 1: U-x follows after B-x, so the entity has no end"),
        ("a\tU-x\nb\tL-x\n", r"line 2: L-x follows U-x; expected B-x to begin it"),
        ("a\tB-x\nb\tE-x\nc\tL-x\n", r"tags begin with B, E, L, which no scheme has together"),
        ("a\tB-x\nb\tperson\n", r"train\.conll, line 2: the tag 'person'; others mark entities, so expected O"),
        ("a\tO\nb\n", r"train\.conll, line 2: 1 columns; expected 2"),
        ("a\tO\nNew York\tB-x\n", r"line 2: the word 'New York' is empty or holds white space"),
        ("a\tO\n\tB-x\n", r"line 2: the word '' is empty or holds white space"),
        ("a\tO\nb\t \n", r"line 2: the word 'b' has no tag"),
        ("a\nb\n", r"lines have one column"),
        ("\n\n", r"no words"),
        ("a\tO\n", r"every tag is 'O'; expected at least two"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, match, train_conll=text)


def test_tags_that_train_lacks(tmp_path: Path) -> None:
    refused(
        tmp_path,
        r"dev\.conll, line 2: the tag 'B-z' is not among train's",
        train_conll=IOB2,
        dev_conll="a\tO\nb\tB-z\n",
    )


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(tmp_path: Path) -> None:
    train = lines({"tokens": ["EU", "rejects"], "ner_tags": ["B-org", "O"]})
    data = load_task("tagging", folder(tmp_path, train_jsonl=train, test_jsonl=lines({"tokens": ["it"]})))
    assert tags(data) == [["B-org", "O"]]
    assert data.splits["test"].labels is None and data.splits["test"].texts == (["it"],)


def test_numbers_with_names(tmp_path: Path) -> None:
    train = "\n" + lines({"words": ["EU", "rejects"], "tags": [1, 0]})
    refused(
        tmp_path,
        r"train\.jsonl, line 2: the tag 1 is a number without a name; put the names into labels",
        train_jsonl=train,
    )
    data = load_task("tagging", folder(tmp_path, train_jsonl=train, labels_txt="O\nB-org\nI-org\n"))
    assert data.task.head.label_names == ("O", "B-org", "I-org") and tags(data) == [["B-org", "O"]]
    refused(tmp_path, r"the tag 3; there are 3 names", train_jsonl=lines({"words": ["EU"], "tags": [3]}))
    refused(tmp_path, r"line 1: 2 tags for 1 words", train_jsonl=lines({"words": ["EU"], "tags": [0, 0]}))
    refused(tmp_path, r"no column of tags .*it has \['words'\]", train_jsonl=lines({"words": ["EU"]}))
    bad = lines({"words": ["EU", "of"], "tags": ["I-x", "O"]}, {"words": ["EU"], "tags": ["B-x"]})
    refused(tmp_path, r"train\.jsonl, line 1, word 1 \('EU'\): I-x follows O", train_jsonl=bad)


@pytest.mark.parametrize("layout", ["parquet", "parts", "saved"])
def test_data_sets_of_the_hub(tmp_path: Path, layout: str) -> None:
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-org", "I-org"])),
        }
    )
    rows = {"tokens": [["EU", "rejects"], ["it"]], "ner_tags": [[1, 0], [0]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    if layout == "saved":
        datasets.DatasetDict({"train": data, "validation": data}).save_to_disk(str(tmp_path))
    else:
        (tmp_path / "data").mkdir()
        names = "{}.parquet" if layout == "parquet" else "data/{}-00000-of-00001.parquet"
        for split in ("train", "validation"):
            data.to_parquet(str(tmp_path / names.format(split)))
    loaded = load_task("tagging", str(tmp_path))
    assert loaded.task.head.label_names == ("O", "B-org", "I-org")
    assert tags(loaded, "dev") == [["B-org", "O"], ["O"]]


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path, r"no train file; expected train with one of the endings \.conll", dev_conll=IOB2)
    folder(tmp_path, train_conll=IOB2, train_jsonl="")
    with pytest.raises(HskdError, match=r"train\.conll and train\.jsonl are both there"):
        load_task("tagging", str(tmp_path))
    with pytest.raises(HskdError, match="Task tagging needs --data"):
        load_task("tagging")
    with pytest.raises(HskdError, match="no such folder"):
        load_task("tagging", str(tmp_path / "none"))


def test_wnut17_by_the_names_of_the_shared_task(tmp_path: Path) -> None:
    assert "wnut17" in list(TASKS)
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        text = "a\tB-person\nb\tO\n" + "".join(f"c\tB-{kind}\n" for kind in ("corporation", "creative-work", "group"))
        (tmp_path / name).write_text(text + "d\tB-location\ne\tB-product\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_task("wnut17", str(tmp_path))
    assert data.task.head == TASKS["wnut17"].task.head and list(data.splits) == ["train", "dev", "test"]
