"""Find and load teachers: a local folder, a URL, a hub name, or an offline model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from hskd.artifacts import MODULES, module_folders, require_whole
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import canonical_json, fingerprint, known_sha256
from hskd.heads import Head, output_names
from hskd.heads.embedding.layout import modules_folder
from hskd.io import read_json, saving, with_home
from hskd.remote import fetch, is_url
from hskd.spec import Shape
from hskd.tasks import Task, tokenizer_fingerprint
from hskd.tasks.positions import max_tokens
from hskd.teachers.offline import offline_folder
from hskd.teachers.settings import is_offline

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROJECTION_FILE = "fit_dense.safetensors"
"""File with ``W`` in the folder of a student that is narrower than its teacher."""
_FILES_OF_MODELS = (".safetensors", ".bin", ".json", ".txt", ".model")
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_SHAPING = ("model_type", "num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps")


def resolve_model(name: str) -> str:
    """Return the argument of ``from_pretrained`` for ``name``: a folder, a hub name, or the folder of ``offline:...``.

    A URL is copied into the cache first (see :func:`hskd.remote.fetch`).

    Raises:
        HskdError: the model ``offline:...`` is not on this machine, or does not exist.
        CorruptionError: the weights of ``offline:minilm`` are missing, or differ from the published ones.
    """
    if is_url(name):
        return str(fetch(name))
    return str(offline_folder(name)) if is_offline(name) else with_home(name)


def checked_model(name: str) -> str:
    """Return :func:`resolve_model` of ``name``, after checking the files of a local folder.

    Raises:
        HskdError: a file is only a git-lfs pointer.
        CorruptionError: a file does not match its checksum (see :func:`hskd.artifacts.require_whole`).
    """
    place = resolve_model(name)
    folder = Path(place)
    if folder.is_dir():
        require_whole(folder)
        for path in sorted(path for part in (folder, *module_folders(folder)) for path in part.iterdir()):
            if path.suffix in _FILES_OF_MODELS and path.is_file() and path.stat().st_size < _POINTER_BYTES:
                with path.open("rb") as file:
                    if file.read(len(_POINTER)) == _POINTER:
                        raise HskdError(
                            f"{path}: is a git-lfs pointer, not the file that it points to. Run `git lfs pull` where "
                            "it came from, and copy it again."
                        )
    return place


def model_file(name: str, file: str) -> Path | None:
    """Return the path of a model's file, fetched from the hub if necessary; None if the model has no such file."""
    place = resolve_model(name)
    if Path(place).is_dir():
        path = Path(place) / file
        return path if path.is_file() else None
    try:
        cached = cached_file(place, file)
    except (OSError, ValueError):
        return None
    return None if cached is None else Path(cached)


def weight_files(name: str) -> list[Path]:
    """Return the weight files of a model.

    Raises:
        HskdError: there are none.
        CorruptionError: the index of several files is damaged, or a file that it names is missing.
    """
    for file in WEIGHTS:
        path = model_file(name, file)
        if path is None:
            continue
        if not file.endswith(".index.json"):
            return [path]
        index = read_json(path)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
            raise CorruptionError(f"{path}: expected a weight_map that names files; fetch the model again.")
        shards = [(shard, model_file(name, shard)) for shard in sorted(set(names.values()))]
        for shard, there in shards:
            if there is None:
                raise CorruptionError(f"{path}: names {shard}, which is not there; fetch the model again.")
        return [there for _, there in shards if there is not None]
    raise HskdError(f"{name}: no weights there; expected one of {', '.join(WEIGHTS)}.")


def model_content(name: str, modules: bool = False) -> str:
    """Return 16 hexadecimal digits that identify a model's weights, configuration and tokenizer, wherever they are.

    Files are hashed once per process (:func:`hskd.hashing.known_sha256`).

    Args:
        name: see :func:`resolve_model`.
        modules: whether to include the modules that follow the encoder in a folder of sentence-transformers. Only a
            sentence embedding reads them.

    Raises:
        HskdError: there are no weights.
    """
    names = (
        "config.json",
        PROJECTION_FILE,
        *(VOCABULARIES if Path(resolve_model(name)).is_dir() else VOCABULARIES[:1]),
    )
    others = [(file, path) for file in names if (path := model_file(name, file)) is not None]
    weights = [(path.name, path) for path in weight_files(name)]
    return fingerprint(
        [[file, known_sha256(path)] for file, path in (*weights, *others, *(_modules(name) if modules else ()))]
    )


