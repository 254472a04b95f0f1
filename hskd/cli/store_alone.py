"""``hskd distill --no-data``: what stands in for task data where a store is all there is."""

from __future__ import annotations

from pathlib import Path

from hskd.cli.options import TaskOptions
from hskd.errors import HskdError
from hskd.store.examples import store_examples, store_task
from hskd.store.reader import Store
from hskd.tasks import Task, TokenizedSplit
from hskd.teachers.loading import load_tokenizer

NO_SCORES = "none: trained from the store alone, with no labelled data"


def load_store_alone(
    store: Store | None, arm: str, options: TaskOptions, student: Path
) -> tuple[Task, dict[str, TokenizedSplit]]:
    """The task and the training examples that a store holds, for a student's tokenizer.

    Raises:
        HskdError: there is no store, the arm needs labels, or options name data.
    """
    if store is None:
        raise HskdError("--no-data trains from a store alone: give --store.")
    if arm == "gold":
        raise HskdError("--no-data: the arm gold learns from labels, and a store has none; give the data.")
    origin = store.manifest.origin
    if options.data or options.text_columns or options.label_column or options.augment:
        raise HskdError(
            "--no-data goes without --data, --text-columns, --label-column and --augment: the store says it all."
        )
    if options.task not in (TaskOptions.model_fields["task"].default, origin.task):
        raise HskdError(f"--no-data: the store is of task {origin.task}; leave --task {options.task} out.")
    if options.max_length not in (None, origin.max_length):
        raise HskdError(
            f"--no-data: the store's examples are cut to {origin.max_length} tokens; leave --max-length out."
        )
    train = store_examples(store, "token_type_ids" in load_tokenizer(str(student)).model_input_names)
    if options.train_examples is not None:
        train = train.first(options.train_examples)
    return store_task(store), {"train": train}
