"""Compare how fast file formats read random batches: Arrow, safetensors and .npy.

The script writes the same values in each format, opens them from disk, and reads random batches, as training from a
store does. An example has 1 layer x 10 tokens x 38 neurons in fp16: the paper's ``1l_10t_0.1h`` of a teacher of width
384. The formats are:

* Arrow, through ``datasets``: a column of fixed shape and a column of lists, returned as numpy and as torch;
* safetensors, memory-mapped by ``safe_open`` and indexed as in ``hskd.store.reader``;
* a ``.npy`` file, memory-mapped by numpy.

The files are in the page cache, so this measures the formats and not the disk.

    python benchmarks/store_format.py --rows 100000 --batches 500
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

from hskd.cli.progress import tables

LAYERS, TOKENS, NEURONS = 1, 10, 38
CHUNK = 5_000
Read = Callable[[np.ndarray], torch.Tensor]


def arrow(fixed: bool, as_torch: bool) -> tuple[Callable[[np.ndarray, Path], None], Callable[[Path], Read]]:
    """Return functions that write and open a data set of one column: fixed shape, or lists of values."""

    def write(values: np.ndarray, folder: Path) -> None:
        shape = (TOKENS, LAYERS * NEURONS)
        feature = datasets.Array2D(shape, "float16") if fixed else datasets.List(datasets.Value("float16"))

        def rows() -> Any:
            for start in range(0, len(values), CHUNK):
                for row in values[start : start + CHUNK]:
                    yield {"values": row.reshape(shape) if fixed else row.reshape(-1)}

        with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
            made = datasets.Dataset.from_generator(
                rows, features=datasets.Features({"values": feature}), cache_dir=cache
            )
            made.save_to_disk(folder)

    def open_(folder: Path) -> Read:
        loaded = datasets.load_from_disk(str(folder)).with_format("torch" if as_torch else "numpy")

        def read(rows: np.ndarray) -> torch.Tensor:
            selected = loaded[rows.tolist()]["values"]
            tensor = selected if as_torch else torch.from_numpy(np.asarray(selected, np.float16))
            return tensor.reshape(len(rows), TOKENS, LAYERS, NEURONS)

        return read

    return write, open_


def write_safetensors(values: np.ndarray, folder: Path) -> None:
    """Write one shard."""
    folder.mkdir()
    save_file({"values": torch.from_numpy(values)}, folder / "shard.safetensors")


def open_safetensors(folder: Path) -> Read:
    """Open a shard as ``Store.open`` does: memory-mapped."""
    with safe_open(folder / "shard.safetensors", framework="pt") as file:
        values = file.get_tensor("values")
    return lambda rows: values[torch.from_numpy(rows)]


def write_npy(values: np.ndarray, folder: Path) -> None:
    """Write one file."""
    folder.mkdir()
    np.save(folder / "values.npy", values)


def open_npy(folder: Path) -> Read:
    """Open the file memory-mapped."""
    values = np.load(folder / "values.npy", mmap_mode="r")
    return lambda rows: torch.from_numpy(values[rows])


FORMATS = {
    "safetensors, safe_open": (write_safetensors, open_safetensors),
    "numpy memmap": (write_npy, open_npy),
    "Arrow, fixed shape, numpy": arrow(fixed=True, as_torch=False),
    "Arrow, fixed shape, torch": arrow(fixed=True, as_torch=True),
    "Arrow, lists, numpy": arrow(fixed=False, as_torch=False),
    "Arrow, lists, torch": arrow(fixed=False, as_torch=True),
}


def main() -> None:
    """Measure the times and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="examples in the file")
    parser.add_argument("--batches", type=int, default=500, help="batches read")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the files are written [default: a temporary folder]")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    rng = np.random.default_rng(arguments.seed)
    values = rng.standard_normal((arguments.rows, TOKENS, LAYERS, NEURONS), np.float32).astype(np.float16)
    batches = rng.integers(arguments.rows, size=(arguments.batches, arguments.batch_size))
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    results = {}
    try:
        for i, (name, (write, open_)) in enumerate(FORMATS.items()):
            folder = root / str(i)
            write(values, folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            start = time.perf_counter()
            read = open_(folder)
            opening = time.perf_counter() - start
            if not np.array_equal(read(batches[0]).numpy(), values[batches[0]]):
                raise SystemExit(f"{name}: read other values than were written")
            seconds = []
            for rows in batches:
                start = time.perf_counter()
                read(rows)
                seconds.append(time.perf_counter() - start)
            results[name] = (1000 * statistics.median(seconds), 1000 * opening, size / 2**20)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    best = min(milliseconds for milliseconds, _, _ in results.values())
    shape = f"{LAYERS} layer x {TOKENS} tokens x {NEURONS} neurons"
    table = Table(title=f"batches of {arguments.batch_size} of {arguments.rows:,} rows, {shape}, fp16")
    for heading in ("format", "median ms a batch", "ratio", "opening ms", "MiB on disk"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for name, (milliseconds, opening, mebibytes) in results.items():
        row = f"{milliseconds:.3f}", f"{milliseconds / best:.1f}", f"{opening:.1f}", f"{mebibytes:.1f}"
        table.add_row(name, *row)
    tables(width=120).print(table)


if __name__ == "__main__":
    main()
