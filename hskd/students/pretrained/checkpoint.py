"""A pretrained encoder as it is published: configuration, weights, perhaps a tokenizer, in a folder or on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from hskd.distill.projection import PROJECTION_FILE
from hskd.errors import HskdError
from hskd.hashing import file_sha256, fingerprint
from hskd.heads import HEAD_FIELDS, Head
from hskd.io import read_json
from hskd.teachers.loading import load_tokenizer, resolve_model

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A classifier with the body of a checkpoint.

    Attributes:
        model: in float32 and eval mode; its head is to be drawn.
        unexpected: names of the checkpoint's weights that the model has no place for, ``fit_dense`` excepted.
        pooler: False where the model has a pooler, and the checkpoint none.
        fit_dense: ``weight`` and ``bias`` of the checkpoint's own ``W``.
    """

    model: PreTrainedModel
    unexpected: tuple[str, ...]
    pooler: bool
    fit_dense: dict[str, torch.Tensor] | None


def checkpoint_config(name: str) -> PretrainedConfig:
    """The configuration of the checkpoint in a folder or on the hub, without what it says of a head.

    One that does not name its ``model_type``, as TinyBERT's own, is of a BERT.

    Raises:
        HskdError: there is none, or it is of no known type of model.
    """
    local = Path(resolve_model(name)) / "config.json"
    return _config(name, local.stat().st_mtime_ns if local.is_file() else 0)


@lru_cache(maxsize=32)
def _config(name: str, stamp: int) -> PretrainedConfig:
    # A grid asks for it at every trial, and a hub would be asked each time; `stamp` tells when a local one changes.
    try:
        fields, _ = PretrainedConfig.get_config_dict(resolve_model(name))
    except (OSError, ValueError) as error:
        raise HskdError(f"{name}: no config.json can be read from it: {_first_line(error)}") from None
    if not fields:  # a folder without one is answered with an empty one
        raise HskdError(f"{name}: no config.json there; expected a folder or a hub name of a pretrained encoder.")
    model_type = fields.pop("model_type", "bert")
    if model_type not in CONFIG_MAPPING:
        raise HskdError(f"{name}: its config.json says model_type {model_type!r}, which is not known here.")
    for field in HEAD_FIELDS:
        fields.pop(field, None)
    config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(fields)
    return config


def checkpoint_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The checkpoint's own tokenizer (a ``vocab.txt`` is enough), or None where it has none.

    Raises:
        HskdError: there is one that cannot be loaded.
    """
    if not any(_file(name, file) for file in _VOCABULARIES):
        return None
    return load_tokenizer(name, checkpoint_config(name))


def checkpoint_fingerprint(name: str) -> str:
    """16 hexadecimal digits that stand for the configuration and the files of weights.

    Raises:
        HskdError: there are none.
    """
    files = [*_weight_files(name), *([own] if (own := _file(name, PROJECTION_FILE)) else [])]
    config = _file(name, "config.json")
    return fingerprint([file_sha256(file) for file in (*([config] if config else []), *files)])


def load_checkpoint(name: str, head: Head) -> Loaded:
    """A model with a new ``head`` whose body is the checkpoint's, whatever head that was trained with.

    Weights are read from safetensors, or from an old ``pytorch_model.bin`` of which nothing but tensors is loaded.

    Args:
        name: a local folder or a hub name.
        head: the head of the student's task.

    Raises:
        HskdError: the weights cannot be read, or one of the body is missing or of another shape than config.json says.
    """
    config = checkpoint_config(name)
    config = type(config).from_dict({**config.to_dict(), **head.config_fields()})
    try:
        with torch.random.fork_rng(devices=[]):  # what is missing is drawn
            model, info = head.auto_class.from_pretrained(
                resolve_model(name),
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                weights_only=True,
                trust_remote_code=False,
            )
    # Old checkpoints are pickles: whatever else is in one is an UnpicklingError, a RuntimeError or an EOFError.
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise HskdError(f"{name}: its weights cannot be loaded: {_first_line(error)}") from None
    prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(prefix))
    lacking = [key for key in missing if "pooler" not in key]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise HskdError(
            f"{name}: {lacking[0]}{more} not in the checkpoint; it is not one of a whole {config.model_type}."
        )
    for key, found, expected in sorted(info["mismatched_keys"]):  # a set: one order for one message
        if key.startswith(prefix):
            raise HskdError(
                f"{name}: {key} is of shape {tuple(found)}, and its config.json makes it {tuple(expected)}; "
                "weights and configuration are not of one model."
            )
    unexpected = sorted(key for key in info["unexpected_keys"] if not _is_fit_dense(key))
    return Loaded(model.eval(), tuple(unexpected), not missing, _fit_dense(name))


def _is_fit_dense(key: str) -> bool:
    return key.rpartition("fit_dense.")[2] in ("weight", "bias") and "fit_dense." in key


def _fit_dense(name: str) -> dict[str, torch.Tensor] | None:
    own = _file(name, PROJECTION_FILE)
    files = [own] if own else _weight_files(name)
    found: dict[str, torch.Tensor] = {}
    for file in files:
        for key, tensor in load_state_dict(file).items():
            if own or _is_fit_dense(key):
                found[key.rpartition(".")[2]] = tensor.float().clone()
    return found if {*found} == {"weight", "bias"} else None


def _weight_files(name: str) -> list[Path]:
    for file in _WEIGHTS:
        path = _file(name, file)
        if path is None:
            continue
        if not file.endswith(".index.json"):
            return [path]
        shards = [_file(name, shard) for shard in sorted(set(read_json(path)["weight_map"].values()))]
        return [shard for shard in shards if shard is not None]
    raise HskdError(f"{name}: no weights there; expected one of {', '.join(_WEIGHTS)}.")


def _file(name: str, file: str) -> Path | None:
    """Where a file of the checkpoint lies on this machine, fetched from the hub if need be; None where it has none."""
    try:
        path = cached_file(resolve_model(name), file)
    except OSError:
        return None
    return None if path is None else Path(path)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
