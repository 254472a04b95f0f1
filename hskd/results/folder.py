"""Read a results folder, whether its trials lie in files of their own, in the packed files, or in both.

A folder holds:

* ``grid.yaml``: the grid as it was run, which ``hskd grid run`` reads again;
* ``trials.parquet``: a row for each trial. The column ``result`` holds the whole result as JSON, and the metadata the
  ids of the grid's trials;
* ``predictions.npz``: the trials' outputs on each labelled split. ``test`` is an array ``(trials, examples, C)``, and
  ``test.trials`` holds the ids of its rows. Arrays of another shape or type are ``test.1`` and ``test.1.trials``;
* ``labels.npz``: the labels of these splits, where they may be kept.

While a grid runs, each trial that ends writes ``trials/ID.json`` and ``trials/ID.npz``, and ``planned.json`` lists the
ids of the grid's trials. :func:`hskd.results.pack` folds these into the files above. A file of a trial takes precedence
over its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from lzma import LZMAError
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import yaml

from hskd.errors import CorruptionError, HskdError
from hskd.io import read_json, with_home
from hskd.trials.result import TrialResult

if TYPE_CHECKING:
    import pyarrow as pa

TRIALS = "trials"
"""Folder of the files of single trials."""
GRID_FILE = "grid.yaml"
PLANNED_FILE = "planned.json"
TABLE_FILE = "trials.parquet"
PREDICTIONS_FILE = "predictions.npz"
LABELS_FILE = "labels.npz"
"""Labels of every split that trials are scored on, ``(N,)``, in the order of their predictions."""

PLANNED_KEY = b"hskd.planned"
"""Key of the table's metadata that holds the ids of the grid's trials."""
ROWS = ".trials"
"""End of the name of an array in ``predictions.npz`` that says whose rows another one holds."""

Outputs = dict[str, np.ndarray]
"""A trial's outputs by split, ``(N, C)`` fp16, in the order of the split's examples."""


class ResultsFolder:
    """A results folder. Nothing is read before it is asked for, and what is read is not kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(with_home(str(path)))
        self.trials = self.path / TRIALS

    @property
    def exists(self) -> bool:
        """Whether the folder holds results, or a place for them."""
        return self.trials.is_dir() or self.is_packed

    @property
    def is_packed(self) -> bool:
        """Whether ``trials.parquet`` holds results; until version 0.1 it was only a copy of the table.

        Raises:
            CorruptionError: it cannot be read.
        """
        return self.table_file.is_file() and "result" in read_schema(self.table_file).names

    @property
    def table_file(self) -> Path:
        """The packed results."""
        return self.path / TABLE_FILE

    @property
    def predictions_file(self) -> Path:
        """The packed outputs."""
        return self.path / PREDICTIONS_FILE

    def result_file(self, trial: str) -> Path:
        """Where a trial's result lies until it is packed."""
        return self.trials / f"{trial}.json"

    def outputs_file(self, trial: str) -> Path:
        """Where a trial's outputs lie until they are packed."""
        return self.trials / f"{trial}.npz"

    def grid(self) -> dict[str, Any] | None:
        """The content of ``grid.yaml``; None where there is none.

        Raises:
            CorruptionError: it is not YAML, or does not hold keys.
        """
        file = self.path / GRID_FILE
        if not file.is_file():
            return None
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CorruptionError(f"{file}: not valid YAML ({error}); delete it and run the grid again.") from None
        if not isinstance(content, dict):
            raise CorruptionError(f"{file}: expected a grid's keys; delete it and run the grid again.")
        return content

    def planned(self) -> list[str] | None:
        """The ids of the grid's trials, done or not; None where they are not known."""
        file = self.path / PLANNED_FILE
        if file.is_file():
            return list(read_json(file))
        return self._packed_plan()

    def done(self) -> set[str]:
        """The ids of all trials whose results are here, of the grid or not."""
        packed = read_columns(self.table_file, "trial")[0] if self.is_packed else ()
        return {*packed, *(file.stem for file in self.result_files())}

    def result_files(self) -> list[Path]:
        """The results that are not packed."""
        return sorted(file for file in self.trials.glob("*.json") if not file.name.endswith(".error.json"))

    def result(self, trial: str) -> TrialResult | None:
        """A trial's result; None where it is not done.

        Raises:
            CorruptionError: it cannot be read.
        """
        file = self.result_file(trial)
        if file.is_file():
            return validated(read_json(file), file)
        content = self.packed().get(trial)
        return None if content is None else validated(content, self.table_file)

    def results(self) -> dict[str, TrialResult]:
        """The results of the grid's trials that are done, by id.

        A result that lies here from before the grid was changed is left out.

        Raises:
            CorruptionError: one cannot be read; the message names its file.
        """
        packed = self.packed()
        sources = dict.fromkeys(packed, self.table_file) | {file.stem: file for file in self.result_files()}
        planned = self.planned()
        kept = sources.keys() if planned is None else sources.keys() & set(planned)
        results = {}
        for trial in sorted(kept):
            source = sources[trial]
            content = packed[trial] if source == self.table_file else read_json(source)
            results[trial] = validated(content, source)
        return results

    def packed(self) -> dict[str, Any]:
        """The content of every packed result, by id, in the order of the table."""
        return read_table(self.table_file) if self.is_packed else {}

    def outputs(self, trials: Iterable[str], split: str) -> dict[str, np.ndarray]:
        """The outputs of trials on a split, by id; a trial whose outputs are not kept is left out.

        Raises:
            HskdError: a trial's file holds no such split.
            CorruptionError: a file cannot be read.
        """
        ids = list(trials)
        arrays: dict[str, np.ndarray] = {}
        if any(not self.outputs_file(trial).is_file() for trial in ids) and self.predictions_file.is_file():
            packed = self.packed_outputs([split])
            arrays = {trial: packed[trial][split] for trial in ids if trial in packed}
        for trial in ids:
            file = self.outputs_file(trial)
            if file.is_file():
                arrays[trial] = read_array(file, split)
        return arrays

    def packed_outputs(self, splits: Iterable[str] | None = None) -> dict[str, Outputs]:
        """The packed outputs of every trial, on some splits or all.

        Raises:
            CorruptionError: the file cannot be read.
        """
        return read_predictions(self.predictions_file, splits) if self.predictions_file.is_file() else {}

    def labels(self, split: str) -> np.ndarray | None:
        """The labels of a split, ``(N,)``; None where no labels are kept.

        Raises:
            HskdError: the file holds no such split.
            CorruptionError: it cannot be read.
        """
        file = self.path / LABELS_FILE
        return read_array(file, split) if file.is_file() else None

    def _packed_plan(self) -> list[str] | None:
        if not self.is_packed:
            return None
        metadata: Mapping[bytes, bytes] = read_schema(self.table_file).metadata or {}
        return list(json.loads(metadata[PLANNED_KEY])) if PLANNED_KEY in metadata else None


