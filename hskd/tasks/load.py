"""Load the examples of any task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hskd.errors import HskdError
from hskd.io import with_home
from hskd.remote import is_url
from hskd.remote.copies import WORK, fetch_data
from hskd.tasks.augment import with_augmented
from hskd.tasks.choices import LabelType
from hskd.tasks.custom import load_custom
from hskd.tasks.labels import describe_imbalance, describe_labels
from hskd.tasks.registry import CUSTOM, TASKS
from hskd.tasks.task import TaskData

_log = logging.getLogger(__name__)


def load_task(
    name: str,
    data: str | None = None,
    text_columns: Sequence[str] | str | None = None,
    label_column: str | None = None,
    augment: str | None = None,
    label_type: LabelType | None = None,
    work: Path = WORK,
) -> TaskData:
    """Load a task's examples.

    The log says which kind of task it is, whether its classes are uneven and, as a warning, how many rows of dev and
    test also occur in train.

    Args:
        name: one of :data:`TASKS`.
        data: a file or folder, a URL of one, or the name of a data set on the hub; None takes the task's default place
            (a package, the hub).
        text_columns: one name or two, for ``custom`` and ``reranking`` only.
        label_column: for ``custom`` and ``reranking`` only.
        augment: a file of further sentences (see :func:`~hskd.tasks.augment.with_augmented`).
        label_type: ``classification``, ``regression`` or ``multilabel``, for ``custom`` only [default: inferred from
            the labels].
        work: the work folder, where data from URLs is cached.

    Raises:
        HskdError: the task is unknown, it does not take one of the arguments, or data is missing or malformed.
    """
    if data is not None:
        data = str(fetch_data(data, work)) if is_url(data) else with_home(data)
    loaded = _load(name, data, text_columns, label_column, label_type)
    head, train = loaded.task.head, loaded.splits.get("train")
    _log.info("task %s: %s", name, describe_labels(head, None if train is None else train.labels, loaded.why))
    if train is not None and train.labels is not None and (uneven := describe_imbalance(head, train.labels)):
        _log.info("task %s: %s", name, uneven)
    _say_shared(loaded)
    return loaded if augment is None else with_augmented(loaded, Path(with_home(augment)))


def _load(
    name: str,
    data: str | None,
    text_columns: Sequence[str] | str | None,
    label_column: str | None,
    label_type: LabelType | None,
) -> TaskData:
    if name == CUSTOM:
        return load_custom(data, text_columns, label_column, label_type)
    entry = TASKS[name]
    if entry.takes_columns and not label_type:
        return entry.load(data, text_columns=text_columns, label_column=label_column)
    if text_columns or label_column or label_type:
        raise HskdError(
            f"Task {name} has columns of its own; only tasks {CUSTOM} and reranking take text and label columns, and "
            f"only {CUSTOM} a label type."
        )
    return entry.load(data)


def _say_shared(data: TaskData) -> None:
    """Warn about rows of other splits whose texts occur in ``train``: a score on them rewards memorisation."""
    if "train" not in data.splits:
        return
    known = set(zip(*data.splits["train"].texts, strict=True))
    shared = []
    for name, split in data.splits.items():
        count = 0 if name == "train" else sum(fields in known for fields in zip(*split.texts, strict=True))
        if count:
            shared.append(f"{count:,} of {len(split):,} rows of {name}")
    if shared:
        _log.warning("task %s: %s have the texts of rows of train", data.task.name, " and ".join(shared))
