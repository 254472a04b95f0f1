"""docs/formats.md names every field and array that the code writes, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from hskd.artifacts import CHECKSUMS, RECIPE_FILE, SCHEMAS
from hskd.grid.search import COLUMNS as SEARCH_COLUMNS
from hskd.minimum.finished import ANSWER_FILE
from hskd.minimum.live import FIND_FILE
from hskd.results.folder import GRID_FILE, LABELS_FILE, PLANNED_FILE, TABLE_FILE
from hskd.selectors import PRECISION
from hskd.spec import HSKSpec, Shape
from hskd.store.writer import PLAN
from hskd.store_format.layout import (
    CODEC,
    MANIFEST,
    ArraySpec,
    derived_arrays,
    superset_arrays,
    with_alignment,
    with_scores,
)
from hskd.store_format.manifest import AlignmentNote, Manifest, Origin, ShardEntry
from hskd.students.base import STUDENT_FILE
from hskd.students.general.distillation import GENERAL_FILE
from hskd.tasks.tokenized import DTYPES
from hskd.teachers.finetune import METRICS_FILE
from hskd.teachers.loading import PROJECTION_FILE
from hskd.trials.result import PREDICTIONS_FILE, RESULT_FILE, StageRecord, TrialResult

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=384, vocab_size=30_522)
CLASSES = ArraySpec("example", torch.float32, 2)
TAGS = ArraySpec("token", torch.float32, 5)


def table(heading: str, header: str) -> dict[str, list[str]]:
    """The further cells of each row, by the name in its first, of a table below ``heading``."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    _, _, rest = section.partition(f"\n| {header} |")
    assert rest, f"{heading}: no table that begins with {header}"
    rows: dict[str, list[str]] = {}
    for line in rest.splitlines()[2:]:
        if not line.startswith("| "):
            break
        first, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        [name] = re.findall(r"`([^`]+)`", first)
        assert name not in rows, f"{heading}: {name} comes twice"
        rows[name] = cells
    return rows


@pytest.mark.parametrize(
    ("heading", "header", "model"),
    [
        ("### manifest.json", "field", Manifest),
        ("### manifest.json", "field of `origin`", Origin),
        ("### manifest.json", "field of `alignment`", AlignmentNote),
        ("### manifest.json", "field of a shard", ShardEntry),
        ("## Trial", "field", TrialResult),
        ("## Trial", "field of a stage", StageRecord),
    ],
)
def test_every_field_is_on_the_page(heading: str, header: str, model: type[BaseModel]) -> None:
    assert list(table(heading, header)) == list(model.model_fields)


def layouts() -> Iterable[dict[str, ArraySpec]]:
    """The arrays of stores of every kind."""
    for target in (CLASSES, TAGS):
        for precision in ("fp32", "fp16", "bf16"):
            for length, vocabulary in ((128, 30_522), (512, 250_002)):
                selector = PRECISION[precision]()  # type: ignore[call-arg]
                superset = superset_arrays(2, 2, 384, target, selector, length, vocabulary)
                superset = with_scores(superset, 1, 1, gold_losses=target is CLASSES)
                yield superset
                yield with_alignment(superset, length)
        for spec in (
            *(f"2l_8t_0.1w,precision={name}" for name in ("fp32", "fp16", "bf16", "int8", "int4", "int2")),
            "2l_8t_0.01w",
            "1l_3t_0.1w,width=pca",
            "1l_3t_0.1w,width=pq",
            "all_all_all",
        ):
            for length in (128, 512):
                yield derived_arrays(HSKSpec.parse(spec), SHAPE, length, target)


def test_every_array_of_a_shard_is_on_the_page_with_its_types() -> None:
    rows: dict[str, set[str]] = {}
    types: dict[str, set[str]] = {}
    for arrays in layouts():
        for name, array in arrays.items():
            rows.setdefault(name, set()).add(array.per)
            types.setdefault(name, set()).add(str(array.dtype).removeprefix("torch."))
    listed = table("### Arrays of a shard", "array")
    assert {name: set(cells[0].split(", ")) for name, cells in listed.items()} == rows
    assert {name: set(cells[2].split(", ")) for name, cells in listed.items()} == types


def test_the_columns_of_a_search_are_on_the_page() -> None:
    assert list(table("## Search and learning rates", "column")) == list(SEARCH_COLUMNS)


def test_the_arrays_of_tokenised_examples_are_on_the_page() -> None:
    listed = table("### Tokenised examples", "column")
    assert set(listed) == {"offsets", "cut", *DTYPES}
    assert {name: listed[name][1] for name in DTYPES} == {name: dtype.__name__ for name, dtype in DTYPES.items()}


FILES = (
    MANIFEST,
    CODEC,
    PLAN,
    CHECKSUMS,
    RECIPE_FILE,
    METRICS_FILE,
    STUDENT_FILE,
    GENERAL_FILE,
    PROJECTION_FILE,
    RESULT_FILE,
    PREDICTIONS_FILE,
    GRID_FILE,
    PLANNED_FILE,
    TABLE_FILE,
    LABELS_FILE,
    FIND_FILE,
    ANSWER_FILE,
)


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


def test_every_kind_of_artifact_has_its_folder_on_the_page() -> None:
    assert {f"work/{kind}" for kind in SCHEMAS} <= set(table("## Work folder", "folder"))
