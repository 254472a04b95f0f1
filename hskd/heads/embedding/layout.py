"""Layout of a sentence-transformers folder: the modules that follow the encoder, and the pooling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hskd.artifacts import MODULES
from hskd.errors import HskdError
from hskd.io import read_json

POOLINGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
"""Supported poolings -> their field in an older configuration."""


@dataclass(frozen=True)
class Layout:
    """How a sentence-transformers model makes a vector from the encoder's states.

    Attributes:
        encoder: folder or hub name of the encoder.
        pooling: one of :data:`POOLINGS`.
        dense: folder of a linear layer after pooling; None if there is none.
    """

    encoder: str
    pooling: str = "mean"
    dense: Path | None = None


def read_layout(model: str) -> Layout:
    """Read the layout of a model. A model without ``modules.json`` is an encoder with mean pooling.

    For a model on the hub, the files of its modules are read from the cache, or fetched.

    Raises:
        HskdError: a module, a pooling or an activation is not supported, or a file cannot be read.
    """
    folder = modules_folder(model)
    if folder is None:
        return Layout(model)
    layout = Layout(model)
    for module in read_json(folder / MODULES):
        kind, place = module["type"].rpartition(".")[2], folder / module["path"]
        match kind:
            case "Transformer":
                layout = Layout(str(place) if module["path"] else model)
            case "Pooling":
                layout = Layout(layout.encoder, _pooling(place / "config.json"))
            case "Dense":
                activation = str(read_json(place / "config.json").get("activation_function", "Identity"))
                if activation.rpartition(".")[2] != "Identity":
                    raise HskdError(f"{place}: the activation {activation} is not supported; expected Identity.")
                layout = Layout(layout.encoder, layout.pooling, place)
            case "Normalize":
                pass
            case _:
                raise HskdError(
                    f"{folder / MODULES}: the module {module['type']} is not supported; expected Transformer, "
                    "Pooling, Dense and Normalize."
                )
    return layout


def modules_folder(model: str) -> Path | None:
    """Return the local folder of the modules that follow a model's encoder; None if it has no ``modules.json``.

    Args:
        model: a folder, or the name of a model on the hub, whose modules are fetched into the cache if necessary.

    Raises:
        HskdError: neither the hub nor the cache can tell whether the model has modules.
    """
    if Path(model).is_dir():
        return Path(model) if (Path(model) / MODULES).is_file() else None
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(model, MODULES)
        parts = [str(module["path"]) for module in read_json(Path(file)) if module["path"]]
        patterns = [f"{part}/*{ending}" for part in parts for ending in (".json", ".safetensors")]
        return Path(snapshot_download(model, allow_patterns=[MODULES, *patterns]))
    except (OSError, ValueError, EntryNotFoundError) as error:
        is_absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        # For a file that is known not to exist, the cache returns a marker that is neither a path nor None.
        if is_absent or not isinstance(try_to_load_from_cache(model, MODULES), str | None):
            return None
        raise HskdError(
            f"{model}: its {MODULES} says how it pools, and it can be read neither from the hub nor from the cache of "
            f"this machine ({str(error).strip().splitlines()[0]}). Fetch the whole model, and give its folder."
        ) from None


def _pooling(file: Path) -> str:
    config: dict[str, Any] = read_json(file)
    old = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    names = {field: name for name, field in POOLINGS.items()}
    mode = config.get("pooling_mode", [names.get(field, field) for field in old])
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise HskdError(f"{file}: pools by {modes}, which is not supported; expected one of {', '.join(POOLINGS)}.")
    return str(modes[0])


def embedding_size(model: str) -> int:
    """Return the size of the vectors that a model gives.

    Raises:
        HskdError: the model's configuration cannot be read.
    """
    from transformers import AutoConfig

    layout = read_layout(model)
    if layout.dense is not None:
        return int(read_json(layout.dense / "config.json")["out_features"])
    try:
        return int(AutoConfig.from_pretrained(layout.encoder, trust_remote_code=False).hidden_size)
    except (OSError, ValueError) as error:
        raise HskdError(f"{model}: no configuration can be read from it: {str(error).splitlines()[0]}") from None
