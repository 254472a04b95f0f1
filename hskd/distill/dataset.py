"""Training examples with their targets, as a torch data set of whole batches."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import override

from hskd.distill.source import KnowledgeSource
from hskd.tasks import BatchDataset, TokenizedSplit


class DistillationDataset(BatchDataset):
    """A tokenised split whose batches hold what a knowledge source says of them.

    Args:
        split: the training examples.
        source: where the targets come from. Worker processes can read them if it says ``in_workers``.
        part: hsk puts what is kept of the batch into it, as ``kept``; prediction puts the teacher's rows into it, as
            ``target``.
    """

    def __init__(
        self, split: TokenizedSplit, source: KnowledgeSource, part: Literal["hsk", "prediction"] = "hsk"
    ) -> None:
        super().__init__(split)
        self.source = source
        self.part = part
        self.in_workers = bool(getattr(source, "in_workers", False))

    @override
    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        batch = super().__getitems__(rows)
        if self.part == "hsk":
            return {**batch, "kept": self.source.kept(batch)}
        return {**batch, "target": self.source.targets(batch)}
