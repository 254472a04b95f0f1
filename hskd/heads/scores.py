"""What the teacher's predictions say of examples and tokens, for the selectors that rank by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hskd.errors import HskdError
from hskd.heads.base import Head

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hskd.spec import HSKSpec


def require_ranks(spec: HSKSpec | None, head: Head) -> None:
    """Refuse a spec whose selectors rank by what predictions of this head's kind do not have.

    Args:
        spec: what is kept; None for nothing.
        head: the teacher's head.

    Raises:
        HskdError: names the selector, and says what to use.
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
    """The gold labels of a split; ``what`` opens the message that there are none.

    Raises:
        HskdError: there are none.
    """
    if labels is None:
        raise HskdError(
            f"{what}: ranks examples by the loss of their gold label under the teacher, and the training examples have "
            "no labels (augmented sentences never do); use examples=random or examples=entropy."
        )
    return labels


def entropies_of_tokens(head: Head, rows: torch.Tensor, word_starts: np.ndarray) -> np.ndarray:
    """The entropy of the prediction for each token, ``(M,)`` float64; 0 for one that begins no word.

    Args:
        head: says what a row predicts.
        rows: the teacher's, one for each token that begins a word, ``(R, C)``.
        word_starts: which tokens do, ``(M,)`` bool.

    Raises:
        HskdError: a row predicts no distribution.
    """
    import numpy as np

    entropy = np.zeros(len(word_starts))
    entropy[word_starts] = head.entropies(rows).cpu().numpy()
    return entropy


def example_means(values: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """The mean over each example's rows of the numbers ``values`` ``(R,)``, NaNs left out; 0 for one without any.

    Args:
        values: a number for each row, the examples' end to end.
        rows: how many rows each example has, ``(B,)``.
    """
    import numpy as np

    numbers = values.double().cpu().numpy()
    there = ~np.isnan(numbers)
    example = np.repeat(np.arange(len(rows)), rows)[there]
    totals = np.bincount(example, numbers[there], minlength=len(rows))
    return totals / np.maximum(np.bincount(example, minlength=len(rows)), 1)
