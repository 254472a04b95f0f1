"""What may be said of a task beside its data. This module is light: the command line's help needs no more."""

from __future__ import annotations

from typing import Literal

LabelType = Literal["classification", "regression", "multilabel"]
LABEL_TYPES: tuple[LabelType, ...] = ("classification", "regression", "multilabel")

MAX_TOKENS = 2**16 - 1
"""Tokens of one example that a store can count: lengths and positions take 16 bits."""
