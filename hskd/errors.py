"""The errors a user can act on."""

from __future__ import annotations


class HskdError(Exception):
    """Something the user can mend: the message names what is wrong, what was expected, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class MismatchError(HskdError):
    """Two things that must belong together (store, teacher, tokenizer, data) do not."""


class CorruptionError(HskdError):
    """A file on disk is not what was written there."""
