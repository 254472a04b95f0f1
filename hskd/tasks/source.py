"""Find and read examples: in a file, a folder, a data set saved by ``datasets``, or a data set on the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError
from hskd.io import read_json
from hskd.tasks.files import FORMATS, Table, class_names_of, listed, read_table
from hskd.tasks.task import SPLITS, FileRows, Split, text_hash

if TYPE_CHECKING:
    from datasets import Dataset

ALIASES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
"""Names that the files of a split, or its part on the hub, may have."""
SAVED = "dataset_dict.json"
"""File in the folder of a data set saved by ``datasets``."""
INFOS = "dataset_infos.json"
"""File beside the files of a data set of the hub. It may give the class names of whole numbers."""

_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataPlace:
    """The place that ``--data`` names.

    Attributes:
        name: a path, or the name of a data set on the hub.
        config: its configuration on the hub.
        parts: names of some splits in the data set: ``owner/name?dev=validation_matched``.
    """

    name: str
    config: str | None = None
    parts: Mapping[str, str] | None = None

    @classmethod
    def of(cls, data: str) -> DataPlace:
        """Parse the value of ``--data``.

        Raises:
            HskdError: the part after the question mark does not name splits.
        """
        if Path(data).exists():
            return cls(data)
        name, _, query = data.partition("?")
        parts = dict(part.partition("=")[::2] for part in query.split("&")) if query else {}
        if not all(split in SPLITS and part for split, part in parts.items()):
            raise HskdError(
                f"{data}: after the question mark, expected names of splits, such as ?train=train&dev=validation."
            )
        match = _HUB_NAME.fullmatch(name)
        if Path(name).exists() or match is None:
            return cls(name, None, parts)
        return cls(match["name"], match["config"], parts)

    @property
    def is_on_hub(self) -> bool:
        """Whether this must be a data set of the hub: no such file exists, and the name has the form of the hub."""
        return not Path(self.name).exists() and _HUB_NAME.fullmatch(self.name) is not None

    def part_of(self, split: str, there: Iterable[str]) -> str | None:
        """Return the name in ``there`` that belongs to a split; None if there is none."""
        names = (self.parts[split],) if split in (self.parts or {}) else ALIASES[split]  # type: ignore[index]
        return next((name for name in names if name in there), None)


def read_tables(data: str) -> dict[str, Table]:
    """Read the tables of the splits: at least ``train``, or only ``all`` if there is a single file or part.

    Args:
        data: a file; a folder of files, laid out by hand or as on the hub; a folder saved by ``datasets``; or the name
            of a data set on the hub, ``owner/name`` or ``owner/name:config``. A suffix such as ``?dev=test`` gives the
            name of a split in the data set.

    Raises:
        HskdError: there is no data, a file cannot be read, or a split is missing.
    """
    place = DataPlace.of(data)
    path = Path(place.name)
    if path.is_file():
        return {"all": read_table(path)}
    if path.is_dir():
        return _of_parts(place, load_saved(path)) if (path / SAVED).is_file() else _in_folder(place, path)
    if not place.is_on_hub:
        raise HskdError(f"{place.name}: no such file or folder.")
    return _of_parts(place, load_hub(place))


def load_saved(folder: Path) -> dict[str, Dataset]:
    """Load the parts of a data set saved by ``datasets``.

    Raises:
        HskdError: it cannot be read.
    """
    import datasets

    try:
        return dict(datasets.load_from_disk(str(folder)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HskdError(f"{folder}: the data set that was saved there cannot be read: {error}") from None


def load_hub(place: DataPlace) -> dict[str, Dataset]:
    """Load the parts of a data set of the hub, from the cache of ``datasets`` if it was loaded before.

    Raises:
        HskdError: it cannot be loaded, and there is no copy on this machine.
    """
    import datasets

    what = place.name + (f":{place.config}" if place.config else "")
    lacking = f"{what}: no such file or folder"
    try:
        loaded = datasets.load_dataset(place.name, place.config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if datasets.config.HF_HUB_OFFLINE:
            raise HskdError(
                f"{lacking}; as a data set of the hub it is not in the cache of this machine, and HF_HUB_OFFLINE is "
                "set. Unset it, load the data set once on a machine with the hub, or give a file or folder."
            ) from None
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HskdError(f"{lacking}, and no data set of the hub that can be loaded: {first_line}") from error
    return dict(loaded)


def as_table(where: str, data: Dataset) -> Table:
    """Return a part of a data set of ``datasets`` as a table; ``where`` stands for its file in messages."""
    import datasets

    names = {
        name: tuple(inner.names)
        for name, feature in data.features.items()
        if isinstance(inner := getattr(feature, "feature", feature), datasets.ClassLabel) and inner.names
    }
    return Table(Path(where), tuple(data.column_names), len(data), lambda name: list(data[name]), class_names=names)


def _of_parts(place: DataPlace, parts: Mapping[str, Dataset]) -> dict[str, Table]:
    if len(parts) == 1 and not place.parts:
        (name,) = parts
        return {"all": as_table(f"{place.name}/{name}", parts[name])}
    tables = {}
    for split in SPLITS:
        part = place.part_of(split, parts)
        if part is not None:
            tables[split] = as_table(f"{place.name}/{part}", parts[part])
        elif split == "train" or split in (place.parts or {}):
            raise HskdError(
                f"{place.name}: no part for {split}; it has {listed(parts)}. Say which: {place.name}?{split}=NAME."
            )
    return tables


def _in_folder(place: DataPlace, folder: Path) -> dict[str, Table]:
    tables = {}
    for split in SPLITS:
        stems = (place.parts[split],) if split in (place.parts or {}) else ALIASES[split]  # type: ignore[index]
        if files := split_files(folder, stems):
            tables[split] = _declared(folder, joined([read_table(file) for file in files]))
        elif split == "train":
            raise HskdError(
                f"{folder}: no train file; expected {' or '.join(stems)} with one of the endings {', '.join(FORMATS)}, "
                f"or {stems[0]}-00000-of-00001.parquet."
            )
    if "dev" not in tables and "test" not in tables:
        raise HskdError(
            f"{folder}: no dev file; expected {' or '.join(ALIASES['dev'])} with one of the endings "
            f"{', '.join(FORMATS)}. To have one file split, give the file itself."
        )
    return tables


def split_files(folder: Path, stems: Sequence[str], endings: Sequence[str] = FORMATS) -> list[Path]:
    """Return the files of a split in a folder: one file, or Parquet parts as on the hub; empty if there are none.

    Raises:
        HskdError: several files could be the split, or a part is missing.
    """
    for stem in stems:
        parts = sorted({*folder.glob(f"{stem}-*-of-*.parquet"), *folder.glob(f"data/{stem}-*-of-*.parquet")})
        if parts:
            count = int(re.sub(r".*-of-0*(\d+)\.parquet", r"\1", parts[0].name) or 0)
            if len(parts) != count:
                raise HskdError(f"{folder}: {len(parts)} of the {count} parts of {stem} are there; copy it again.")
            return parts
    files = [folder / f"{stem}{ending}" for stem in stems for ending in endings]
    files = [file for file in files if file.exists()]
    if len(files) > 1:
        raise HskdError(f"{folder}: {' and '.join(file.name for file in files)} are both there; leave one.")
    return files


def joined(tables: list[Table]) -> Table:
    """Return the tables of one split, concatenated.

    Raises:
        HskdError: the tables have different columns.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.names != first.names:
            raise HskdError(
                f"{table.file}: has the columns {listed(table.names)}; {first.file} has {listed(first.names)}."
            )
    if len(tables) == 1:
        return first
    get: Callable[[str], list[Any]] = lambda name: [value for table in tables for value in table.get(name)]  # noqa: E731
    return replace(first, rows=sum(table.rows for table in tables), get=get)


