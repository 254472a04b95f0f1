"""From options to what the engine takes: tokenised examples, device, precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hskd.cli.options import RunOptions, TaskOptions
from hskd.errors import HskdError
from hskd.runtime import resolve_device, resolve_dtype, set_threads
from hskd.tasks import TaskData, TokenizedSplit, load_task, tokenize
from hskd.teachers.loading import load_tokenizer


@dataclass(frozen=True)
class Machine:
    """Resolved device and precision."""

    device: torch.device
    dtype: str

    @classmethod
    def of(cls, options: RunOptions) -> Machine:
        """Resolve what ``options`` leave to the machine, and set the threads."""
        set_threads(options.threads)
        device = resolve_device(options.device)
        return cls(device, resolve_dtype(options.dtype, device))


def load_data(options: TaskOptions) -> TaskData:
    """The task's examples, as text.

    Raises:
        HskdError: the task or its files cannot be read.
    """
    columns = options.text_columns.split(",") if options.text_columns else None
    return load_task(options.task, options.data, columns, options.label_column)


def load_splits(options: TaskOptions, tokenizer: str) -> tuple[TaskData, dict[str, TokenizedSplit]]:
    """The task's examples, tokenised by the tokenizer of the model ``tokenizer``.

    Raises:
        HskdError: the task, its files, or the tokenizer cannot be read.
    """
    data = load_data(options)
    if options.max_length is not None and options.max_length > data.task.max_length:
        raise HskdError(f"--max-length {options.max_length}: task {data.task.name} has at most {data.task.max_length}.")
    splits = tokenize(data, load_tokenizer(tokenizer), options.work / "tokens", options.max_length)
    if options.train_examples is not None:
        splits["train"] = splits["train"].first(options.train_examples)
    return data, splits


def require_folder(flag: str, folder: Path, command: str) -> None:
    """Refuse a folder that is not there.

    Raises:
        HskdError: names the flag, the folder, and the command that makes one.
    """
    if not folder.is_dir():
        raise HskdError(f"{flag} {folder}: no such folder; make one with `{command}`.")
