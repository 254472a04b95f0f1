"""``reranking``: your own queries and passages; ``trecqa``: answer sentences of TREC QA."""

from __future__ import annotations

from collections.abc import Sequence

from hskd.heads import Reranking
from hskd.tasks.registry import TASKS
from hskd.tasks.reranking import load_reranking
from hskd.tasks.task import Task, TaskData

RERANKING = Task(
    name="reranking",
    text_columns=("query", "passage"),
    label_column="label",
    head=Reranking(),
    hsk_epochs=5,
    max_length=128,
)
TRECQA = Task(
    name="trecqa",
    text_columns=("qtext", "atext"),
    label_column="label",
    head=Reranking(),
    hsk_epochs=5,
    max_length=96,  # 46 tokens on average; one pair of train is longer
)


@TASKS.register(RERANKING, takes_columns=True)
def load_own(
    data: str | None = None,
    text_columns: Sequence[str] | str | None = None,
    label_column: str | None = None,
) -> TaskData:
    """Load your own queries, passages and grades (see :func:`~hskd.tasks.reranking.load_reranking`)."""
    return load_reranking(RERANKING, data, text_columns, label_column)


@TASKS.register(TRECQA)
def load_trecqa(data: str | None = None) -> TaskData:
    """Load TREC QA (Wang et al. 2007): questions, and sentences that do or do not answer them.

    ``data`` is a folder with ``train.csv``, ``dev.csv`` and ``test.csv``, which have the columns ``qtext``, ``label``
    and ``atext``: 4,718, 1,148 and 1,517 pairs.
    """
    return load_reranking(TRECQA, data, TRECQA.text_columns, TRECQA.label_column)
