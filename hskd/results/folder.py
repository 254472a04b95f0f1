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

Whatever is read is compared with what was written: a result holds a checksum of itself and of its outputs, the list of
ids one of itself, and the columns of the table must say what the results of its rows say. Folders of versions up to 0.1
hold no checksums; of theirs, the columns are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import ZipFile

import numpy as np
import yaml
from filelock import FileLock

from hskd import safe_yaml
from hskd.artifacts import is_whole, lock_path, sealed
from hskd.errors import CorruptionError, HskdError, cut
from hskd.io import atomic_path, parse_json, with_home, write_json
from hskd.results.columns import contradiction, table_of
from hskd.trials.result import TrialResult

if TYPE_CHECKING:
    import pandas as pd
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

SUMS = "outputs"
"""Key of a trial's result that holds the fingerprint of its outputs on each split."""
LARGEST_ARRAY = 2**31
"""Bytes that one array of outputs may say it has."""
_REMEDY = "restore it, or delete it and run the grid again"
ATTEMPTS = 5
"""How often files are read that another process folds away meanwhile, before folding has to wait for the reader."""

T = TypeVar("T")
Outputs = dict[str, np.ndarray]
"""A trial's outputs by split, ``(N, C)`` fp16, in the order of the split's examples."""


class ResultsFolder:
    """A results folder. Nothing is read before it is asked for, and what is read is not kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(with_home(str(path)))
        self.trials = self.path / TRIALS

    @property
    def exists(self) -> bool:
        """Whether the folder holds results, or a place for them.

        Raises:
            CorruptionError: what should be a file is none.
        """
        return self.trials.is_dir() or self.is_packed

    @property
    def is_packed(self) -> bool:
        """Whether ``trials.parquet`` holds results; until version 0.1 it was only a copy of the table.

        Raises:
            CorruptionError: it cannot be read.
        """
        return _is_there(self.table_file) and "result" in read_schema(self.table_file).names

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
            content, _ = safe_yaml.parse(safe_yaml.read(file))
        except (yaml.YAMLError, HskdError) as error:
            raise CorruptionError(f"{file}: not valid YAML ({error}); delete it and run the grid again.") from None
        if not isinstance(content, dict):
            raise CorruptionError(f"{file}: expected a grid's keys; delete it and run the grid again.")
        return content

    def planned(self) -> list[str] | None:
        """The ids of the grid's trials, done or not; None where they are not known.

        Raises:
            CorruptionError: they cannot be read.
        """
        file = self.path / PLANNED_FILE
        if _is_there(file):
            with suppress(FileNotFoundError):  # packed meanwhile
                return plan_of(read_unpacked(file), file)
        if not self.is_packed:
            return None
        metadata: Mapping[bytes, bytes] = read_schema(self.table_file).metadata or {}
        if PLANNED_KEY not in metadata:
            return None
        with reading(self.table_file):
            return plan_of(json.loads(metadata[PLANNED_KEY]), self.table_file)

    def write_plan(self, trials: Sequence[str]) -> None:
        """Keep the ids of the grid's trials until they are packed."""
        write_json(self.path / PLANNED_FILE, plan_content(trials))

    def done(self) -> set[str]:
        """The ids of all trials whose results are here, of the grid or not."""
        packed = read_columns(self.table_file, "trial")[0] if self.is_packed else ()
        return {*packed, *(file.stem for file in self.result_files())}

    def result_files(self) -> list[Path]:
        """The results that are not packed."""
        return sorted(file for file in self.trials.glob("*.json") if not file.name.endswith(".error.json"))

    def write(self, trial: str, result: TrialResult, outputs: Path) -> None:
        """Keep a trial's result and its outputs, a ``npz`` file, with checksums of both, until they are packed.

        Raises:
            HskdError: the folder cannot be written.
            CorruptionError: ``outputs`` cannot be read.
        """
        arrays = read_outputs(outputs)
        content = result.as_json() | {SUMS: {split: array_sum(array) for split, array in arrays.items()}}
        with self.lock():  # who packs meanwhile sees both files, or none, and leaves their folder there
            with atomic_path(self.outputs_file(trial)) as temporary:
                temporary.write_bytes(outputs.read_bytes())
            write_json(self.result_file(trial), sealed(content))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock while files of trials are written, folded or unfolded.

        Raises:
            HskdError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_path(self.path / "pack"), is_singleton=True)  # who packs reads under its own lock
            lock.acquire()
        except OSError as error:
            raise HskdError(f"{self.path}: cannot be written ({error.strerror or error}).") from None
        try:
            yield
        finally:
            lock.release()

    def _settled(self, read: Callable[[], T]) -> T:
        """What ``read`` returns when no other process folds away what it reads.

        Raises:
            HskdError: a file vanishes even while nobody may fold: somebody deletes it.
        """
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):
                return read()
        with ExitStack() as stack:
            with suppress(HskdError):  # who may not write reads once more without the lock
                stack.enter_context(self.lock())
            try:
                return read()
            except FileNotFoundError as error:
                gone = error.filename
        raise HskdError(f"{gone}: another process moves the results while they are read; wait until it has ended.")

    def result(self, trial: str) -> TrialResult | None:
        """A trial's result; None where it is not done.

        Raises:
            CorruptionError: it cannot be read.
        """
        file = self.result_file(trial)
        if _is_there(file):
            with suppress(FileNotFoundError):  # packed meanwhile
                return validated(read_unpacked(file), file, trial)
        if not self.is_packed or trial not in read_columns(self.table_file, "trial")[0]:
            return None
        return self.packed_results()[trial]

    def results(self) -> dict[str, TrialResult]:
        """The results of the grid's trials that are done, by id.

        A result that lies here from before the grid was changed is left out.

        Raises:
            CorruptionError: one cannot be read, or the table says something else than its results; the message names
                the file.
        """
        return self._settled(self._results)

    def _results(self) -> dict[str, TrialResult]:
        files = {file.stem: file for file in self.result_files()}
        results = self.packed_results()
        planned = self.planned()
        kept = {*results, *files} if planned is None else {*results, *files} & set(planned)
        return {
            trial: validated(read_unpacked(files[trial]), files[trial], trial) if trial in files else results[trial]
            for trial in sorted(kept)
        }

    def packed(self) -> dict[str, Any]:
        """The content of every packed result, by id, in the order of the table; its columns are not compared.

        Raises:
            CorruptionError: the table cannot be read.
        """
        return read_table(self.table_file) if self.is_packed else {}

    def packed_results(self) -> dict[str, TrialResult]:
        """Every packed result, by id, in the order of the table.

        Raises:
            CorruptionError: the table cannot be read, or a column says something else than the results of its rows.
        """
        if not self.is_packed:
            return {}
        file = self.table_file
        columns = read_whole(file)
        results = {trial: validated(content, file, trial) for trial, content in contents_of(columns, file).items()}
        with reading(file):
            problem = contradiction(columns, list(results.values()))
        if problem:
            raise CorruptionError(
                f"{file}: {problem}: somebody edited the table. Restore it, or make it again from its results: "
                f"hskd.results.unpack({str(self.path)!r}), then hskd grid pack {self.path}."
            )
        return results

    def outputs(self, trials: Iterable[str], split: str) -> dict[str, np.ndarray]:
        """The outputs of trials on a split, by id; a trial whose outputs are not kept is left out.

        Raises:
            HskdError: a trial's file holds no such split.
            CorruptionError: a file cannot be read, or holds other outputs than the trial gave.
        """
        ids = list(trials)
        return self._settled(lambda: self._outputs(ids, split))

    def _outputs(self, ids: Sequence[str], split: str) -> dict[str, np.ndarray]:
        # A file that is there is read from there: if it is folded meanwhile, that is an error, and all is read anew.
        files = {trial: self.outputs_file(trial) for trial in ids if _is_there(self.outputs_file(trial))}
        packed = self.packed_outputs([split]) if len(files) < len(ids) else {}
        arrays = {trial: packed[trial][split] for trial in ids if trial not in files and split in packed.get(trial, {})}
        arrays |= {trial: read_array(file, split) for trial, file in files.items()}
        results = self.results()
        for trial, array in arrays.items():
            require_outputs(results.get(trial), {split: array}, files.get(trial, self.predictions_file))
        return {trial: arrays[trial] for trial in ids if trial in arrays}

    def packed_outputs(self, splits: Iterable[str] | None = None) -> dict[str, Outputs]:
        """The packed outputs of every trial, on some splits or all.

        Raises:
            CorruptionError: the file cannot be read.
        """
        return read_predictions(self.predictions_file, splits) if _is_there(self.predictions_file) else {}

    def labels(self, split: str) -> np.ndarray | None:
        """The labels of a split, ``(N,)``; None where no labels are kept.

        Raises:
            HskdError: the file holds no such split.
            CorruptionError: it cannot be read.
        """
        file = self.path / LABELS_FILE
        return read_array(file, split) if _is_there(file) else None


