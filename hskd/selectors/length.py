"""Length: which tokens of an example are kept in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import All, LayerView, Registry, Selector, Tokens, mix

if TYPE_CHECKING:
    import numpy as np


class LengthSelector(Selector):
    """Base class of the selectors along length. It keeps the ``min(k, eligible)`` tokens of highest score per example.

    Ties go to the earlier token. Padding and ineligible tokens are never kept, even if there are fewer than ``k``
    others. A subclass defines :meth:`scores`, and may define :meth:`eligible`.
    """

    k: Annotated[int, Field(ge=1)] | All = "all"

    needs_attention: ClassVar[bool] = False
    """Whether :meth:`scores` reads the attention that ``[CLS]`` pays."""
    needs_gradient: ClassVar[bool] = False
    """Whether :meth:`scores` reads how much the teacher's prediction depends on each token."""
    needs_received: ClassVar[bool] = False
    """Whether :meth:`scores` reads the attention that each token receives."""
    needs_entropy: ClassVar[bool] = False
    """Whether the teacher must predict each word, and :meth:`scores` reads the entropy of these predictions."""

    def eligible(self, tokens: Tokens) -> np.ndarray:
        """Return which tokens may be kept, ``(M,)`` bool."""
        import numpy as np

        return np.ones(len(tokens.input_ids), bool)

    def scores(self, view: LayerView) -> np.ndarray:
        """Return the importance of each token of ``view``, ``(M,)``. The highest are kept."""
        raise NotImplementedError

    def kept(self, view: LayerView) -> LayerView:
        """Return a view of the kept tokens, or of averages if the selector averages tokens."""
        return view.take(self.select(view))

    def members(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray] | None:
        """Return which tokens are averaged into each kept token; None if kept tokens are not averages.

        Returns:
            For each of the ``P`` averaged tokens, the index of its kept token, ascending, ``(P,)``, and its position
            in the example, ``(P,)``.
        """
        return None

    @property
    def stores_positions(self) -> bool:
        """Whether a store must hold the positions of kept tokens, because they do not follow from the token ids."""
        return not self.keeps_all

    @property
    def keeps_all(self) -> bool:
        """Whether every real token is kept. Then no token is ranked and no position is stored."""
        return self.k == "all" and type(self).eligible is LengthSelector.eligible

    def attention_layer(self, teacher_layer: int, top_mapped_layer: int) -> int | None:
        """Return the attention layer (1-based) that ranks the tokens of ``teacher_layer``; None if no layer does.

        ``top_mapped_layer`` is the teacher layer of the same student layer under the mapping with ``L_top = L_T``.
        """
        return None

    def gradient_layer(self, teacher_layer: int) -> int | None:
        """Return the teacher layer whose gradient ranks the tokens of ``teacher_layer``; None if no layer does."""
        return teacher_layer if self.needs_gradient and self.k != "all" else None

    def received_layer(self, teacher_layer: int) -> int | None:
        """Return the attention layer (1-based) whose received attention ranks ``teacher_layer``'s tokens, or None."""
        return max(teacher_layer, 1) if self.needs_received and self.k != "all" else None

    def counts(self, tokens: Tokens) -> np.ndarray:
        """Return how many tokens of each example are kept in every layer, ``(B,)`` int64."""
        import numpy as np

        running = np.concatenate([[0], np.cumsum(self.eligible(tokens))])
        counts = running[tokens.offsets[1:]] - running[tokens.offsets[:-1]]
        return counts if self.k == "all" else np.minimum(self.k, counts)

    def select(self, view: LayerView) -> np.ndarray:
        """Return the indices of the kept tokens, in text order, ``(counts.sum(),)``.

        Raises:
            HskdError: ``view`` lacks a score that the selector needs.
        """
        import numpy as np

        tokens = view.tokens
        eligible = self.eligible(tokens)
        if self.k == "all":
            return np.flatnonzero(eligible)
        for what, needed, known in (
            ("attention", self.needs_attention, view.attention),
            ("the teacher's gradient", self.needs_gradient, view.gradient),
            ("the attention that they receive", self.needs_received, view.received),
            ("the teacher's prediction for each", self.needs_entropy, view.entropy),
        ):
            if needed and known is None:
                raise HskdError(f"length={self.selector} ranks tokens by {what}, which is not available here.")
        scores = self.scores(view)
        # Best first within each example. lexsort is stable, so equal scores stay in text order.
        best_first = np.lexsort((-scores.astype(np.float64), ~eligible, tokens.example))
        rank = np.arange(len(best_first)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        return np.sort(best_first[rank < np.repeat(self.counts(tokens), tokens.lengths)])


LENGTH: Registry[LengthSelector] = Registry("length")


@LENGTH.register
class Attention(LengthSelector):
    """Keeps the ``k`` tokens that ``[CLS]`` attends to most.

    The attention is that after softmax, averaged over heads (arXiv 2106.05691).
    """

    selector: Literal["attention"] = "attention"
    att_map: Literal["same", "top"] = "same"
    """The attention layer that ranks: ``same`` is the layer learnt from, ``top`` that of the mapping ``L_top=L_T``."""

    needs_attention: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.attention is not None
        return view.attention

    @override
    def attention_layer(self, teacher_layer: int, top_mapped_layer: int) -> int | None:
        """Return the layer that ``att_map`` selects. Layer 1 ranks the embedding output, which has no attention."""
        if self.k == "all":
            return None  # nothing to rank
        return max(teacher_layer if self.att_map == "same" else top_mapped_layer, 1)


class _WithoutSep(LengthSelector):
    """Base class of selectors that never keep ``[SEP]``."""

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        return tokens.input_ids != tokens.sep_id


@LENGTH.register
class AttentionNoSep(_WithoutSep, Attention):
    """Same as ``attention``, but never keeps ``[SEP]`` (arXiv 2106.05691)."""

    selector: Literal["attention_no_sep"] = "attention_no_sep"  # type: ignore[assignment]


@LENGTH.register
class Left(LengthSelector):
    """Keeps the first ``k`` tokens."""

    selector: Literal["left"] = "left"

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        return -view.tokens.position


@LENGTH.register
class Norm(_WithoutSep):
    """Keeps the ``k`` tokens whose hidden states have the largest Euclidean norm; never ``[SEP]``."""

    selector: Literal["norm"] = "norm"

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        norms: np.ndarray = view.hidden.double().norm(dim=1).cpu().numpy()
        return norms


@LENGTH.register
class Gradient(_WithoutSep):
    """Keeps the ``k`` tokens on whose hidden states the teacher's prediction depends most; never ``[SEP]``.

    The score is ``|h . dL/dh|`` for the hidden state ``h`` of the layer learnt from. ``L`` is the loss of the teacher's
    own prediction: the negative log-probability of the predicted class, or the predicted number in a regression. With
    two classes, the gradient of the entropy would rank an example's tokens in the same order, but it vanishes if both
    classes are equally likely.
    """

    selector: Literal["gradient"] = "gradient"

    needs_gradient: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.gradient is not None
        return view.gradient


@LENGTH.register
class Received(_WithoutSep):
    """Keeps the ``k`` tokens that receive the most attention, averaged over heads and over all tokens; never ``[SEP]``.

    The attention is that of the layer learnt from. Layer 1 ranks the embedding output. Unlike the attention that
    ``[CLS]`` pays, this score is also meaningful if the teacher's head does not read ``[CLS]``.
    """

    selector: Literal["received"] = "received"

    needs_received: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.received is not None
        return view.received


@LENGTH.register
class Entropy(LengthSelector):
    """Keeps the first tokens of the ``k`` words on which the teacher is least certain: those of highest entropy.

    It needs a teacher that predicts each word. A token that begins no word has no prediction, and is never kept.
    """

    selector: Literal["entropy"] = "entropy"

    needs_entropy: ClassVar[bool] = True

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        if tokens.word_starts is None:
            raise HskdError(
                "length=entropy ranks tokens by the teacher's prediction for each, and this teacher makes one "
                "prediction per example; use another length selector, such as attention_no_sep."
            )
        return tokens.word_starts

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.entropy is not None
        return view.entropy


@LENGTH.register
class Pool(_WithoutSep):
    """Keeps ``k`` means per example: its tokens, without ``[SEP]``, are cut into ``k`` runs of about equal length.

    With ``k = 1``, this is the mean over the example. The student's hidden states are averaged over the same tokens.
    The runs follow from the token ids, so no position is stored.
    """

    selector: Literal["pool"] = "pool"

    @property
    def stores_positions(self) -> bool:
        """False, because the runs follow from the token ids."""
        return False

    @override
    def select(self, view: LayerView) -> np.ndarray:
        """Return the index of the first token of each run. The run's mean takes the position of this token."""
        import numpy as np

        run, _ = self.members(view.tokens)
        first: np.ndarray = np.flatnonzero(self.eligible(view.tokens))[np.unique(run, return_index=True)[1]]
        return first

    @override
    def members(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        chosen = np.flatnonzero(self.eligible(tokens))
        example = tokens.example[chosen]
        counts = self.counts(tokens)
        sizes = np.bincount(example, minlength=len(counts))
        rank = np.arange(len(chosen)) - (np.cumsum(sizes) - sizes)[example]
        # For example, 7 tokens and 3 runs give 0 0 0 1 1 2 2.
        run = rank * counts[example] // sizes[example]
        return (np.cumsum(counts) - counts)[example] + run, tokens.position[chosen]

    @override
    def kept(self, view: LayerView) -> LayerView:
        """Return a view of the mean of each run, over hidden states rounded as for storage."""
        import numpy as np
        import torch

        tokens = view.tokens
        run, _ = self.members(tokens)
        chosen = np.flatnonzero(self.eligible(tokens))
        sizes = np.bincount(run)
        device = view.states.device
        sums = torch.zeros((len(sizes), view.states.shape[1]), dtype=torch.float64, device=device)
        members = view.hidden[torch.from_numpy(chosen).to(device)].double()
        sums.index_add_(0, torch.from_numpy(run).to(device), members)
        means = sums / torch.from_numpy(sizes).to(device)[:, None]
        return LayerView(tokens.take(self.select(view)), view.layer, means.float(), rounding=view.rounding)


@LENGTH.register
class Cls(LengthSelector):
    """Keeps only ``[CLS]``."""

    selector: Literal["cls"] = "cls"
    k: Literal[1] = 1

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        return tokens.position == 0

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        return -view.tokens.position


@LENGTH.register
class Random(LengthSelector):
    """Keeps ``k`` random tokens per example and layer, drawn by a hash of ``seed``, layer, example id and position."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        import numpy as np

        tokens = view.tokens
        draw = mix(self.seed, view.layer, np.repeat(tokens.example_ids, tokens.lengths), tokens.position)
        return (draw >> np.uint64(11)).astype(np.float64)