def _modules(name: str) -> list[tuple[str, Path]]:
    """Return the files of a model's modules after the encoder, and the file that lists the modules."""
    try:
        folder = modules_folder(resolve_model(name))
    except HskdError:  # Only a sentence embedding reads modules, and it refuses such a model when it is loaded.
        folder = None
    if folder is None:
        return []
    parts = [
        path for part in module_folders(folder) for path in sorted(part.iterdir()) if path.suffix in _FILES_OF_MODELS
    ]
    return [(path.relative_to(folder).as_posix(), path) for path in (folder / MODULES, *parts) if path.is_file()]


def load_config(name: str) -> PretrainedConfig:
    """Load the configuration of a model (see :func:`resolve_model`).

    Raises:
        HskdError: the configuration is missing or cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(checked_model(name), trust_remote_code=False)
    except HskdError:
        raise
    except Exception as error:  # Malformed files make libraries raise errors of any type.
        raise HskdError(f"{name}: no configuration can be loaded from it: {reason(error)}") from None


def load_tokenizer(name: str, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model (see :func:`resolve_model`).

    ``config`` replaces a ``config.json`` that does not name the type of model.

    Raises:
        HskdError: the tokenizer is missing or cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checked_model(name), config=config, use_fast=True, trust_remote_code=False
        )
        known = set(tokenizer.get_vocab())
    except HskdError:
        raise
    except Exception as error:  # Malformed files make libraries raise errors of any type.
        raise HskdError(f"{name}: no tokenizer can be loaded from it: {reason(error)}") from None
    # If the files are missing, transformers makes a tokenizer that knows only its special tokens.
    if known <= set(tokenizer.all_special_tokens):
        raise HskdError(f"{name}: no tokenizer can be loaded from it: there is no vocabulary (tokenizer.json).")
    return tokenizer


def model_positions(name: str) -> int | None:
    """Return the number of tokens that a model has positions for; None if unknown.

    See :func:`hskd.tasks.positions.max_tokens`.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # A tokenizer without a model, or an error that loading the model reports.
        return None
    return max_tokens(config)


def load_classifier(name: str, task: Task, *, new_head: bool = False) -> PreTrainedModel:
    """Load a model with the head of a task, in fp32 and eval mode.

    Only tensors are read, from safetensors or an old ``pytorch_model.bin``. Code in the folder is never run.

    Args:
        name: see :func:`resolve_model`.
        task: its head defines the Auto class that loads the model.
        new_head: prepare the model for fine-tuning: draw the weights of the head, and of the pooler if the checkpoint
            has none, and name the outputs as the task's head does.

    Raises:
        HskdError: the model cannot be loaded, or lacks weights that may not be drawn.
    """
    fields = task.head.config_fields() if new_head else {}
    model, info = load_weights(name, task.head.auto_class, f"classifier for task {task.name}", **fields)
    if not new_head:
        require_every_weight(
            name,
            model,
            info,
            f"It is not a fine-tuned classifier; make one (hskd teacher --task {task.name} --model {name}).",
        )
    require_body(name, model, info)
    return model.eval()


