"""The longest example that a model's position embeddings allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hskd.encoders import base_type
from hskd.errors import HskdError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hskd.tasks.tokenized import TokenizedSplit

_AFTER_PAD = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types that number positions from the pad's id on, so that their first positions are never used."""
_RELATIVE = ("deberta", "deberta-v2", "funnel", "t5", "mt5", "xlnet", "transfo-xl")
"""Model types with relative positions, which have no limit."""


def max_tokens(config: PretrainedConfig) -> int | None:
    """Return the number of tokens that a model of this configuration can take; None if there is no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if config.model_type in _RELATIVE and not getattr(config, "position_biased_input", False):
        return None
    if not isinstance(positions, int) or positions < 1:
        return None
    if base_type(config) in _AFTER_PAD:
        positions -= (config.pad_token_id or 0) + 1
    return positions


def require_positions(config: PretrainedConfig, splits: Mapping[str, TokenizedSplit], model: str) -> None:
    """Refuse examples that are longer than a model can take.

    Raises:
        HskdError: an example is too long. The message names the model, the split, both lengths, and the option to use.
    """
    limit = max_tokens(config)
    for name, split in splits.items():
        longest = int(split.lengths.max(initial=0))
        if limit is not None and longest > limit:
            raise HskdError(
                f"{model}: has positions for {limit} tokens, and an example of {name} has {longest}; give "
                f"--max-length {limit} or less (max_length), here and where the teacher and its store were made."
            )
