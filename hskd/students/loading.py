"""Read a student back from its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hskd.errors import HskdError
from hskd.remote import local_copy

PROJECTION_FILE = "fit_dense.safetensors"
"""``W`` beside a student that is narrower than its teacher."""


def load_student(folder: str | Path) -> PreTrainedModel:
    """The classifier saved in ``folder``, of any registered model type, in float32 with SDPA attention, in eval mode.

    Code that a folder may carry is never run. ``folder`` may be a URL, which is copied into the cache first (see
    :func:`hskd.remote.fetch`).

    Raises:
        HskdError: the folder is missing or holds no model that can be loaded.
    """
    folder = local_copy(folder)
    if not folder.is_dir():
        raise HskdError(f"{folder}: no such folder. A student is a folder with config.json and model.safetensors.")
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
        )
    # RuntimeError: the weights do not have the shapes that the configuration says.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HskdError(f"{folder}: not a model that can be loaded ({str(error).splitlines()[0]}).") from error
    return model
