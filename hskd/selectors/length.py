"""Length: which tokens of an example are kept, in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import All, LayerView, Registry, Selector, Tokens, mix

if TYPE_CHECKING:
    import numpy as np


class LengthSelector(Selector):
    """Base of the selectors along length: keeps the ``min(k, eligible)`` tokens of highest score in an example.

    Ties go to the earlier token; pads and tokens that are not eligible are never a fallback. A subclass says
    what a token's score is, and may say which tokens are eligible.
    """

    k: Annotated[int, Field(ge=1)] | All = "all"

    needs_attention: ClassVar[bool] = False
    """Whether :meth:`scores` reads the attention that ``[CLS]`` pays."""
    needs_gradient: ClassVar[bool] = False
    """Whether :meth:`scores` reads how much the teacher's prediction depends on each token."""
    needs_received: ClassVar[bool] = False
    """Whether :meth:`scores` reads the attention that each token receives."""
    needs_entropy: ClassVar[bool] = False
    """Whether the teacher must predict something of each token, and :meth:`scores` reads the entropy of that."""

    def eligible(self, tokens: Tokens) -> np.ndarray:
        """Which tokens may be kept, ``(M,)`` bool."""
        import numpy as np

        return np.ones(len(tokens.input_ids), bool)

    def scores(self, view: LayerView) -> np.ndarray:
        """Importance of each token of ``view``, ``(M,)``; the highest are kept."""
        raise NotImplementedError

    def kept(self, view: LayerView) -> LayerView:
        """The view of the kept tokens. A selector that averages tokens returns averages."""
        return view.take(self.select(view))

    def members(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray] | None:
        """Which tokens each kept one is the mean of; None where each is one token.

        Returns:
            Indices into the kept tokens, ascending, ``(P,)``, and positions in the example, ``(P,)``.
        """
        return None

    @property
    def stores_positions(self) -> bool:
        """Whether a store must say which tokens are kept, as nothing else tells."""
        return not self.keeps_all

    @property
    def keeps_all(self) -> bool:
        """Whether every real token is kept, so that nothing is ranked and no position needs to be stored."""
        return self.k == "all" and type(self).eligible is LengthSelector.eligible

    def attention_layer(self, teacher_layer: int, top_mapped_layer: int) -> int | None:
        """The teacher's attention layer (1-based) that ranks the tokens of ``teacher_layer``; None where none does.

        ``top_mapped_layer`` is the teacher layer of the same student layer under the mapping with ``L_top = L_T``.
        """
        return None

    def gradient_layer(self, teacher_layer: int) -> int | None:
        """The teacher layer whose gradient ranks the tokens of ``teacher_layer``; None where none does."""
        return teacher_layer if self.needs_gradient and self.k != "all" else None

    def received_layer(self, teacher_layer: int) -> int | None:
        """The attention layer (1-based) by whose attention received the tokens of ``teacher_layer`` are ranked."""
        return max(teacher_layer, 1) if self.needs_received and self.k != "all" else None

    def counts(self, tokens: Tokens) -> np.ndarray:
        """How many tokens of each example are kept, ``(B,)`` int64: the same in every layer."""
        import numpy as np

        running = np.concatenate([[0], np.cumsum(self.eligible(tokens))])
        counts = running[tokens.offsets[1:]] - running[tokens.offsets[:-1]]
        return counts if self.k == "all" else np.minimum(self.k, counts)

    def select(self, view: LayerView) -> np.ndarray:
        """Indices into the ``M`` tokens of those kept, in text order, ``(counts.sum(),)``.

        Raises:
            HskdError: the selector ranks by what is not known here.
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
                raise HskdError(f"length={self.selector} ranks tokens by {what}, and there is none here.")
        scores = self.scores(view)
        # Best first within each example; lexsort is stable, so equal scores stay in text order.
        best_first = np.lexsort((-scores.astype(np.float64), ~eligible, tokens.example))
        rank = np.arange(len(best_first)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        return np.sort(best_first[rank < np.repeat(self.counts(tokens), tokens.lengths)])


LENGTH: Registry[LengthSelector] = Registry("length")


@LENGTH.register
class Attention(LengthSelector):
    """The ``k`` tokens that ``[CLS]`` attends to most: after softmax, mean over heads (arXiv 2106.05691)."""

    selector: Literal["attention"] = "attention"
    att_map: Literal["same", "top"] = "same"
    """Whose attention ranks: that of the layer learnt from, or that of the mapping with ``L_top = L_T``."""

    needs_attention: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.attention is not None
        return view.attention

    @override
    def attention_layer(self, teacher_layer: int, top_mapped_layer: int) -> int | None:
        """Its own; the embedding output, which no attention made, is ranked by the first layer's."""
        if self.k == "all":
            return None  # nothing to rank
        return max(teacher_layer if self.att_map == "same" else top_mapped_layer, 1)


