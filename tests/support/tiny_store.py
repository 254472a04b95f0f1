"""A store of a few hundred bytes, made without a teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from hskd.store.reader import Store
from hskd.store.writer import write_store
from hskd.store_format.manifest import Manifest, Origin, TargetArray

SHARDS = 3


def make_store(folder: Path, seed: int = 0) -> Store:
    """Return a superset of 6 examples of 4 tokens and a teacher of 1 layer of width 8, in 3 shards. No teacher runs."""
    origin = Origin(
        teacher=f"teacher {seed}",
        tokenizer="tokenizer",
        data="data",
        task="custom",
        head="classification",
        label_names=("no", "yes"),
        max_length=8,
        dtype="fp32",
    )
    plan = Manifest(
        kind="superset",
        origin=origin,
        teacher_layers=1,
        teacher_width=8,
        vocab_size=100,
        target=TargetArray(per="example", dtype="float32", elements=2),
        special_ids={"cls": 2, "sep": 3, "pad": 0},
        layers=(1,),
        mapped=(1,),
        precision="fp32",
        examples=6,
    )

    def make_shard(span: range) -> dict[str, torch.Tensor]:
        torch.manual_seed(span.start + 100 * seed)
        return {
            "example_ids": torch.tensor(span),
            "lengths": torch.full((2,), 4, dtype=torch.uint8),
            "target": torch.randn(2, 2),
            "token_ids": torch.tensor([2, 7, 8, 3] * 2).to(torch.uint16),
            "values": torch.randn(8, 8),
        }

    write_store(folder, plan, [range(i, i + 2) for i in (0, 2, 4)], 10_000, make_shard)
    return Store.open(folder)
