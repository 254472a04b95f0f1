"""Names of the departures of the paper's released code, and which of them need the teacher.

What a switch does is told in docs/compat.md; :mod:`hskd.paper` does it. This module is light, for settings to import.
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
"""Switches of a distillation."""
COMPAT: tuple[Compat, ...] = get_args(Compat)

StudentCompat = Literal["taylor_dropout"]
"""Switches of making a student."""
STUDENT_COMPAT: tuple[StudentCompat, ...] = get_args(StudentCompat)

ONLINE_ONLY: dict[Compat, str] = {
    "attention_scores": "a superset holds the attention after softmax, averaged over heads",
    "batch_threshold": "what is kept depends on the rest of the batch, and a store knows no batches",
    "loose_masks": "what is kept changes after the first step and depends on the batch, and a store keeps one thing",
    "pads_in_loss": "a store holds no pads",
    "relu_pooled": "a store holds the logits of the head as it was fine-tuned",
    "teacher_dropout": "a store holds one pass of the teacher, and under dropout every pass is another",
}
"""Switches that need the teacher, and why."""

SQUARED_ERROR_ONLY: tuple[Compat, ...] = ("batch_threshold", "loose_masks", "zero_dropped")
"""Switches that change which numbers the squared error compares: they go with no other loss of the HSK stage."""

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
    """Refuse switches that cannot come from a store; ``instead`` says what to do.

    Raises:
        HskdError: names the switch and says why.
    """
    for name in switches:
        if name in ONLINE_ONLY:
            raise HskdError(f"compat {name} cannot come from a store: {ONLINE_ONLY[name]}. {instead}")


def require_regression(switches: Iterable[Compat], task: Task) -> None:
    """Refuse ``gold_regression`` where there is nothing to regress.

    Raises:
        HskdError: the task is no regression.
    """
    if "gold_regression" in switches and not task.head.fits_numbers:
        raise HskdError(
            f"compat gold_regression: fits the gold labels of a regression, and task {task.name} is a "
            f"{task.head.kind}; leave it out (the arm gold fits hard labels)."
        )


def importance_seed(switches: Iterable[StudentCompat]) -> int | None:
    """The seed of the teacher's dropout while importance is measured; None to measure without dropout."""
    return 0 if "taylor_dropout" in switches else None
