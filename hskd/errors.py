"""Errors that a user can act on, and short forms of values for their messages."""

from __future__ import annotations

import reprlib
from typing import Any


class HskdError(Exception):
    """An error that the user can fix. The message says what is wrong, what was expected, and what to do.

    The command line prints the message without a traceback, and exits with code 2.
    """


class MismatchError(HskdError):
    """Things that must belong together, such as store, teacher, tokenizer and data, do not."""


class CorruptionError(HskdError):
    """A file is damaged, or was changed after it was written."""


class _Brief(reprlib.Repr):
    """A ``repr`` of bounded length that does not fail on deep nesting or on integers too long for Python to print."""

    def repr_int(self, x: int, level: int) -> str:
        """Return the digits of an integer, or its size in bits if it is long."""
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length():,} bits"


_BRIEF = _Brief()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 3


def brief(value: Any) -> str:
    """Return the ``repr`` of ``value`` for a message, shortened if it is long or deeply nested."""
    return _BRIEF.repr(value)


def cut(text: str) -> str:
    """Return ``text`` without quotes, shortened in the middle if it is longer than 160 characters."""
    return text if len(text) <= 160 else f"{text[:77]}...{text[-77:]}"
