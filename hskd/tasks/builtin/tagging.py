"""``tagging``: your own words with tags; ``wnut17``: emerging entities in tweets."""

from __future__ import annotations

from hskd.heads import TokenClassification
from hskd.tasks.registry import TASKS
from hskd.tasks.tagged import load_tagged
from hskd.tasks.task import Task, TaskData

TAGGING = Task(
    name="tagging",
    text_columns=("text",),
    label_column="tags",
    head=TokenClassification(),
    hsk_epochs=10,
    max_length=128,
)
WNUT_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
WNUT17 = Task(
    name="wnut17",
    text_columns=("text",),
    label_column="tags",
    head=TokenClassification(("O", *(f"{letter}-{kind}" for kind in WNUT_TYPES for letter in "BI"))),
    hsk_epochs=10,
    max_length=128,
)
WNUT_FILES = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
"""The files of the shared task, https://github.com/leondz/emerging_entities_17."""


@TASKS.register(TAGGING)
def load_tagging(data: str | None = None) -> TaskData:
    """Load a folder of words with tags (see :func:`~hskd.tasks.tagged.load_tagged`)."""
    return load_tagged(TAGGING, data)


@TASKS.register(WNUT17)
def load_wnut17(data: str | None = None) -> TaskData:
    """Load WNUT-17 (Derczynski et al. 2017): tweets with six types of entities; 3,394 train, 1,009 dev and 1,287 test.

    ``data`` is a folder with the files of the shared task, under their own names or as ``train.conll``, ``dev.conll``
    and ``test.conll``.
    """
    return load_tagged(WNUT17, data, WNUT_FILES)