def load_weights(name: str, auto_class: Any, what: str, **fields: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load a model in fp32, and return it with the loading information of ``transformers``.

    Only tensors are read, and the model's own code is never run. Weights that are missing or have another size are
    drawn. The caller has to refuse them by name.

    Args:
        name: see :func:`resolve_model`.
        auto_class: the Auto class that loads the model.
        what: names in the message what cannot be loaded.
        fields: fields of the configuration to set.

    Raises:
        HskdError: the model cannot be loaded.
    """
    try:
        model, info = auto_class.from_pretrained(
            checked_model(name),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            weights_only=True,
            trust_remote_code=False,
            **fields,
        )
    except HskdError:
        raise
    except Exception as error:  # Malformed files make libraries raise errors of any type.
        raise HskdError(f"{name}: no {what} can be loaded from it: {reason(error)}") from None
    return model, info


def require_every_weight(name: str, model: PreTrainedModel, info: Mapping[str, Any], remedy: str) -> None:
    """Refuse a model that was not loaded completely.

    Args:
        name: the model's name, for the message.
        model: the loaded model.
        info: the loading information that ``from_pretrained`` returns with ``output_loading_info``.
        remedy: full sentences that say what to do if a weight is missing.

    Raises:
        HskdError: a weight is missing from the model's files, or has another shape than in its configuration.
    """
    _require_shapes(name, model, info)
    if missing := sorted(info["missing_keys"]):
        raise HskdError(f"{name}: {_some(missing)} missing from its weights. {remedy}")


def require_body(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> bool:
    """Refuse a model that lacks a weight of its body. Only the weights of a pooler may be missing.

    Returns:
        False if the model has a pooler that was drawn because its weights are missing, otherwise True.

    Raises:
        HskdError: a weight is missing from the model's files, or has another shape than in its configuration.
    """
    # The weights of a model without a head have no prefix in their names.
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    _require_shapes(name, model, info, prefix)
    missing = sorted(key for key in info["missing_keys"] if key.startswith(prefix))
    if lacking := [key for key in missing if "pooler" not in key]:
        raise HskdError(
            f"{name}: {_some(lacking)} missing from its weights; expected a complete {model.config.model_type}."
        )
    return not missing


def _require_shapes(name: str, model: PreTrainedModel, info: Mapping[str, Any], prefix: str = "") -> None:
    for key, stored, expected in sorted(info["mismatched_keys"]):  # A set has no fixed order.
        if key.startswith(prefix):
            hint = ""
            if not key.startswith(f"{model.base_model_prefix}.") and tuple(expected)[:1] == (model.config.num_labels,):
                hint = f": the weights have {stored[0]} outputs there, and config.json says {expected[0]} labels"
            raise HskdError(
                f"{name}: {key} has shape {tuple(stored)}, and its config.json expects {tuple(expected)}{hint}; "
                "weights and configuration do not belong to the same model."
            )


def _some(names: Sequence[str]) -> str:
    """Return a few names, the number of further names, and the verb that fits."""
    few_names = ", ".join(names[:3])
    return (
        f"{few_names} and {len(names) - 3} more are"
        if len(names) > 3
        else f"{few_names} {'is' if len(names) == 1 else 'are'}"
    )


def save_classifier(model: PreTrainedModel, head: Head, folder: Path) -> None:
    """Save a model with the outputs of ``head``, in a form that ``pipeline`` interprets correctly.

    Raises:
        HskdError: the model cannot be written.
    """
    # The configuration may still have the problem type of the checkpoint that the model was made from.
    model.config.problem_type = head.config_fields().get("problem_type")
    with saving(folder):
        model.save_pretrained(folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer beside a model.

    Raises:
        HskdError: it cannot be written.
    """
    with saving(folder):
        tokenizer.save_pretrained(folder)


def reason(error: Exception) -> str:
    """Return the first line of a library's error about a model's files, or a clearer message for known errors."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return (
            "it needs code of its own (auto_map in its config.json), which is never run here; use a model of a type "
            "that transformers knows."
        )
    if isinstance(error, UnpicklingError) or "weights_only" in text.lower() or "Weights only load failed" in text:
        return (
            "its pytorch_model.bin holds other things than tensors, or is damaged; only tensors are read from such a "
            "file. Use weights in model.safetensors."
        )
    if isinstance(error, SafetensorError):
        return f"its file of weights is damaged ({text.splitlines()[0]}); copy or make it again."
    if isinstance(error, json.JSONDecodeError):
        return f"one of its .json files is not valid JSON ({text}); copy or make it again."
    return text.splitlines()[0] if text else type(error).__name__


@dataclass(eq=False)
class Teacher:
    """A fine-tuned teacher with its tokenizer. Its outputs are in the task's label order."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    fingerprint: str
    """Fingerprint of weights, architecture and label names."""

    @classmethod
    def load(cls, name: str, task: Task) -> Teacher:
        """Load a fine-tuned teacher and put its outputs into the task's label order.

        Raises:
            HskdError: the teacher cannot be loaded.
            MismatchError: its labels are not the task's labels.
        """
        model = load_classifier(name, task)
        try:
            task.head.align(model, f"{name} for task {task.name}")
        except MismatchError as error:
            raise MismatchError(f"{error} To fine-tune one: hskd teacher --task {task.name}.") from None
        return cls(name, model, load_tokenizer(name), task.head, model_fingerprint(model))

    def shape(self, student_layers: int) -> Shape:
        """Return the sizes that a spec needs, for a student of ``student_layers`` layers."""
        return Shape.of(self.model.config, student_layers)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over weights, architecture and label names, not over file formats."""
    digest = hashlib.sha256()
    config = {field: getattr(model.config, field, None) for field in _SHAPING}
    digest.update(canonical_json([config, list(output_names(model.config))]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
