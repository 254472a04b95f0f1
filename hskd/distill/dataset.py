"""PyTorch dataset of whole batches: training examples with their targets."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import override

from hskd.distill.source import KnowledgeSource
from hskd.tasks import BatchDataset, TokenizedSplit
from hskd.tasks.batches import TargetsInShape


class DistillationDataset(BatchDataset):
    """Tokenised split whose batches include targets from a knowledge source.

    Args:
        split: the training examples.
        source: where the targets come from. Worker processes can read it if its attribute ``in_workers`` is True.
        part: ``hsk`` adds the kept HSK to the batch, as ``kept``; ``prediction`` adds the teacher's rows, as
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

    @override
    def targets_in_shape(self) -> TargetsInShape | None:
        if super().targets_in_shape() is None or not hasattr(self.source, "in_shape"):
            return None
        knowledge = self.source.in_shape(self.split)
        if knowledge is None:
            return None
        if self.part == "hsk":
            return lambda rows, inputs: {"kept": knowledge.kept(rows, inputs)}
        return lambda rows, inputs: {"target": knowledge.targets(rows, inputs)}
