"""The errors a user can act on."""

from __future__ import annotations

import reprlib
from typing import Any


class HskdError(Exception):
    """Something the user can mend: the message names what is wrong, what was expected, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class MismatchError(HskdError):
    """Two things that must belong together (store, teacher, tokenizer, data) do not."""


class CorruptionError(HskdError):
    """A file on disk is not what was written there."""


class _Brief(reprlib.Repr):
    """``repr`` that neither fails nor grows: of deep nesting, of integers beyond the digits that Python prints."""

    def repr_int(self, x: int, level: int) -> str:
        """An integer; one of many digits by its size."""
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length():,} bits"


_BRIEF = _Brief()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 3


def brief(value: Any) -> str:
    """``value`` as a message shows it: as ``repr`` does, cut in the middle where it is long or deep."""
    return _BRIEF.repr(value)


def cut(text: str) -> str:
    """``text`` without quotes, cut in the middle where it is long."""
    return text if len(text) <= 160 else f"{text[:77]}...{text[-77:]}"