class _WithoutSep(LengthSelector):
    """Base of selectors that never keep ``[SEP]``."""

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        return tokens.input_ids != tokens.sep_id


@LENGTH.register
class AttentionNoSep(_WithoutSep, Attention):
    """As ``attention``, but ``[SEP]`` is never kept (arXiv 2106.05691)."""

    selector: Literal["attention_no_sep"] = "attention_no_sep"  # type: ignore[assignment]


@LENGTH.register
class Left(LengthSelector):
    """The first ``k`` tokens."""

    selector: Literal["left"] = "left"

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        return -view.tokens.position


@LENGTH.register
class Norm(_WithoutSep):
    """The ``k`` tokens whose hidden states are longest, by the Euclidean norm; never ``[SEP]``."""

    selector: Literal["norm"] = "norm"

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        norms: np.ndarray = view.hidden.double().norm(dim=1).cpu().numpy()
        return norms


@LENGTH.register
class Gradient(_WithoutSep):
    """The ``k`` tokens on whose hidden states the teacher's prediction depends most; never ``[SEP]``.

    The score is ``|h . dL/dh|`` for the state ``h`` of the layer learnt from, where ``L`` is the loss of the teacher's
    own prediction: minus the log-probability of the class that it predicts, or the number itself in a regression. With
    two classes, the entropy of the prediction ranks tokens alike, but vanishes where both are as likely.
    """

    selector: Literal["gradient"] = "gradient"

    needs_gradient: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.gradient is not None
        return view.gradient


@LENGTH.register
class Received(_WithoutSep):
    """The ``k`` tokens to which the most attention is paid, mean over heads and over all tokens; never ``[SEP]``.

    The attention is that of the layer learnt from; the embedding output is ranked by the first layer's. Unlike the
    attention that ``[CLS]`` pays, it says something where ``[CLS]`` is not what the teacher's head reads.
    """

    selector: Literal["received"] = "received"

    needs_received: ClassVar[bool] = True

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.received is not None
        return view.received


@LENGTH.register
class Entropy(LengthSelector):
    """The ``k`` words of which the teacher is least certain, each by its first token: the highest entropy.

    For teachers that predict something of each word. A token that begins no word has no prediction, and is never kept.
    """

    selector: Literal["entropy"] = "entropy"

    needs_entropy: ClassVar[bool] = True

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        if tokens.word_starts is None:
            raise HskdError(
                "length=entropy ranks tokens by the teacher's prediction for each, and this teacher predicts one thing "
                "of an example; use another length selector, such as attention_no_sep."
            )
        return tokens.word_starts

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        assert view.entropy is not None
        return view.entropy


@LENGTH.register
class Pool(_WithoutSep):
    """The means of ``k`` runs of about the same length that an example's tokens are cut into; ``[SEP]`` is in none.

    One run is the mean of the example. The student's states are averaged over the same tokens, which follow from the
    token ids, so that no position is stored.
    """

    selector: Literal["pool"] = "pool"

    @property
    def stores_positions(self) -> bool:
        """The runs follow from the token ids."""
        return False

    @override
    def select(self, view: LayerView) -> np.ndarray:
        """The first token of each run, where its mean stands."""
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
        # Of 7 tokens and 3 runs: 0 0 0 1 1 2 2.
        run = rank * counts[example] // sizes[example]
        return (np.cumsum(counts) - counts)[example] + run, tokens.position[chosen]

    @override
    def kept(self, view: LayerView) -> LayerView:
        """The mean of each run, of states as they are stored; it stands where its first token does."""
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
    """``[CLS]`` alone."""

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
    """``k`` tokens drawn for each example and layer; the draw depends on ``seed``, example id and layer alone."""

    selector: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0)] = 0

    @override
    def scores(self, view: LayerView) -> np.ndarray:
        import numpy as np

        tokens = view.tokens
        draw = mix(self.seed, view.layer, np.repeat(tokens.example_ids, tokens.lengths), tokens.position)
        return (draw >> np.uint64(11)).astype(np.float64)