def load(path: str | Path) -> pd.DataFrame:
    """The table of a results folder: one row for each trial of the grid that is done, packed or not.

    A result from before the grid was changed is left out.

    Raises:
        HskdError: there is no results folder, or no trial is done.
        CorruptionError: a result cannot be read, or the packed table says something else than its results.
    """
    folder = ResultsFolder(path)
    if not folder.exists:
        raise HskdError(
            f"{folder.path}: no results there (neither {folder.table_file.name} nor a folder {TRIALS}); "
            "run the grid first (hskd grid run)."
        )
    results = folder.results()
    if not results:
        raise HskdError(f"{folder.path}: no trial is done yet; run the grid first (hskd grid run).")
    return table_of(results)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say in one way whatever a damaged file makes a library raise.

    Raises:
        CorruptionError: it cannot be read.
        FileNotFoundError: it is not there any more.
    """
    try:
        yield
    except (HskdError, FileNotFoundError):
        raise
    except Exception as error:
        reason = cut(str(getattr(error, "strerror", None) or error or type(error).__name__))
        raise CorruptionError(f"{file}: cannot be read ({reason}); {_REMEDY}.") from None


def _is_there(file: Path) -> bool:
    """Whether there is a file.

    Raises:
        CorruptionError: there is something else in its place.
    """
    if file.is_file():
        return True
    if file.exists():
        raise CorruptionError(f"{file}: expected a file; move it away and run the grid again.")
    return False


def read_unpacked(file: Path) -> Any:
    """Return the content of a JSON file that another process may pack, and so remove, at any moment.

    Raises:
        CorruptionError: it cannot be read.
        FileNotFoundError: it is not there any more.
    """
    with reading(file):
        return parse_json(file.read_bytes(), str(file), _REMEDY)


def plan_content(trials: Sequence[str]) -> dict[str, Any]:
    """The ids of a grid's trials as JSON, with a fingerprint."""
    return sealed({"trials": list(trials)})