def _declared(folder: Path, table: Table) -> Table:
    """Return the table with the class names of the folder's ``dataset_infos.json``, if its file gives none."""
    if table.class_names or not (folder / INFOS).is_file():
        return table
    infos = read_json(folder / INFOS)
    configs = list(infos.values()) if isinstance(infos, dict) else []
    if len(configs) != 1:  # with several configurations, the right one is unknown
        return table
    names = {name: names for name, names in class_names_of(configs[0]) if name in table.names}
    fitting = {name: names[name] for name in names if all(isinstance(value, int) for value in table.get(name))}
    return replace(table, class_names=fitting)


def splits_of(
    data: str, tables: Mapping[str, Table], whole: Mapping[str, Split], keys: Callable[[Split], Iterable[Sequence[str]]]
) -> dict[str, Split]:
    """Return the splits of a task; splits without a file of their own are cut out of others by content.

    With ``h`` the SHA-256 of an example's key (:func:`~hskd.tasks.task.text_hash`) and ``b`` its bytes 8 to 15 as a
    big-endian number, ``b % 10`` is 8 for ``dev``, 9 for ``test``, and another digit for ``train``. Examples with the
    same key therefore go to the same split, and adding rows moves no existing row. If there are train and test files,
    only dev is cut out, and the log says so.

    Args:
        data: names the place in messages.
        tables: by split, or ``all``.
        whole: the examples of each table.
        keys: returns the texts of each example that determine its split.

    Raises:
        HskdError: a split would be empty.
    """
    if "all" in tables:
        return _cut(data, tables["all"], whole["all"], keys(whole["all"]), {8: "dev", 9: "test"})
    if "dev" in tables:
        return dict(whole)
    cut = _cut(data, tables["train"], whole["train"], keys(whole["train"]), {8: "dev"})
    _log.info("%s: has no dev part; %s examples of train are dev, by their content", data, f"{len(cut['dev']):,}")
    return {**cut, "test": whole["test"]}


