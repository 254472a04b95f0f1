"""Fold the files of single trials into one table and one file of outputs, and take them apart again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_LZMA, ZipFile, ZipInfo

import numpy as np

from hskd.errors import CorruptionError, HskdError
from hskd.io import atomic_path, write_json
from hskd.results.columns import table_of
from hskd.results.folder import (
    PLANNED_FILE,
    PLANNED_KEY,
    Outputs,
    ResultsFolder,
    parts,
    plan_content,
    read_columns,
    read_outputs,
    read_predictions,
    read_unpacked,
    require_outputs,
    validated,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` did.

    Attributes:
        trials: in the folder's table now.
        folded: of them, those that lay in files of their own.
        before: bytes of the folder's results before.
        after: bytes of them now.
    """

    trials: int
    folded: int
    before: int
    after: int


def pack(path: str | Path, scored_only: bool = False) -> Packed:
    """Fold the files of single trials into ``trials.parquet`` and ``predictions.npz``.

    New files are written beside the old ones, read back and compared, and only then take their place. After that the
    files of the trials are deleted. So a process that is killed at any moment loses nothing, and the next call goes
    on. A second call changes nothing. Files of failed trials stay.

    Args:
        path: the folder of results.
        scored_only: keep the predictions on the split whose score is reported, and delete those on the others. No
            report reads those, and a folder that is shared becomes about a third smaller.

    Raises:
        HskdError: there are no results.
        CorruptionError: a file cannot be read; nothing is deleted then.
    """
    folder = ResultsFolder(path)
    if not folder.exists:
        raise HskdError(f"{folder.path}: no results there; run the grid first (hskd grid run).")
    if not folder.trials.is_dir() and not (folder.path / PLANNED_FILE).exists() and not [*_left(folder)]:
        size = _bytes(folder)  # nothing to do: it may lie where nothing can be written
        if not scored_only or _without_unscored(folder) is None:
            return Packed(len(folder.packed_results()), 0, size, size)
    with folder.lock():
        before = _bytes(folder)
        files = folder.result_files()
        outputs_files = {trial: folder.outputs_file(trial) for trial in (file.stem for file in files)}
        for left in _left(folder):
            left.unlink()
        _fold(folder, files, [file for file in outputs_files.values() if file.is_file()])
        with suppress(OSError):  # what is left there are trials that failed, or that end now
            folder.trials.rmdir()
        if scored_only and (scored := _without_unscored(folder)) is not None:
            _write_outputs(folder, scored)
        return Packed(len(folder.done()), len(files), before, _bytes(folder))


def unpack(path: str | Path) -> int:
    """Write the files of single trials back, as they were before :func:`pack`; returns how many.

    The packed files are deleted.
    """
    folder = ResultsFolder(path)
    with folder.lock():
        results, outputs, planned = folder.packed(), folder.packed_outputs(), folder.planned()
        if planned is not None:
            folder.write_plan(planned)
        for trial, arrays in outputs.items():
            if not folder.outputs_file(trial).is_file():
                with atomic_path(folder.outputs_file(trial)) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        for trial, content in results.items():
            if not folder.result_file(trial).is_file():
                write_json(folder.result_file(trial), content)
        folder.table_file.unlink(missing_ok=True)
        folder.predictions_file.unlink(missing_ok=True)
        return len(results)


def _left(folder: ResultsFolder) -> Iterator[Path]:
    """What a process left that was killed while it packed."""
    for file in (folder.table_file, folder.predictions_file):
        yield from folder.path.glob(f".{file.name}.*")


def _fold(folder: ResultsFolder, files: Sequence[Path], outputs_files: Sequence[Path]) -> None:
    planned_file = folder.path / PLANNED_FILE
    if not files and not planned_file.is_file():
        return
    contents, results = folder.packed(), folder.packed_results()
    for file in files:
        contents[file.stem] = read_unpacked(file)
        results[file.stem] = validated(contents[file.stem], file, file.stem)
    if not results:
        return
    frame = table_of(results)
    # The outputs first: a row of the table says that a trial is done.
    if outputs_files:
        new = {file.stem: read_outputs(file) for file in outputs_files}
        for trial, arrays in new.items():
            require_outputs(results[trial], arrays, folder.outputs_file(trial))
        outputs = folder.packed_outputs() | new
        _write_outputs(folder, {trial: outputs[trial] for trial in frame["trial"] if trial in outputs})
    _write_table(folder, frame, contents, folder.planned())
    for file in (planned_file, *outputs_files, *files):
        file.unlink(missing_ok=True)


def _without_unscored(folder: ResultsFolder) -> dict[str, Outputs] | None:
    """Return the packed predictions on the splits whose scores are reported; None if no others are kept."""
    results, outputs = folder.packed_results(), folder.packed_outputs()
    scored = {
        trial: {split: array for split, array in arrays.items() if split == results[trial].scored_split}
        for trial, arrays in outputs.items()
    }
    return None if all(scored[trial].keys() == arrays.keys() for trial, arrays in outputs.items()) else scored


def _write_table(
    folder: ResultsFolder, frame: pd.DataFrame, contents: Mapping[str, Any], planned: Sequence[str] | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [json.dumps(contents[trial], ensure_ascii=False) for trial in frame["trial"]]
    table = pa.Table.from_pandas(frame.assign(result=texts), preserve_index=False)
    metadata = {} if planned is None else {PLANNED_KEY: json.dumps(plan_content(planned))}
    with atomic_path(folder.table_file) as temporary:
        # One page for the column of results: they differ in little, and compress well together.
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            compression_level=19,
            data_page_size=2**26,
            write_page_checksum=True,
        )
        _require(read_columns(temporary, "trial", "result") == [list(frame["trial"]), texts], folder.table_file)


def _write_outputs(folder: ResultsFolder, outputs: Mapping[str, Outputs]) -> None:
    with atomic_path(folder.predictions_file) as temporary:
        with ZipFile(temporary, "w", ZIP_LZMA) as archive:
            for name, array in parts(outputs):
                entry = ZipInfo(f"{name}.npy")  # dated 1980: equal outputs give equal bytes
                entry.compress_type = ZIP_LZMA
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        _require(_equal(read_predictions(temporary), outputs), folder.predictions_file)


def _equal(first: Mapping[str, Outputs], second: Mapping[str, Outputs]) -> bool:
    """Whether two sets of outputs are the same to the bit."""

    def described(outputs: Mapping[str, Outputs]) -> dict[str, dict[str, tuple[Any, ...]]]:
        return {
            trial: {split: (array.dtype.str, array.shape, array.tobytes()) for split, array in arrays.items()}
            for trial, arrays in outputs.items()
        }

    return described(first) == described(second)


def _require(same: bool, file: Path) -> None:
    if not same:
        raise CorruptionError(f"{file}: what was written is not what was read back. Nothing was deleted; try again.")


def _bytes(folder: ResultsFolder) -> int:
    """Bytes of what the folder holds of its trials."""
    files = [folder.table_file, folder.predictions_file, folder.path / PLANNED_FILE, *folder.trials.glob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())
