"""``banking77``: questions of a bank's customers, with 77 intents."""

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
    """Load BANKING77 (Casanueva et al. 2020): 10,003 training and 3,080 test questions of bank customers.

    ``data`` is a folder with ``train.csv`` and ``test.csv``, which have the columns ``text`` and ``category``. About a
    tenth of ``train`` becomes dev (see :func:`~hskd.tasks.source.splits_of`).

    Raises:
        HskdError: a file is missing, or the number of intents is not 77.
    """
    loaded = load_custom(data, BANKING77.text_columns, BANKING77.label_column, task=BANKING77)
    if len(loaded.task.label_names) != INTENTS:
        raise HskdError(f"{data}: {len(loaded.task.label_names)} intents; banking77 has {INTENTS}.")
    return loaded
