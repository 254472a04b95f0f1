"""The shapes of the timed models, and the sizes of runs: full, quick, or tiny for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError

if TYPE_CHECKING:
    import torch

STUDENTS = ("tinybert4", "rosita6")
SPEC = "1l_10t_0.1w"
"""Default HSK spec of a case."""
PAPER_SHAPES: dict[str, dict[str, Any]] = {
    "teacher": {},
    "tinybert4": {
        "num_hidden_layers": 4,
        "hidden_size": 312,
        "num_attention_heads": 12,
        "intermediate_size": 1200,
    },
    "rosita6": {
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "attention_head_size": 64,
        "intermediate_size": 768,
        "embedding_rank": 128,
    },
}
"""Differences from BERT-base's configuration (12 layers, width 768, 12 heads, FFN 3072, vocabulary 30,522)."""
TINY_SHAPES: dict[str, dict[str, Any]] = {
    "teacher": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "tinybert4": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "rosita6": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "attention_head_size": 8,
        "intermediate_size": 24,
        "embedding_rank": 8,
    },
}


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        name: full, quick or tiny.
        shapes: fields of the models' configurations.
        lengths: length settings of the training suite (see :mod:`hskd.benchmarks.data`).
        extraction_lengths: length settings of the extraction suite.
        batch: examples in a batch.
        steps: batches in a turn, by length setting. A turn gives one recorded time.
        accelerator_steps: fewest batches in a turn on an accelerator. Filling and emptying its queue takes time at the
            start and the end of a turn.
        rounds: fewest and most rounds. In a round, every case of a group has one turn.
        seconds: time for the rounds of a group, which decides their number.
        warmup_steps: fewest steps before the first recorded turn.
        matmul: side of the square matrices whose product gives the peak.
        store_examples: examples in the store whose reading is timed.
        size_examples: examples in the stores whose size is measured.
        store_mebibytes: sizes of the two stores between which memory is compared.
        scale: numbers of stored examples.
        trials: numbers of trials of the grid.
    """

    name: str
    shapes: dict[str, dict[str, Any]] = field(default_factory=lambda: PAPER_SHAPES)
    lengths: tuple[str, ...] = ("pad64", "pad128", "cola", "sst2", "rte")
    extraction_lengths: tuple[str, ...] = ("cola", "rte")
    batch: int = 32
    steps: dict[str, int] = field(
        default_factory=lambda: {"pad64": 1, "pad128": 1, "cola": 6, "sst2": 6, "rte": 2, "short": 8}
    )
    accelerator_steps: int = 16
    rounds: tuple[int, int] = (5, 15)
    seconds: float = 40.0
    warmup_steps: int = 3
    matmul: int = 2048
    store_examples: int = 100_000
    size_examples: int = 4_000
    store_mebibytes: tuple[int, int] = (40, 4096)
    scale: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    trials: tuple[int, ...] = (3, 6, 12)

    def turn(self, lengths: str, device: torch.device) -> int:
        """Return the number of batches in a turn of a length setting on a device."""
        steps = self.steps.get(lengths, 1)
        return steps if device.type == "cpu" else max(steps, self.accelerator_steps)


SIZES = {
    sizes.name: sizes
    for sizes in (
        Sizes("full"),
        Sizes(
            "quick",
            lengths=("pad64",),
            extraction_lengths=("cola",),
            batch=8,
            steps={"pad64": 1, "cola": 4, "short": 4},
            rounds=(3, 3),
            seconds=0.0,
            warmup_steps=2,
            store_examples=20_000,
            size_examples=1_000,
            store_mebibytes=(40, 512),
            scale=(1_000, 100_000),
            trials=(3,),
        ),
        Sizes(
            "tiny",
            shapes=TINY_SHAPES,
            lengths=("cola",),
            extraction_lengths=("cola",),
            batch=4,
            steps={"pad64": 1, "cola": 2, "short": 2},
            accelerator_steps=2,
            rounds=(1, 1),
            seconds=0.0,
            warmup_steps=1,
            matmul=64,
            store_examples=100,
            size_examples=100,
            store_mebibytes=(1, 2),
            scale=(50, 100),
            trials=(3,),
        ),
    )
}


def chosen_sizes(name: str, lengths: Sequence[str] | None = None, batch: int | None = None) -> Sizes:
    """Return the sizes of a name, with other length settings of the training suite or another batch if given.

    Raises:
        HskdError: a length setting is unknown.
    """
    sizes = SIZES[name]
    for setting in lengths or ():
        if setting not in (known := SIZES["full"].lengths):
            raise HskdError(f"--lengths {setting}: no such setting; there are {', '.join(known)}.")
    return replace(sizes, lengths=tuple(lengths or sizes.lengths), batch=batch or sizes.batch)
