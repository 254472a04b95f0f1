"""Names of the switches for departures of the paper's released code, and which of them need the teacher.

docs/compat.md describes the switches, and :mod:`hskd.paper` implements them. This module is cheap to import, because
settings need the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.tasks import Task

Compat = Literal[
    "attention_scores",
    "batch_threshold",
    "bert_adam",
    "best_epoch",
    "drop_last",
    "gold_regression",
    "loose_masks",
    "mean_classes",
    "pads_in_loss",
    "relu_pooled",
    "teacher_dropout",
    "zero_dropped",
]
"""Name of a switch for distillation."""
COMPAT: tuple[Compat, ...] = get_args(Compat)

StudentCompat = Literal["taylor_dropout"]
"""Name of a switch for making a student."""
STUDENT_COMPAT: tuple[StudentCompat, ...] = get_args(StudentCompat)

ONLINE_ONLY: dict[Compat, str] = {
    "attention_scores": "a superset holds the attention after softmax, averaged over heads",
    "batch_threshold": "the kept values depend on the rest of the batch, and a store has no batches",
    "loose_masks": "the kept values change after the first step and depend on the batch, and a store has fixed values",
    "pads_in_loss": "a store holds no padding",
    "relu_pooled": "a store holds the logits of the head as it was fine-tuned",
    "teacher_dropout": "a store holds one pass of the teacher, and with dropout every pass differs",
}
"""Switches that need the teacher at training time, and the reason."""

SQUARED_ERROR_ONLY: tuple[Compat, ...] = ("batch_threshold", "loose_masks", "zero_dropped")
"""Switches that change which numbers the squared error compares. They exclude the other losses of the HSK stage."""

COMPAT_HELP = (
    "Departures of the paper's released code to switch on: "
    + ", ".join(name for name in COMPAT if name not in ONLINE_ONLY)
    + f"; online only: {', '.join(ONLINE_ONLY)} (docs/compat.md)."
)
STUDENT_COMPAT_HELP = (
    "Departures of the paper's released code to switch on: taylor_dropout measures importance with dropout on "
    "(docs/compat.md)."
)


def refuse_offline(switches: Iterable[Compat], instead: str) -> None:
    """Check that no switch needs the teacher, for training from a store.

    Args:
        switches: the switches that are on.
        instead: a sentence for the message that says what to do.

    Raises:
        HskdError: names the first switch that needs the teacher, and the reason.
    """
    for name in switches:
        if name in ONLINE_ONLY:
            raise HskdError(f"compat {name} cannot come from a store: {ONLINE_ONLY[name]}. {instead}")


def require_regression(switches: Iterable[Compat], task: Task) -> None:
    """Check that ``gold_regression`` is off, unless the task is a regression.

    Raises:
        HskdError: the switch is on, and the task is not a regression.
    """
    if "gold_regression" in switches and not task.head.fits_numbers:
        raise HskdError(
            f"compat gold_regression: fits the gold labels of a regression, and task {task.name} is a "
            f"{task.head.kind}; leave it out (the arm gold fits hard labels)."
        )


def importance_seed(switches: Iterable[StudentCompat]) -> int | None:
    """Return the seed of the teacher's dropout while importance is measured; None to measure without dropout."""
    return 0 if "taylor_dropout" in switches else None
