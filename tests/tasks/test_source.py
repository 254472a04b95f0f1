"""Own data in any place: folders in the hub's layout, saved data sets, URLs, and the hub itself."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest

from hskd.errors import HskdError
from hskd.tasks import load_task
from hskd.tasks.source import DataPlace

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["low", "high"]),
        "id": datasets.Value("int32"),
    }
)


def part(count: int, start: int = 0) -> datasets.Dataset:
    rows = [{"text": f"text {i}", "label": i % 2, "id": i} for i in range(start, start + count)]
    return datasets.Dataset.from_list(rows, FEATURES)


def write_hub_folder(folder: Path, dev: str | None = "validation") -> None:
    """Write Parquet parts in the hub's layout: train in two, and perhaps a part for dev."""
    (folder / "data").mkdir(parents=True)
    for index in range(2):
        part(60, 60 * index).to_parquet(folder / "data" / f"train-0000{index}-of-00002.parquet")
    if dev is not None:
        part(20, 200).to_parquet(folder / "data" / f"{dev}-00000-of-00001.parquet")
    part(10, 300).to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def test_a_folder_laid_out_as_on_the_hub(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_hub_folder(tmp_path / "d")
    with caplog.at_level(logging.INFO, "hskd"):
        data = load_task("custom", str(tmp_path / "d"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 120, "dev": 20, "test": 10}
    assert data.splits["train"].texts[0][58:62] == ["text 58", "text 59", "text 60", "text 61"]
    assert data.task.label_names == ("low", "high") and data.splits["dev"].labels == [0, 1] * 10
    assert (data.task.text_columns, data.task.label_column) == (("text",), "label")
    assert "texts are in ['text'] and labels in ['label'] of" in caplog.text
    (tmp_path / "d" / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(HskdError, match="d: 1 of the 2 parts of train are there"):
        load_task("custom", str(tmp_path / "d"))


def test_parts_of_other_names(tmp_path: Path) -> None:
    write_hub_folder(tmp_path / "d", "validation_matched")
    data = load_task("custom", f"{tmp_path / 'd'}?dev=validation_matched")
    assert data.splits["dev"].texts[0][0] == "text 200"
    with pytest.raises(HskdError, match=r"after the question mark, expected names of splits"):
        load_task("custom", f"{tmp_path / 'd'}?eval=validation_matched")


def test_dev_is_cut_out_of_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_hub_folder(tmp_path / "d", None)
    with caplog.at_level(logging.INFO, "hskd"):
        splits = load_task("custom", str(tmp_path / "d")).splits
    assert len(splits["test"]) == 10 and len(splits["train"]) + len(splits["dev"]) == 120
    assert 0 < len(splits["dev"]) < 30 and not set(splits["train"].texts[0]) & set(splits["dev"].texts[0])
    assert f"has no dev part; {len(splits['dev'])} examples of train are dev" in caplog.text


def test_names_of_classes_beside_the_files(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        rows = [json.dumps({"text": f"{name} {i}", "label": i % 2}) for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert load_task("custom", str(tmp_path)).task.label_names == ("0", "1")
    infos = {"default": {"features": {"label": {"names": ["low", "high"], "_type": "ClassLabel"}}}}
    (tmp_path / "dataset_infos.json").write_text(json.dumps(infos), encoding="utf-8")
    assert load_task("custom", str(tmp_path)).task.label_names == ("low", "high")
    infos["other"] = infos["default"]  # now it is ambiguous
    (tmp_path / "dataset_infos.json").write_text(json.dumps(infos), encoding="utf-8")
    assert load_task("custom", str(tmp_path)).task.label_names == ("0", "1")


def test_a_saved_data_set(tmp_path: Path) -> None:
    whole = datasets.DatasetDict({"train": part(30), "validation": part(10, 100), "test": part(5, 200)})
    whole.save_to_disk(tmp_path / "saved")
    data = load_task("custom", str(tmp_path / "saved"))
    assert data.task.label_names == ("low", "high") and len(data.splits["dev"]) == 10
    datasets.DatasetDict({"rows": part(200)}).save_to_disk(tmp_path / "one")
    assert sum(map(len, load_task("custom", str(tmp_path / "one")).splits.values())) == 200
    datasets.DatasetDict({"a": part(3), "b": part(3)}).save_to_disk(tmp_path / "two")
    with pytest.raises(HskdError, match=r"no part for train; it has \['a', 'b'\]. Say which: .*\?train=NAME"):
        load_task("custom", str(tmp_path / "two"))


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HskdError, match=r"nobody/none:small: no such file or folder; .*HF_HUB_OFFLINE is set"):
        load_task("custom", "nobody/none:small")
    with pytest.raises(HskdError, match=r"nobody: no such file or folder; .*HF_HUB_OFFLINE is set"):
        load_task("tagging", "nobody")
    # Data that the library returns for a name and a configuration are read like any other.
    asked: list[Any] = []

    def load(name: str, config: str | None) -> datasets.DatasetDict:
        asked.append((name, config))
        return datasets.DatasetDict({"train": part(30), "heldout": part(10, 100)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = load_task("custom", "owner/name:small?dev=heldout").splits
    assert asked == [("owner/name", "small")] and len(splits["dev"]) == 10 and "test" not in splits
    assert splits["dev"].where(3) == "owner/name/heldout, row 3"
    embedding = load_task("embedding", "owner/name?dev=heldout")
    assert len(embedding.splits["dev"]) == 10 and embedding.task.head.metric_names == ("agreement",)


def test_what_a_place_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DataPlace.of("owner/name").is_on_hub and DataPlace.of("imdb").is_on_hub
    for place in (str(tmp_path / "none"), "./none", "a/b/c", "~/none"):
        assert not DataPlace.of(place).is_on_hub
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").touch()
    assert not DataPlace.of("owner/name").is_on_hub, "what is here comes first"


@pytest.mark.parametrize("one_file", [True, False])
def test_a_url(tmp_path: Path, one_file: bool) -> None:
    name = uuid.uuid4().hex
    system, work = fsspec.filesystem("memory"), tmp_path / "work"
    rows = "".join(f"text {i},{i % 2}\n" for i in range(200))
    for split in ("train", "dev"):
        system.pipe_file(f"/{name}/d/{split}.csv", f"text,label\n{rows}".encode())
    url = f"memory://{name}/d" + ("/train.csv" if one_file else "")
    data = load_task("custom", url, work=work)
    assert sum(map(len, data.splits.values())) == (200 if one_file else 400)
    assert len(list((work / "remote").iterdir())) >= 1
    system.pipe_file(f"/{name}/d/train.csv", f"text,label\n{rows}one more,1\n".encode())
    again = load_task("custom", url, work=work)
    assert sum(map(len, again.splits.values())) == (201 if one_file else 401), "another copy where it changed"
    with pytest.raises(HskdError, match=r"no such file|no files lie there"):
        load_task("custom", f"memory://{name}/none" + ("/train.csv" if one_file else ""), work=work)
    system.rm(f"/{name}", recursive=True)


def write_csv(folder: Path, header: str, rows: list[str]) -> str:
    for split in ("train", "dev"):
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("text,label", ("text",), "label"),
        ("sentence,category", ("sentence",), "category"),
        ("question,sentence,label", ("question", "sentence"), "label"),
        ("premise,hypothesis,label", ("premise", "hypothesis"), "label"),
        ("utterance,intent", ("utterance",), "intent"),  # the only other column
    ],
)
def test_columns_that_can_only_be_meant(tmp_path: Path, header: str, texts: tuple[str, ...], label: str) -> None:
    width = header.count(",")
    rows = [",".join(["a b"] * width + [mood]) for mood in ("good", "bad")]
    task = load_task("custom", write_csv(tmp_path, header, rows)).task
    assert (task.text_columns, task.label_column) == (texts, label)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,sentence,label", r"has \['text', 'sentence', 'label'\], .*which hold texts"),
        ("text,label,category", r"has \['text', 'label', 'category'\], .*which holds labels"),
        ("a,b,c", r"has \['a', 'b', 'c'\], .*which holds labels"),
    ],
)
def test_columns_that_are_asked_for(tmp_path: Path, header: str, message: str) -> None:
    place = write_csv(tmp_path, header, ["x,y,0", "y,x,1"])
    with pytest.raises(HskdError, match=message):
        load_task("custom", place)
    first, _, last = header.split(",")
    assert load_task("custom", place, first, last).task.text_columns == (first,)


def test_banking77() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "banking77"
    if not folder.is_dir():
        pytest.skip("no BANKING77 on this machine")
    data = load_task("banking77", str(folder))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8983, "dev": 1020, "test": 3080}
    assert len(data.task.label_names) == 77 and data.task.name == "banking77"


def test_banking77_has_77_intents(tmp_path: Path) -> None:
    rows = [f"text {i},{i % 3}" for i in range(60)]
    with pytest.raises(HskdError, match="3 intents; banking77 has 77"):
        load_task("banking77", write_csv(tmp_path, "text,category", rows))
