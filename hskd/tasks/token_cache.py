"""Arrow cache of tokenised examples: a few flat arrays per split, verified and memory-mapped on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from numpy.typing import NDArray

from hskd.artifacts import CHECKSUMS, require_whole, seal
from hskd.errors import CorruptionError


def write_arrays(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Save one-dimensional arrays as an Arrow data set in ``folder``, with the SHA-256 of each file."""
    # A single row holds each array whole. Arrow files consist of batches of rows, and an array that spanned batches
    # could not be viewed without a copy.
    features = datasets.Features(
        {name: datasets.List(datasets.Value(str(array.dtype))) for name, array in arrays.items()}
    )
    columns = {
        name: pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), pa.array(array))
        for name, array in arrays.items()
    }
    table = datasets.table.InMemoryTable(pa.table(columns, schema=features.arrow_schema))
    datasets.Dataset(table).save_to_disk(folder, num_shards=1)
    seal(folder)


def read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays saved in ``folder``, as read-only views of its memory-mapped file.

    Raises:
        CorruptionError: a file is missing or differs from what was written.
    """
    if not (folder / CHECKSUMS).is_file():
        raise CorruptionError(f"{folder / CHECKSUMS}: missing. Delete {folder} to tokenise again.")
    require_whole(folder)
    table = datasets.load_from_disk(str(folder)).data
    return {name: table.column(name).chunk(0).flatten().to_numpy() for name in table.column_names}
