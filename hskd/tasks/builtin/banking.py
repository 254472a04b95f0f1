"""``banking77``: 77 intents of a bank's customers."""

from __future__ import annotations

from hskd.errors import HskdError
from hskd.heads import SequenceClassification
from hskd.tasks.custom import load_custom
from hskd.tasks.registry import TASKS
from hskd.tasks.task import Task, TaskData

BANKING77 = Task(
    name="banking77",
    text_columns=("text",),
    label_column="category",
    head=SequenceClassification(),
    hsk_epochs=10,
    max_length=64,
)
INTENTS = 77


@TASKS.register(BANKING77)
def load_banking77(data: str | None = None) -> TaskData:
    """BANKING77 (Casanueva et al. 2020): 10,003 and 3,080 questions of customers.

    ``data`` is a folder with ``train.csv`` and ``test.csv`` of the columns ``text`` and ``category``. About a tenth of
    ``train`` is dev (see :func:`~hskd.tasks.source.splits_of`).

    Raises:
        HskdError: the files are missing, or have other intents.
    """
    loaded = load_custom(data, BANKING77.text_columns, BANKING77.label_column, task=BANKING77)
    if len(loaded.task.label_names) != INTENTS:
        raise HskdError(f"{data}: {len(loaded.task.label_names)} intents; banking77 has {INTENTS}.")
    return loaded
