"""Tasks: from named data to batches of token ids.

Names are imported on first use, so that importing this package is cheap.
"""

from typing import TYPE_CHECKING

from hskd.lazy import lazy_names

if TYPE_CHECKING:
    from hskd.tasks.alignment import Alignment, align
    from hskd.tasks.batches import (
        BatchDataset,
        BucketedBatchSampler,
        Deal,
        batch_loader,
        bucketed_batches,
        head_inputs,
        is_padded,
        model_inputs,
        sequential_batches,
    )
    from hskd.tasks.load import load_task
    from hskd.tasks.metrics import compute_metrics
    from hskd.tasks.registry import TASKS
    from hskd.tasks.task import Split, Task, TaskData
    from hskd.tasks.tokenized import TokenizedSplit, tokenize, tokenizer_fingerprint

__all__ = [
    "TASKS",
    "Alignment",
    "BatchDataset",
    "BucketedBatchSampler",
    "Deal",
    "Split",
    "Task",
    "TaskData",
    "TokenizedSplit",
    "align",
    "batch_loader",
    "bucketed_batches",
    "compute_metrics",
    "head_inputs",
    "is_padded",
    "load_task",
    "model_inputs",
    "sequential_batches",
    "tokenize",
    "tokenizer_fingerprint",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "hskd.tasks.alignment": ("Alignment", "align"),
        "hskd.tasks.batches": (
            "BatchDataset",
            "BucketedBatchSampler",
            "Deal",
            "batch_loader",
            "bucketed_batches",
            "head_inputs",
            "is_padded",
            "model_inputs",
            "sequential_batches",
        ),
        "hskd.tasks.metrics": ("compute_metrics",),
        "hskd.tasks.load": ("load_task",),
        "hskd.tasks.registry": ("TASKS",),
        "hskd.tasks.task": ("Split", "Task", "TaskData"),
        "hskd.tasks.tokenized": ("TokenizedSplit", "tokenize", "tokenizer_fingerprint"),
    },
)
