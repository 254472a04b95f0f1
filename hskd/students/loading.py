"""Load a student from its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from hskd.artifacts import MODULES
from hskd.errors import HskdError
from hskd.heads import Head
from hskd.heads.embedding.model import EmbeddingLoader
from hskd.io import with_home
from hskd.remote import local_copy
from hskd.teachers.loading import checked_model, reason, require_every_weight


def load_student(folder: str | Path, head: Head | None = None) -> PreTrainedModel:
    """Load the student in ``folder``, of any registered model type, in float32 and eval mode.

    Code that the folder contains is never run. Files that have a checksum are verified.

    Args:
        folder: a folder or a URL. A URL is copied into the cache first (see :func:`hskd.remote.fetch`).
        head: the head of the student's task; None for the head that config.json names.

    Raises:
        HskdError: the folder is missing, holds no model that can be loaded, or holds a model that lacks a weight.
        CorruptionError: a file in the folder is damaged.
    """
    folder = local_copy(folder if isinstance(folder, Path) else with_home(folder))
    if not folder.is_dir():
        raise HskdError(f"{folder}: no such folder. A student is a folder with config.json and model.safetensors.")
    checked_model(str(folder))
    try:
        auto_class = _auto_class(folder) if head is None else head.auto_class
        with torch.random.fork_rng(devices=[]):  # Missing weights are drawn, and refused below.
            model, info = auto_class.from_pretrained(
                folder,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # Refused below, by name.
                output_loading_info=True,
                local_files_only=True,
                weights_only=True,
                trust_remote_code=False,
            )
    except HskdError:
        raise
    except Exception as error:  # Malformed files make libraries raise errors of any type.
        raise HskdError(f"{folder}: not a model that can be loaded: {reason(error)}") from error
    require_every_weight(
        str(folder),
        model,
        info,
        "A student must be complete, head included; make one with hskd student (--kind tinybert takes a checkpoint "
        "without a head).",
    )
    return model  # type: ignore[no-any-return]


def _auto_class(folder: Path) -> Any:
    """Return the ``transformers`` Auto class of the architecture in ``config.json``: AutoModelForX for BertForX.

    A folder in the format of sentence-transformers gets an :class:`EmbeddingLoader` instead.

    Raises:
        OSError: the file is missing.
        ValueError: the file is not JSON, or names no architecture that has an Auto class.
    """
    if (folder / MODULES).is_file():
        return EmbeddingLoader()
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    head = re.search(r"For[A-Z]\w*$", str(architectures[0]))
    auto_class = getattr(transformers, f"AutoModel{head[0]}", None) if head else None
    if auto_class is None:
        raise ValueError(f"config.json names the architectures {architectures}, none of which has a head")
    return auto_class
