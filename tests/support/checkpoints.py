"""Checkpoints in their published formats, of models small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerBase

SIZES = {
    "vocab_size": 200,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def save_old_checkpoint(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    fit_dense: int | None = 32,
    without: Container[str] = (),
    seed: int = 0,
    **sizes: Any,
) -> dict[str, Tensor]:
    """Save a general student in the format of TinyBERT's authors, and return the contents of its file of weights.

    The folder holds a ``pytorch_model.bin`` of a pre-training model with ``gamma`` and ``beta`` in LayerNorms and a
    ``fit_dense`` to the teacher's width, a ``config.json`` without a model type, and a ``vocab.txt``.

    Args:
        folder: folder of the checkpoint.
        tokenizer: gives the vocabulary; None leaves it out.
        fit_dense: ``d_T``; None leaves it out.
        without: names of weights to leave out.
        seed: of the random weights.
        sizes: fields of the configuration that differ from ``SIZES``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = SIZES | sizes
    torch.manual_seed(seed)
    model = BertForPreTraining(BertConfig(**fields, initializer_range=0.2))
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in model.state_dict().items()
    }
    if fit_dense is not None:
        weights["fit_dense.weight"] = torch.randn(fit_dense, fields["hidden_size"])
        weights["fit_dense.bias"] = torch.randn(fit_dense)
    weights = {name: weight for name, weight in weights.items() if name not in without}
    # Published files are older than the zip format that torch writes now.
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "config.json").write_text(json.dumps(fields | {"cell": {}, "emb_size": 312, "pre_trained": ""}))
    if tokenizer is not None:
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary) + "\n", encoding="utf-8")
    return weights


def as_now(name: str) -> str:
    """Return today's name of a weight of :func:`save_old_checkpoint`."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
