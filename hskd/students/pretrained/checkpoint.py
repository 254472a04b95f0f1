"""Read the checkpoint of a pretrained encoder, in a folder or on the hub: configuration, weights and tokenizer."""

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
    """Classifier with the body of a checkpoint.

    Attributes:
        model: the model in float32 and eval mode. The caller has to draw the weights of its head.
        unexpected: names of the checkpoint's weights that do not exist in the model, except ``fit_dense``.
        pooler: False if the model has a pooler and the checkpoint has none.
        fit_dense: ``weight`` and ``bias`` of the checkpoint's own ``W``; None if it has none.
    """

    model: PreTrainedModel
    unexpected: tuple[str, ...]
    pooler: bool
    fit_dense: dict[str, torch.Tensor] | None


def checkpoint_config(name: str) -> PretrainedConfig:
    """Read the configuration of a checkpoint in a folder or on the hub, without the fields that describe a head.

    A configuration without ``model_type``, such as TinyBERT's own, is taken as a BERT's.

    Raises:
        HskdError: there is no valid configuration, or its type of model is unknown.
    """
    local = Path(resolve_model(name)) / "config.json"
    return _config(name, local.stat().st_mtime_ns if local.is_file() else 0)


@lru_cache(maxsize=32)
def _config(name: str, stamp: int) -> PretrainedConfig:
    # A grid needs it at every trial, and each time would query the hub. `stamp` changes with a local file.
    try:
        fields, _ = PretrainedConfig.get_config_dict(checked_model(name))
    except HskdError:
        raise
    except Exception as error:  # Malformed files make libraries raise errors of any type.
        raise HskdError(f"{name}: no config.json can be read from it: {reason(error)}") from None
    if not fields:  # The library returns an empty dict for a folder without config.json.
        raise HskdError(f"{name}: no config.json there; expected a folder or a hub name of a pretrained encoder.")
    model_type = fields.pop("model_type", "bert")
    if model_type not in CONFIG_MAPPING:
        raise HskdError(f"{name}: its config.json has the model_type {model_type!r}, which is unknown.")
    for field in HEAD_FIELDS:
        fields.pop(field, None)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(fields)
    except Exception as error:  # Malformed fields make libraries raise errors of any type.
        raise HskdError(f"{name}: its config.json is not valid for a {model_type}: {reason(error)}") from None
    return config


def checkpoint_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Load the checkpoint's own tokenizer (a ``vocab.txt`` is enough); None if it has none.

    Raises:
        HskdError: the checkpoint has a tokenizer that cannot be loaded.
    """
    if not any(model_file(name, file) for file in _VOCABULARIES):
        return None
    return load_tokenizer(name, checkpoint_config(name))


def checkpoint_fingerprint(name: str) -> str:
    """Return 16 hexadecimal digits that identify the configuration and the weight files, ``fit_dense`` included.

    Raises:
        HskdError: the checkpoint has no weights.
    """
    files = [*weight_files(name), *([own] if (own := model_file(name, PROJECTION_FILE)) else [])]
    config = model_file(name, "config.json")
    return fingerprint([known_sha256(file) for file in (*([config] if config else []), *files)])


def load_checkpoint(name: str, head: Head) -> Loaded:
    """Load the body of a checkpoint, whatever its own head, into a model with a new ``head``.

    Weights are read from safetensors, or from an old ``pytorch_model.bin``. Only tensors are loaded.

    Args:
        name: a local folder or a hub name.
        head: the head of the student's task.

    Raises:
        HskdError: the weights cannot be read, or a weight of the body is missing or has another shape than in
            config.json.
    """
    config = checkpoint_config(name)
    config = type(config).from_dict({**config.to_dict(), **head.config_fields()})
    try:
        with torch.random.fork_rng(devices=[]):  # Missing weights are drawn.
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
    except Exception as error:  # Malformed files make libraries raise errors of any type.
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