def read_schema(file: Path) -> pa.Schema:
    """The schema of a Parquet file.

    Raises:
        CorruptionError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def read_table(file: Path) -> dict[str, Any]:
    """The content of every result in a ``trials.parquet``, by id, in the order of its rows.

    Raises:
        CorruptionError: it cannot be read.
    """
    ids, texts = read_columns(file, "trial", "result")
    try:
        return {trial: json.loads(text) for trial, text in zip(ids, texts, strict=True)}
    except (json.JSONDecodeError, TypeError) as error:
        raise _damaged(file, error) from None


def read_columns(file: Path, *names: str) -> list[list[str]]:
    """Columns of text of a ``trials.parquet``.

    Raises:
        CorruptionError: it cannot be read, or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=list(names))
        return [table[name].to_pylist() for name in names]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def read_predictions(file: Path, splits: Iterable[str] | None = None) -> dict[str, Outputs]:
    """The outputs in a ``predictions.npz``, by id and split, of some splits or all.

    Raises:
        CorruptionError: it cannot be read.
    """
    outputs: dict[str, Outputs] = {}
    try:
        with np.load(file) as arrays:
            for name in arrays:
                base, end, _ = name.rpartition(ROWS)
                split = base.split(".")[0]
                if not end or (splits is not None and split not in splits):
                    continue
                for trial, rows in zip(arrays[name].tolist(), arrays[base], strict=True):
                    outputs.setdefault(trial, {})[split] = rows
    except (OSError, ValueError, KeyError, EOFError, LZMAError, BadZipFile) as error:
        raise _damaged(file, error) from None
    return outputs


def _damaged(file: Path, error: Exception) -> CorruptionError:
    return CorruptionError(f"{file}: cannot be read ({error}); restore it, or delete it and run the grid again.")


def read_array(file: Path, split: str) -> np.ndarray:
    """An array of an ``npz`` file that is named by splits.

    Raises:
        HskdError: the file holds no such split.
        CorruptionError: it cannot be read.
    """
    try:
        with np.load(file) as arrays:
            return arrays[split]  # type: ignore[no-any-return]
    except KeyError:
        raise HskdError(f"{file}: no split {split}, which the table is scored on. Run the grid again.") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise CorruptionError(f"{file}: cannot be read ({error}); delete it and run the grid.") from None


def read_outputs(file: Path) -> Outputs:
    """All arrays of a trial's ``npz`` file.

    Raises:
        CorruptionError: it cannot be read.
    """
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise CorruptionError(f"{file}: cannot be read ({error}); delete it and run the grid.") from None


def parts(outputs: Mapping[str, Outputs]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of ``predictions.npz`` that hold the outputs of trials: names and values."""
    splits = dict.fromkeys(split for arrays in outputs.values() for split in arrays)
    for split in splits:
        groups: dict[tuple[Any, ...], list[str]] = {}
        for trial, arrays in outputs.items():
            if split in arrays:
                groups.setdefault((arrays[split].shape, arrays[split].dtype.str), []).append(trial)
        for number, trials in enumerate(groups.values()):
            name = f"{split}.{number}" if number else split
            yield name, np.stack([outputs[trial][split] for trial in trials])
            yield name + ROWS, np.array(trials)


def validated(content: Any, file: Path) -> TrialResult:
    """A trial's result from the content of ``file``.

    Raises:
        CorruptionError: it is none.
    """
    return TrialResult.of(content, file, "run the grid")
