"""``hskd distill --no-data``: the task and its examples come from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hskd.cli.options import TaskOptions
from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.store.reader import Store
    from hskd.trials.config import TaskPlan


def store_alone_plan(store: Store | None, arm: str, options: TaskOptions) -> TaskPlan:
    """Return the task of a store that gives all training examples.

    Raises:
        HskdError: there is no store, the arm needs labels, or other options name data.
    """
    from hskd.trials.config import TaskPlan

    if store is None:
        raise HskdError("--no-data trains from a store alone: give --store.")
    if arm == "gold":
        raise HskdError("--no-data: the arm gold learns from labels, and a store has none; give the data.")
    origin = store.manifest.origin
    if options.data or options.text_columns or options.label_column or options.augment:
        raise HskdError(
            "--no-data goes without --data, --text-columns, --label-column and --augment: the store has all of this."
        )
    if options.task not in (TaskOptions.model_fields["task"].default, origin.task):
        raise HskdError(f"--no-data: the store is of task {origin.task}; leave --task {options.task} out.")
    if options.max_length not in (None, origin.max_length):
        raise HskdError(
            f"--no-data: the store's examples are cut to {origin.max_length} tokens; leave --max-length out."
        )
    return TaskPlan(name=origin.task, max_length=origin.max_length, train_examples=options.train_examples)
