"""Matching a task's labels to the outputs of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from hskd.errors import MismatchError
from hskd.tasks.task import Task


def label_permutation(task: Task, model_label_names: Sequence[str]) -> list[int]:
    """Which output of the model means which label of the task.

    Args:
        task: the task.
        model_label_names: the model's ``config.id2label`` values in the order of its outputs.

    Returns:
        ``p`` such that output ``p[i]`` means the task's label ``i``. Names are compared ignoring case. Names that
        say nothing (``LABEL_0``, ``LABEL_1``, ...) are taken to be in the task's order, with a warning. ``[0]``
        for regression.

    Raises:
        MismatchError: the names, or the number of outputs, do not fit the task.
    """
    model = list(model_label_names)
    if task.label_type == "regression":
        if len(model) != 1:
            raise MismatchError(
                f"Task {task.name} is a regression: it needs a model with 1 output, not {len(model)} ({model}). "
                "Use a model trained on this task."
            )
        return [0]
    wanted = list(task.label_names)
    for names, known in ((wanted, model), ([w.lower() for w in wanted], [m.lower() for m in model])):
        if sorted(names) == sorted(known) and len(set(known)) == len(known):
            return [known.index(name) for name in names]
    if model == [f"LABEL_{i}" for i in range(len(wanted))]:
        warnings.warn(
            f"The model's labels have no names ({model}); taking them in the order of task {task.name}: {wanted}.",
            stacklevel=2,
        )
        return list(range(len(wanted)))
    raise MismatchError(
        f"The model's labels {model} are not those of task {task.name}, {wanted}. "
        "Use a model trained on this task, or correct id2label and label2id in the model's config.json."
    )
