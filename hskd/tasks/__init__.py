"""Tasks: from named data to batches of token ids."""

from hskd.tasks.batches import (
    BucketedBatchSampler,
    EpochDataLoader,
    bucketed_batches,
    model_inputs,
    sequential_batches,
)
from hskd.tasks.labels import label_permutation
from hskd.tasks.metrics import compute_metrics
from hskd.tasks.registry import TASK_NAMES, TASKS, load_task
from hskd.tasks.task import Split, Task, TaskData
from hskd.tasks.tokenized import TokenizedSplit, tokenize, tokenizer_fingerprint

__all__ = [
    "TASKS",
    "TASK_NAMES",
    "BucketedBatchSampler",
    "EpochDataLoader",
    "Split",
    "Task",
    "TaskData",
    "TokenizedSplit",
    "bucketed_batches",
    "compute_metrics",
    "label_permutation",
    "load_task",
    "model_inputs",
    "sequential_batches",
    "tokenize",
    "tokenizer_fingerprint",
]
