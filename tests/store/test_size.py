from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hskd.cli.app import app
from hskd.errors import HskdError
from hskd.selectors.precision import FP16
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.store.size import size_of, size_of_many
from hskd.store_format.layout import SHARD_BYTES, ArraySpec

BERT = Shape(student_layers=4, teacher_layers=12, teacher_width=768, vocab_size=30_522)
TARGET = ArraySpec("example", torch.float32, 3)
PAPER = HSKSpec.parse("1l_10t_0.1w")


@pytest.mark.parametrize("label", ["1l_2t_0.1w", "all_all_all", "2l_3t_0.5w,length=left,width=uniform"])
def test_is_what_a_store_takes(superset: Store, tmp_path: Path, label: str) -> None:
    spec = HSKSpec.parse(label)
    derived = derive(superset, spec, 2, tmp_path / "store")
    manifest = derived.manifest
    found = size_of(spec, manifest.shape(2), derived.lengths, manifest.origin.max_length, manifest.target.array)
    whole = spec.full().model_copy(update={"precision": FP16()})
    full = size_of(whole, manifest.shape(2), derived.lengths, manifest.origin.max_length, manifest.target.array)
    assert found.full_bytes == full.full_bytes == full.derived_bytes
    assert found.derived_bytes == sum(tensor.nbytes for shard in derived._shards for tensor in shard.values())
    assert found.kept_tokens == derived.counts.sum() and found.tokens == derived.lengths.sum()


def test_many_of_one_length_are_those_examples() -> None:
    one = size_of(PAPER, BERT, np.full(1000, 30), 128, TARGET)
    assert size_of_many(PAPER, BERT, 1000, 30, 128, TARGET) == one
    assert one.kept_tokens == 10_000  # 10 of 30
    assert one.fraction == pytest.approx(10 * 76 / (30 * 5 * 768))


def test_a_billion_sentences_need_no_memory() -> None:
    found = size_of_many(PAPER, BERT, 10**9, 25.5, 128, TARGET)
    assert found.tokens == 25_500_000_000
    # values and index bits of ten tokens, their positions, token ids, id, lengths, logits
    assert found.derived_bytes == 10**9 * (10 * (2 * 76 + 96 + 1) + 8 + 1 + 1 + 3 * 4) + 25_500_000_000 * 2
    assert found.shards == -(-found.derived_bytes // SHARD_BYTES)


def test_a_superset_of_a_quantiser_is_in_fp32() -> None:
    """Scales depend on the kept values, which a superset leaves open."""
    eight, full = (
        size_of_many(HSKSpec.parse(f"1l_10t_0.1w,precision={name}"), BERT, 100, 30, 128, TARGET)
        for name in ("int8", "fp32")
    )
    assert eight.superset_bytes == full.superset_bytes and eight.derived_bytes < full.derived_bytes


def test_short_examples_keep_what_they_have() -> None:
    assert size_of_many(PAPER, BERT, 100, 7.5, 128, TARGET).kept_tokens == 650  # all but [SEP]
    with pytest.raises(HskdError, match=r"--mean-tokens 200: expected 3 to 128"):
        size_of_many(PAPER, BERT, 100, 200, 128, TARGET)


def test_command(tmp_path: Path) -> None:
    arguments = ["store", "size", "--task", "mnli", "--teacher", "bert-base-uncased", "--spec", "1l_10t_0.1w"]
    counts = ["--examples", "392702", "--mean-tokens", "39.2", "--tokens-per-second", "1000"]
    shown = CliRunner().invoke(app, [*arguments, *counts], catch_exceptions=False).output
    assert "392,702" in shown and "4.28 at 1,000 tokens a second" in shown
    for wrong in ([], ["--examples", "5"], ["--data", "x", *counts]):
        with pytest.raises(HskdError, match="either --data, or --examples and --mean-tokens"):
            CliRunner().invoke(app, [*arguments, *wrong], catch_exceptions=False)
    with pytest.raises(HskdError, match="--teacher nobody/none: no configuration is on this disk"):
        CliRunner().invoke(
            app, [*arguments[:4], "--teacher", "nobody/none", *arguments[6:], *counts], catch_exceptions=False
        )


def test_addresses_take_64_bytes_an_example(superset: Store, tmp_path: Path) -> None:
    """docs/scaling.md states how much an open store holds in memory for any spec; the rest is memory-mapped."""
    store = derive(superset, HSKSpec.parse("2l_3t_0.1w"), 2, tmp_path / "store", shard_bytes=2**12)
    store.token_ids(store.rows(store.example_ids))
    store.kept(np.arange(len(store)))
    held: dict[int, int] = {}
    for value in vars(store).values():
        parts = value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else [value]
        held |= {id(part): part.nbytes for part in parts if isinstance(part, np.ndarray)}
    assert sum(held.values()) == 64 * len(store) + 8 * len(store.manifest.shards)


@pytest.mark.parametrize(
    ("examples", "mean_tokens", "labels", "written"),
    [
        (392_702, 39, 3, ["15.3 million", "970 MiB, 8 shards", "22.0 GiB, 177 shards"]),
        (8_000_000, 39, 3, ["312 million", "19.3 GiB, 155 shards", "448 GiB, 3,586 shards"]),
        (10**9, 25, 2, ["2.33 TiB, 19,059 shards", "35.1 TiB, 287,347 shards", "2,558 bytes", "38,567 bytes"]),
        (10**7, 25, 2, ["386 GB (2,874 shards)", "25.6 GB (191 shards)"]),
    ],
)
def test_docs_say_what_store_size_says(examples: int, mean_tokens: float, labels: int, written: list[str]) -> None:
    """Checks docs/scaling.md, whose tables are written by hand."""
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(words in text for words in written)
    target = ArraySpec("example", torch.float32, labels)
    found = size_of_many(PAPER, BERT, examples, mean_tokens, 128, target)
    numbers = {
        f"{found.tokens / 1e6:.3g} million",
        f"{found.derived_bytes / 2**20:.0f} MiB, {found.shards:,} shards",
        f"{found.derived_bytes / 2**30:.1f} GiB, {found.shards:,} shards",
        f"{found.derived_bytes / 2**40:.2f} TiB, {found.shards:,} shards",
        f"{found.derived_bytes / 1e9:.1f} GB ({found.shards:,} shards)",
        f"{found.derived_bytes / examples:,.0f} bytes",
        f"{found.superset_bytes / 2**30:.1f} GiB, {-(-found.superset_bytes // SHARD_BYTES):,} shards",
        f"{found.superset_bytes / 2**30:.0f} GiB, {-(-found.superset_bytes // SHARD_BYTES):,} shards",
        f"{found.superset_bytes / 2**40:.1f} TiB, {-(-found.superset_bytes // SHARD_BYTES):,} shards",
        f"{found.superset_bytes / 1e9:.0f} GB ({-(-found.superset_bytes // SHARD_BYTES):,} shards)",
        f"{found.superset_bytes / examples:,.0f} bytes",
    }
    assert set(written) <= numbers
