"""Scores of examples and tokens from the teacher's predictions, for the selectors that rank by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hskd.errors import HskdError
from hskd.heads.base import Head

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hskd.spec import HSKSpec


def require_ranks(spec: HSKSpec | None, head: Head) -> None:
    """Refuse a spec whose selectors rank by scores that predictions of this kind of head do not have.

    Args:
        spec: the spec of the HSK to keep; None for no HSK.
        head: the teacher's head.

    Raises:
        HskdError: a selector cannot be used; the message says which, and what to use instead.
    """
    if spec is None:
        return
    kind = type(head)
    if spec.length.needs_entropy and (head.target().per != "token" or kind.entropies is Head.entropies):
        raise HskdError(
            f"length={spec.length.selector}: ranks tokens by the teacher's prediction for each, and a task of kind "
            f"{head.kind} has none for each token; use another length selector, such as attention_no_sep."
        )
    if spec.examples.keeps_all:
        return
    if spec.examples.needs_losses and kind.gold_losses is Head.gold_losses:
        raise HskdError(
            f"examples={spec.examples.selector}: ranks examples by the loss of their gold label under the teacher, and "
            f"a task of kind {head.kind} has none; use examples=random."
        )
    if spec.examples.needs_entropies and kind.entropies is Head.entropies:
        raise HskdError(
            f"examples={spec.examples.selector}: ranks examples by the entropy of the teacher's prediction, and a task "
            f"of kind {head.kind} predicts no distribution; use examples=random."
        )


def require_labels(labels: np.ndarray | None, what: str) -> np.ndarray:
    """Return the gold labels of a split, or refuse to go on without them. The message begins with ``what``.

    Raises:
        HskdError: there are no gold labels.
    """
    if labels is None:
        raise HskdError(
            f"{what}: ranks examples by the loss of their gold label under the teacher, and the training examples have "
            "no labels (augmented sentences never do); use examples=random or examples=entropy."
        )
    return labels


def entropies_of_tokens(head: Head, rows: torch.Tensor, word_starts: np.ndarray) -> np.ndarray:
    """Return the entropy of the prediction for each token, ``(M,)`` float64; 0 for tokens that begin no word.

    Args:
        head: the head, which defines what a row predicts.
        rows: the teacher's rows, one for each token that begins a word, ``(R, C)``.
        word_starts: whether each token begins a word, ``(M,)`` bool.

    Raises:
        HskdError: the rows do not predict a distribution.
    """
    import numpy as np

    entropy = np.zeros(len(word_starts))
    entropy[word_starts] = head.entropies(rows).cpu().numpy()
    return entropy


def example_means(values: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """Return the mean of ``values`` over each example's rows, ``(B,)``, without NaNs; 0 for an example without values.

    Args:
        values: one number for each row, ``(R,)``, with the rows of all examples concatenated.
        rows: number of rows of each example, ``(B,)``.
    """
    import numpy as np

    numbers = values.double().cpu().numpy()
    there = ~np.isnan(numbers)
    example = np.repeat(np.arange(len(rows)), rows)[there]
    totals = np.bincount(example, numbers[there], minlength=len(rows))
    return totals / np.maximum(np.bincount(example, minlength=len(rows)), 1)