def plan_of(content: Any, file: Path) -> list[str]:
    """The ids in what :func:`plan_content` made, or in a bare list as versions up to 0.1 wrote it.

    Raises:
        CorruptionError: it is neither.
    """
    ids = content.get("trials") if isinstance(content, dict) and is_whole(content) else content
    if not isinstance(ids, list) or not all(isinstance(trial, str) for trial in ids):
        raise CorruptionError(f"{file}: not the list of a grid's trials; delete it and run the grid again.")
    return ids


def array_sum(array: np.ndarray) -> str:
    """16 hexadecimal digits that stand for an array's values, type and shape."""
    described = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return described.hexdigest()[:16]


def require_outputs(result: TrialResult | None, outputs: Outputs, file: Path) -> None:
    """Compare outputs that were read from ``file`` with those that a trial gave, as far as its result says.

    Raises:
        CorruptionError: they are others.
    """
    sums = (result.model_extra or {}).get(SUMS) if result is not None else None
    if result is None or not isinstance(sums, dict):
        return
    for split, array in outputs.items():
        if array_sum(array) != sums.get(split):
            raise CorruptionError(
                f"{file}: what it holds of trial {result.id} on {split} is not what the trial gave; "
                "restore it, or delete it and the trial's result, and run the grid again."
            )


def read_schema(file: Path) -> pa.Schema:
    """The schema of a Parquet file.

    Raises:
        CorruptionError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(file):
        return pq.read_schema(file)


def read_table(file: Path) -> dict[str, Any]:
    """The content of every result in a ``trials.parquet``, by id, in the order of its rows.

    Raises:
        CorruptionError: it cannot be read.
    """
    ids, texts = read_columns(file, "trial", "result")
    return contents_of({"trial": ids, "result": texts}, file)


def contents_of(columns: Mapping[str, Sequence[Any]], file: Path) -> dict[str, Any]:
    """The content of every result in the columns of a table, by id.

    Raises:
        CorruptionError: one is not JSON, or an id comes twice.
    """
    with reading(file):
        contents = {trial: json.loads(text) for trial, text in zip(columns["trial"], columns["result"], strict=True)}
        if len(contents) < len(columns["trial"]):
            raise ValueError("a trial comes twice")
        return contents


def read_whole(file: Path) -> dict[str, list[Any]]:
    """Every column of a ``trials.parquet``.

    Raises:
        CorruptionError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(file):
        return pq.read_table(file, page_checksum_verification=True).to_pydict()  # type: ignore[no-any-return]