def _cut(
    data: str, table: Table, whole: Split, keys: Iterable[Sequence[str]], buckets: Mapping[int, str]
) -> dict[str, Split]:
    rows: dict[str, list[int]] = {"train": [], **{split: [] for split in buckets.values()}}
    for row, fields in enumerate(keys):
        # Use bytes 8 to 15, because bytes 0 to 7 are the id, and subsets are drawn in the order of the ids.
        bucket = int.from_bytes(text_hash(fields)[8:16], "big") % 10
        rows[buckets.get(bucket, "train")].append(row)
    labels = whole.labels
    for split, chosen in rows.items():
        if not chosen:
            raise HskdError(f"{data}: {len(whole)} rows leave no {split} example. Give a folder of files instead.")
    return {
        split: Split.of(
            split,
            [[column[row] for row in chosen] for column in whole.texts],
            None if labels is None else [labels[row] for row in chosen],
            FileRows(str(table.file), chosen),
        )
        for split, chosen in rows.items()
    }


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        texts: one or two text columns.
        label: the label column.
    """

    texts: tuple[str, ...]
    label: str


def guessed_columns(
    task: str,
    table: Table,
    texts: Sequence[str] | str | None,
    label: str | None,
    known_texts: Sequence[tuple[str, ...]],
    known_labels: Sequence[str],
) -> Columns:
    """Return the given columns, or infer them if they are unambiguous; the log names inferred columns.

    Args:
        task: names the task in messages.
        table: the table of train.
        texts: the text columns, if given.
        label: the label column, if given.
        known_texts: text columns that are recognised by name, such as ``("text",)``.
        known_labels: label columns that are recognised by name.

    Raises:
        HskdError: no column or several could be meant. The message lists the columns of the file.
    """
    given = (texts,) if isinstance(texts, str) else tuple(texts or ())
    if given and label:
        return Columns(given, label)
    ask = f"Task {task} needs one or two text columns (--text-columns) and a label column (--label-column)"
    if label is None:
        labels = [name for name in known_labels if name in table.names] or list(table.class_names)
        if len(labels) != 1:
            raise HskdError(f"{ask}; {table.file} has {listed(table.names)}, and it is not clear which holds labels.")
        label = labels[0]
    if not given:
        matches = [names for names in known_texts if set(names) <= set(table.names) - {label}]
        matches = [names for names in matches if not any(set(names) < set(others) for others in matches)]
        others: list[tuple[str, ...]] = [(name,) for name in table.names if name != label]
        if len(matches) != 1 and len(others) == 1:
            matches = others
        if len(matches) != 1:
            raise HskdError(f"{ask}; {table.file} has {listed(table.names)}, and it is not clear which hold texts.")
        given = matches[0]
    _log.info(
        "task %s: texts are in %s and labels in %s of %s (--text-columns and --label-column say otherwise)",
        task,
        listed(given),
        listed((label,)),
        table.file,
    )
    return Columns(given, label)
