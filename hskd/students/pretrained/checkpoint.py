"""A pretrained encoder as it is published: configuration, weights, perhaps a tokenizer, in a folder or on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import (
    CONFIG_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import load_state_dict

from hskd.distill.projection import PROJECTION_FILE
from hskd.errors import HskdError
from hskd.hashing import fingerprint, known_sha256
from hskd.heads import HEAD_FIELDS, Head
from hskd.teachers.loading import (
    checked_model,
    load_tokenizer,
    model_file,
    reason,
    require_body,
    resolve_model,
    weight_files,
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
        fields, _ = PretrainedConfig.get_config_dict(checked_model(name))
    except HskdError:
        raise
    except Exception as error:  # of a library, about files that may hold anything
        raise HskdError(f"{name}: no config.json can be read from it: {reason(error)}") from None
    if not fields:  # a folder without one is answered with an empty one
        raise HskdError(f"{name}: no config.json there; expected a folder or a hub name of a pretrained encoder.")
    model_type = fields.pop("model_type", "bert")
    if model_type not in CONFIG_MAPPING:
        raise HskdError(f"{name}: its config.json says model_type {model_type!r}, which is not known here.")
    for field in HEAD_FIELDS:
        fields.pop(field, None)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(fields)
    except Exception as error:  # of a library, about fields that may hold anything
        raise HskdError(f"{name}: its config.json is not one of a {model_type}: {reason(error)}") from None
    return config


def checkpoint_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The checkpoint's own tokenizer (a ``vocab.txt`` is enough), or None where it has none.

    Raises:
        HskdError: there is one that cannot be loaded.
    """
    if not any(model_file(name, file) for file in _VOCABULARIES):
        return None
    return load_tokenizer(name, checkpoint_config(name))


def checkpoint_fingerprint(name: str) -> str:
    """16 hexadecimal digits that stand for the configuration and the files of weights.

    Raises:
        HskdError: there are none.
    """
    files = [*weight_files(name), *([own] if (own := model_file(name, PROJECTION_FILE)) else [])]
    config = model_file(name, "config.json")
    return fingerprint([known_sha256(file) for file in (*([config] if config else []), *files)])


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
                checked_model(name),
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                weights_only=True,
                trust_remote_code=False,
            )
    except HskdError:
        raise
    except Exception as error:  # of a library, about files that may hold anything
        raise HskdError(f"{name}: its weights cannot be loaded: {reason(error)}") from None
    pooler = require_body(name, model, info)
    unexpected = sorted(key for key in info["unexpected_keys"] if not _is_fit_dense(key))
    return Loaded(model.eval(), tuple(unexpected), pooler, _fit_dense(name))


def _is_fit_dense(key: str) -> bool:
    return key.rpartition("fit_dense.")[2] in ("weight", "bias") and "fit_dense." in key


def _fit_dense(name: str) -> dict[str, torch.Tensor] | None:
    own = model_file(name, PROJECTION_FILE)
    files = [own] if own else weight_files(name)
    projection: dict[str, torch.Tensor] = {}
    for file in files:
        for key, tensor in load_state_dict(file).items():
            if own or _is_fit_dense(key):
                projection[key.rpartition(".")[2]] = tensor.float().clone()
    return projection if {*projection} == {"weight", "bias"} else None