def read_columns(file: Path, *names: str) -> list[list[str]]:
    """Columns of text of a ``trials.parquet``.

    Raises:
        CorruptionError: it cannot be read, or has no such column.
    """
    import pyarrow.parquet as pq

    with reading(file):
        table = pq.read_table(file, columns=list(names), page_checksum_verification=True)
        columns = [table[name].to_pylist() for name in names]
        if not all(isinstance(text, str) for column in columns for text in column):
            raise ValueError(f"{' and '.join(names)}: expected text")
        return columns


def read_arrays(file: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an ``npz`` file, all or those of some names: numbers and texts, never Python objects.

    An array is read only if the file holds as many bytes as the array's header says.

    Raises:
        CorruptionError: the file cannot be read.
        KeyError: it has no array of a name.
    """
    arrays = {}
    with reading(file), ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("an array comes twice")
        chosen = list(members) if names is None else [name for name in names if name in members]
        for name in chosen:
            member = members[name]
            with archive.open(member) as opened:
                version = np.lib.format.read_magic(opened)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read_header[version](opened)
                expected = dtype.itemsize * int(np.prod(shape, dtype=object)) + opened.tell()
            if dtype.hasobject or dtype.kind not in "biufU" or min(shape, default=0) < 0:
                raise ValueError(f"{name}: expected an array of numbers or texts, got {dtype}")
            if expected != member.file_size or expected > LARGEST_ARRAY:
                raise ValueError(f"{name}: {member.file_size:,} bytes, where its header says {expected:,}")
            with archive.open(member) as opened:
                arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
                if opened.read(1):
                    raise ValueError(f"{name}: longer than it says")
    missing = [] if names is None else [name for name in names if name not in arrays]
    if missing:
        raise KeyError(missing[0])
    return arrays


def read_predictions(file: Path, splits: Iterable[str] | None = None) -> dict[str, Outputs]:
    """The outputs in a ``predictions.npz``, by id and split, of some splits or all.

    Raises:
        CorruptionError: it cannot be read, or does not hold a row for each of its ids.
    """
    chosen = None if splits is None else set(splits)
    outputs: dict[str, Outputs] = {}
    with reading(file):
        with ZipFile(file) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
        bases = [name for name in names if not name.endswith(ROWS)]
        if sorted(names) != sorted([*bases, *(base + ROWS for base in bases)]):
            raise ValueError("expected for every array one that names its rows")
        for base in bases:
            split = base.split(".")[0]
            if chosen is not None and split not in chosen:
                continue
            arrays = read_arrays(file, [base, base + ROWS])
            rows, ids = arrays[base], arrays[base + ROWS]
            if ids.ndim != 1 or ids.dtype.kind != "U" or rows.ndim < 1 or rows.shape[0] != len(ids):
                raise ValueError(f"{base}: an array of shape {rows.shape} for ids of shape {ids.shape}")
            for trial, row in zip(ids.tolist(), rows, strict=True):
                if split in outputs.setdefault(trial, {}):
                    raise ValueError(f"{split}: trial {cut(trial)} comes twice")
                outputs[trial][split] = row
    return outputs


def read_array(file: Path, split: str) -> np.ndarray:
    """An array of an ``npz`` file that is named by splits.

    Raises:
        HskdError: the file holds no such split.
        CorruptionError: it cannot be read.
    """
    try:
        return read_arrays(file, [split])[split]
    except KeyError:
        raise HskdError(f"{file}: no split {split}, which the table is scored on. Run the grid again.") from None


def read_outputs(file: Path) -> Outputs:
    """All arrays of a trial's ``npz`` file.

    Raises:
        CorruptionError: it cannot be read.
    """
    return read_arrays(file)


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


def validated(content: Any, file: Path, trial: str) -> TrialResult:
    """The result of a trial from the content of ``file``.

    Raises:
        CorruptionError: it is none, not as it was written, or that of another trial.
    """
    with reading(file):
        whole = not isinstance(content, dict) or is_whole(content)
        result = TrialResult.of(content, file, "run the grid") if whole else None
    if result is None or result.id != trial:
        reason = "is not as it was written" if result is None else f"is that of {result.id}"
        raise CorruptionError(
            f"{file}: the result of trial {trial} {reason}; restore the file, or delete it and run the grid."
        )
    return result
