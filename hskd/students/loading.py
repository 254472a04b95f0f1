"""Read a student back from its folder."""

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
    """The student saved in ``folder``, of any registered model type, in float32, in eval mode.

    Code that a folder may carry is never run. Files with a checksum beside them are compared with it.

    Args:
        folder: may be a URL, which is copied into the cache first (see :func:`hskd.remote.fetch`).
        head: that of the student's task; None for the one that its config.json names.

    Raises:
        HskdError: the folder is missing, holds no model that can be loaded, or one that lacks a weight.
        CorruptionError: a file there is damaged.
    """
    folder = local_copy(folder if isinstance(folder, Path) else with_home(folder))
    if not folder.is_dir():
        raise HskdError(f"{folder}: no such folder. A student is a folder with config.json and model.safetensors.")
    checked_model(str(folder))
    try:
        auto_class = _auto_class(folder) if head is None else head.auto_class
        with torch.random.fork_rng(devices=[]):  # what is missing is drawn, and refused
            model, info = auto_class.from_pretrained(
                folder,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # They are refused below, by name.
                output_loading_info=True,
                local_files_only=True,
                weights_only=True,
                trust_remote_code=False,
            )
    except HskdError:
        raise
    except Exception as error:  # of a library, about files that may hold anything
        raise HskdError(f"{folder}: not a model that can be loaded: {reason(error)}") from error
    require_every_weight(
        str(folder),
        model,
        info,
        "A student is whole, its head too: make one (hskd student; --kind tinybert takes a checkpoint without a head).",
    )
    return model  # type: ignore[no-any-return]


def _auto_class(folder: Path) -> Any:
    """The ``transformers`` Auto class of the architecture in ``config.json``: AutoModelForX of BertForX.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON, or names no architecture that has an Auto class.
    """
    if (folder / MODULES).is_file():
        return EmbeddingLoader()
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    head = re.search(r"For[A-Z]\w*$", str(architectures[0]))
    auto_class = getattr(transformers, f"AutoModel{head[0]}", None) if head else None
    if auto_class is None:
        raise ValueError(f"config.json names the architectures {architectures}, of which none is a model with a head")
    return auto_class
