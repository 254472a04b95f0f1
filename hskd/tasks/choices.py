"""Choices that a user may make about a task. This module imports nothing heavy, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Literal

LabelType = Literal["classification", "regression", "multilabel"]
LABEL_TYPES: tuple[LabelType, ...] = ("classification", "regression", "multilabel")

MAX_TOKENS = 2**16 - 1
"""The most tokens that an example in a store can have: lengths and positions take 16 bits."""
