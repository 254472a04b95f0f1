"""The examples that trials train on and are scored on, from a task's data or from a store alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hskd.errors import HskdError
from hskd.store.examples import store_examples, store_task
from hskd.store.reader import Store
from hskd.tasks import Task, TaskData, TokenizedSplit, load_task, tokenize
from hskd.tasks.alignment import align, differ
from hskd.tasks.augment import AUGMENTED
from hskd.teachers.loading import checked_model, load_tokenizer, model_positions
from hskd.trials.config import TaskPlan


@dataclass(frozen=True, eq=False)
class Examples:
    """A task's examples, tokenised.

    Attributes:
        task: the task.
        splits: the available splits of train, dev and test; ``train`` has all its examples.
        real: the task's training examples that students train on.
        train: all examples that students train on: ``real``, then augmented sentences.
    """

    task: Task
    splits: dict[str, TokenizedSplit]
    real: TokenizedSplit
    train: TokenizedSplit

    @property
    def for_student(self) -> dict[str, TokenizedSplit]:
        """The splits, with ``train`` replaced by the examples that students train on."""
        return self.splits | {"train": self.train}


def load_data(plan: TaskPlan, work: Path, augmented: bool = True) -> TaskData:
    """Load the task's examples as text, with the plan's augmented sentences unless ``augmented`` is false.

    Data from URLs is cached in ``work``.

    Raises:
        HskdError: the task or its files cannot be read.
    """
    augment = plan.augment if augmented else None
    return load_task(plan.name, plan.data, plan.text_columns, plan.label_column, augment, plan.label_type, work)


def task_examples(
    plan: TaskPlan, tokenizer: str, work: Path, augmented: bool = True, teacher: str | None = None
) -> Examples:
    """Return the task's examples, tokenised with the tokenizer of the model ``tokenizer``.

    Args:
        plan: the examples to load.
        tokenizer: a model.
        work: the work folder.
        augmented: whether the plan's augmented sentences follow the training examples.
        teacher: the model that gives the targets, if it is another one. If it has another tokenizer, the examples are
            aligned with its tokens (:func:`hskd.tasks.align`).

    Raises:
        HskdError: the task, its files or the tokenizer cannot be read; the plan asks for more examples than there are;
            or the tokenizers cannot be aligned.
    """
    own = load_tokenizer(tokenizer)
    others = None if teacher is None or teacher == tokenizer else load_tokenizer(teacher)
    aligned_with = teacher if others is not None and differ(own, others) else None
    positions = {name: model_positions(name) for name in (tokenizer, aligned_with) if name is not None}
    for name, limit in positions.items():
        if plan.max_length is not None and limit is not None and plan.max_length > limit:
            raise HskdError(
                f"--max-length {plan.max_length}: {name} has positions for {limit} tokens; give at most that."
            )
    data = load_data(plan, work, augmented)
    task = for_teacher(data.task, aligned_with or tokenizer)
    splits = tokenize(data, own, work / "tokens", plan.max_length, positions[tokenizer])
    if aligned_with is not None and others is not None:
        in_others = tokenize(data, others, work / "tokens", plan.max_length, positions[aligned_with])
        splits = align(data, splits, in_others, (own, others), work / "tokens")
    sentences = splits.pop(AUGMENTED, None)
    if plan.held_out is not None:
        splits = dict(zip(("train", "dev"), splits["train"].without_last(plan.held_out), strict=True))
    real = splits["train"] if plan.train_examples is None else splits["train"].first(plan.train_examples)
    return Examples(task, splits, real, real if sentences is None else real.followed_by(sentences))


def for_teacher(task: Task, model: str) -> Task:
    """Return ``task`` with outputs of the size that the teacher ``model``, or a student of it, gives."""
    return replace(task, head=task.head.for_teacher(checked_model(model)))


def store_alone_examples(store: Store, plan: TaskPlan, tokenizer: str) -> Examples:
    """Return the training examples that a store holds, for a student with the tokenizer of the model ``tokenizer``.

    Raises:
        HskdError: the store does not allow its examples to be reconstructed.
    """
    train = store_examples(store, "token_type_ids" in load_tokenizer(tokenizer).model_input_names)
    real = train if plan.train_examples is None else train.first(plan.train_examples)
    return Examples(store_task(store), {"train": train}, real, real)
