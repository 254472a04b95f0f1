"""Read and check a results table, and split it into studies: trials that may be compared with each other."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hskd.analysis.stats.points import DISTILLED, LOSS, Parts, taken_apart_by_name, with_names
from hskd.errors import HskdError, brief, cut
from hskd.hashing import fingerprint
from hskd.results import NUMBERS, ResultsFolder, load, spreadsheet

CSV_FILE = "trials.csv"
DIMENSION_COLUMNS = {"depth": "n", "length": "k", "width": "w", "precision": "precision", "examples": "e"}
"""Each dimension, and the column that holds its amount."""
AMOUNT_COLUMNS = ("bytes_per_example", "fraction")
"""The columns that order points by how much HSK they keep, the main one first."""

AXES = {"bytes": "bytes_per_example", "values": "fraction"}
"""Columns of amounts by their names on the command line."""

KEYS = ("task", "teacher", "student", "train_examples", "score_split")
"""Columns whose values define a study: trials that differ in one of them are not compared."""
_FIELDS = ("n", "l_top", "length", "k", "width", "precision")
_TEXT = ("task", "teacher", "student", "arm", "spec", *_FIELDS, "score_split")
_AMOUNTS = ("n", "k")
_AMOUNT = re.compile(r"(all|[0-9]{1,18}(\.0)?)?")
_MAY_BE_EMPTY = ("spec", LOSS, *_FIELDS)
_NUMBERS = ("train_examples", "seed", "fraction", "bytes_per_example", "score", "teacher_score")
"""Columns in which every trial has a number. Other columns of numbers may be empty or missing."""
_WHOLE = ("train_examples", "seed")
LONGEST_TEXT, LONGEST_SLUG = 500, 150
"""Maximum characters of a name, and of a file name made of several names."""
_SCORES = ("score", "teacher_score")


def read_trials(path: Path) -> pd.DataFrame:
    """Read a table of trials, one row per trial, and check every cell that the analysis uses.

    Args:
        path: a results folder, or a CSV file with the columns of ``hskd.results.COLUMNS``. Columns that the analysis
            does not use may be missing, and unknown columns are kept. A folder without results may hold a
            ``trials.csv``.

    Raises:
        HskdError: the table does not exist, is not CSV or is empty, or a column is missing or holds invalid values.
    """
    path = Path(path)
    file = path / CSV_FILE if path.is_dir() else path
    if path.is_dir() and (ResultsFolder(path).exists or not file.is_file()):
        return check(load(path), path)
    try:
        trials = pd.read_csv(file, dtype=dict.fromkeys((*_TEXT, LOSS, "trial"), "str"))
    except FileNotFoundError:
        raise HskdError(
            f"{file}: no such file or folder. Run the grid first (hskd grid run), or give the path of its results."
        ) from None
    except pd.errors.EmptyDataError:
        raise HskdError(f"{file}: the file is empty. Run the grid again to write its table.") from None
    except (ValueError, OSError, csv.Error, OverflowError, MemoryError) as error:  # ParserError and UnicodeDecodeError
        reason = cut(str(error))
        raise HskdError(f"{file}: cannot be read as a CSV table ({reason}). Give the table of a grid.") from None
    for column in (*_TEXT, LOSS, "trial"):
        if column in trials:
            trials[column] = trials[column].map(spreadsheet.original)
    trials = check(trials, file)
    folder = ResultsFolder(file.parent)
    if folder.exists and "trial" in trials:
        _compare(trials, load(folder.path), file)
    return trials


def _compare(trials: pd.DataFrame, results: pd.DataFrame, file: Path) -> None:
    """Check a table against the results in the same folder.

    Raises:
        HskdError: the table has other trials or other values than the results.
    """
    rows = trials.set_index("trial")
    expected = check(results).set_index("trial")
    remedy = f"Give the folder {file.parent}, or move the table elsewhere to have it read by itself."
    gone, new = [*rows.index.difference(expected.index)], [*expected.index.difference(rows.index)]
    if gone or new or rows.index.has_duplicates:
        raise HskdError(
            f"{file}: lacks {len(new)} trials of the results beside it, and has {len(gone)} that are not there. "
            f"{remedy}"
        )
    for column in (*_TEXT, LOSS, *NUMBERS):
        if column in rows and column in expected:
            first, second = rows[column], expected[column].loc[rows.index]
            same = (first == second) | (first.isna() & second.isna())
            if column in NUMBERS:
                same |= np.isclose(first, second, rtol=1e-12, atol=0)
            if not same.all():
                trial = rows.index[int(np.flatnonzero(~same.to_numpy())[0])]
                raise HskdError(
                    f"{file}: column {column} of trial {trial} says {cut(str(first[trial]))}, and its result "
                    f"{cut(str(second[trial]))}. {remedy}"
                )


def check(trials: pd.DataFrame, source: Path | str = "the table") -> pd.DataFrame:
    """Return a copy of ``trials`` with checked values and the right column types. Messages call it ``source``.

    Raises:
        HskdError: the table is empty, or a column is missing or holds invalid values.
    """
    missing = [column for column in (*_TEXT, "w", *_NUMBERS) if column not in trials]
    if missing:
        raise HskdError(f"{source}: no column {', '.join(missing)}. Give the table of a grid, with its header row.")
    if trials.empty:
        raise HskdError(f"{source}: no trials, only a header row. Run the grid until one trial is done.")
    trials = trials.copy()
    for column in (*_TEXT, *([LOSS] if LOSS in trials else [])):
        cells = [_text(cell) for cell in trials[column].array]
        _refuse(source, trials, column, [cell is None for cell in cells if column not in _MAY_BE_EMPTY], "is missing")
        _refuse(source, trials, column, [len(cell or "") > LONGEST_TEXT for cell in cells], "is too long for a name")
        _refuse(source, trials, column, [not _is_text(cell or "") for cell in cells], "is not text")
        trials[column] = pd.Series([cell or "" for cell in cells], index=trials.index, dtype="str")
    for column in NUMBERS:
        if column in trials:
            numbers = _as_numbers(trials[column])
            wrong, what = numbers.isna() & trials[column].notna() | np.isinf(numbers), "is not a number"
            if column in _NUMBERS:
                wrong, what = ~np.isfinite(numbers), "is missing or not a number"
            _refuse(source, trials, column, wrong, what)
            trials[column] = numbers
    for column in _WHOLE:
        values = trials[column]
        _refuse(source, trials, column, (values % 1 != 0) | (values.abs() >= 2**53), "is not a whole number")
        trials[column] = values.astype(np.int64)
    for column in _SCORES:
        _refuse(source, trials, column, trials[column].abs() > 1, "is not a share (a score of 79 % is written 0.79)")
    for column in _AMOUNTS:
        wrong = [not _AMOUNT.fullmatch(cell) for cell in trials[column]]
        _refuse(source, trials, column, wrong, "is not an amount (a whole number or all)")
    on_curve = trials["arm"].isin(("spec", "full"))
    bad_fraction = on_curve & ~trials["fraction"].between(0, 1, inclusive="right")
    _refuse(source, trials, "fraction", bad_fraction, "is not above 0 and at most 1")
    no_bytes = on_curve & (trials["bytes_per_example"] <= 0)
    _refuse(source, trials, "bytes_per_example", no_bytes, "is not above 0")
    _refuse(source, trials, "spec", (trials["arm"] == "spec") & (trials["spec"] == ""), "has no label")
    if LOSS in trials:  # Arms without an HSK stage have no such loss, and an empty cell means the squared error.
        trials[LOSS] = trials[LOSS].mask(~trials["arm"].isin(DISTILLED) | (trials[LOSS] == "mse"), "")
    return trials


def _text(cell: Any) -> str | None:
    """Return a cell as text, or None for an empty cell."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return None
    try:
        return str(cell)
    except ValueError:  # an integer of thousands of digits
        return brief(cell)


def _is_text(cell: str) -> bool:
    """Return whether a cell can be written to a file and displayed."""
    try:
        return "\0" not in cell.encode().decode()
    except UnicodeEncodeError:
        return False


def _as_numbers(cells: pd.Series[Any]) -> pd.Series[Any]:
    """Return cells as numbers; NaN for anything else, such as true, a word or a number too large for a float."""
    if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "iuf":
        return cells

    def number(cell: Any) -> float:
        try:
            return math.nan if isinstance(cell, (bool, np.bool_)) else float(cell)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    return cells.map(number).astype(np.float64)


def _refuse(source: Path | str, trials: pd.DataFrame, column: str, bad: Any, what: str) -> None:
    wrong = np.asarray(bad, dtype=bool)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        value = _text(trials[column].iloc[index])
        example = f" ({cut(value.encode('utf-8', 'backslashreplace').decode())})" if value else ""
        raise HskdError(
            f"{source}: column {column}{example} {what} in {int(wrong.sum())} of {len(trials)} trials, first in data "
            f"row {index + 1}. Run those trials again, or take their rows out."
        )


@dataclass(frozen=True, eq=False)
class Study:
    """Trials that may be compared: those of one task, teacher, student, training set and split.

    Make a study with :meth:`of`. A *point* is a spec or an arm: it has one place on a curve. There may be a *full*
    point for each mapping, precision and loss of the HSK stage. ``trials`` has a row per trial, with the columns of the
    table and these:

    * ``name``: of the point. The spec's label, or the arm, with its mapping and its loss where there are several.
    * ``strategy``: how the spec selects, regardless of how much. It lists the settings that vary among the study's
      specs, such as ``left`` or ``l_top=5, random``. It is empty where nothing varies, and for other arms. A dimension
      that is kept whole has no strategy, so such a spec belongs to the strategy that it fits, if exactly one does.
    * ``reference``: name of the full point of the same mapping and loss; of several precisions, the one of most bytes.
      Arms without a mapping refer to the only full point. It is empty where there is no such point.
    * ``hsk_loss``: the loss of the HSK stage, empty for the squared error.
    """

    task: str
    teacher: str
    student: str
    train_examples: int
    score_split: str
    trials: pd.DataFrame
    folder: Path | None = None
    """The results folder that the trials come from, if any."""

    @classmethod
    def of(cls, trials: pd.DataFrame, folder: Path | None = None, source: Path | str = "the table") -> Study:
        """Return the study of ``trials``, a table like that of :func:`read_trials`. The table is checked again.

        Raises:
            HskdError: :func:`check` rejects the table; it holds several tasks, teachers, students, training sets or
                splits; or it has two trials of one point and seed.
        """
        return cls._of_checked(check(trials, source), folder, source)

    @classmethod
    def _of_checked(cls, trials: pd.DataFrame, folder: Path | None, source: Path | str) -> Study:
        for column in (*KEYS, "teacher_score"):
            values = trials[column].unique()
            if len(values) > 1:
                examples = ", ".join(map(str, values[:4]))
                raise HskdError(
                    f"{source}: column {column} has {len(values)} values ({examples}), and trials that differ in it "
                    "cannot be compared. Keep the rows of one value."
                )
        named = with_names(trials)
        twice = named.duplicated(["name", "seed"])
        if twice.any():
            row = named[twice].iloc[0]
            raise HskdError(
                f"{source}: column seed: {row['name']} has two trials with seed {row['seed']}. They differ in "
                "something the label does not say, or one is a repeat: keep the rows of one."
            )
        first = trials.iloc[0]
        return cls(
            task=first["task"],
            teacher=first["teacher"],
            student=first["student"],
            train_examples=int(first["train_examples"]),
            score_split=first["score_split"],
            trials=named,
            folder=folder,
        )

    @property
    def title(self) -> str:
        """Title for readers: task, student, training examples and split."""
        return f"{self.task} · {self.student} · {self.train_examples:,} training examples · {self.score_split}"

    @property
    def slug(self) -> str:
        """Name for files: everything that defines the study, in letters, digits, dots and hyphens."""
        parts = (self.task, self.teacher, self.student, self.train_examples, self.score_split)
        text = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, parts))).strip("-.")
        return text if len(text) <= LONGEST_SLUG else f"{text[:LONGEST_SLUG]}-{fingerprint(parts)}"

    @cached_property
    def unit(self) -> str:
        """Unit of 100 times a score, as stored in the results; per cent where only a table is known."""
        if self.folder is None or "trial" not in self.trials:
            return "%"
        result = ResultsFolder(self.folder).result(str(self.trials["trial"].iloc[0]))
        return "%" if result is None else result.score_unit

    @property
    def teacher_score(self) -> float:
        """The teacher's score, a share of 1."""
        return float(self.trials["teacher_score"].iloc[0])

    @property
    def full_bytes(self) -> float:
        """Bytes an example of full HSK in fp16, the most of any mapping; NaN where the table has no such trial."""
        full = self.trials[(self.trials["arm"] == "full") & (self.trials["precision"] == "fp16")]
        return float(full["bytes_per_example"].max())

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores as shares of 1, a row per seed and a column per point; NaN where there is no such trial."""
        return self.trials.pivot(index="seed", columns="name", values="score")

    @cached_property
    def points(self) -> pd.DataFrame:
        """Arm, spec, strategy, reference and amounts of each point, by its name, from the least HSK up."""
        first = self.trials.drop_duplicates("name").set_index("name")
        columns = ["arm", "spec", "strategy", "reference", *AMOUNT_COLUMNS, *_FIELDS, LOSS, "w"]
        return first[columns].sort_values([*AMOUNT_COLUMNS], kind="stable")

    @cached_property
    def parts(self) -> dict[str, Parts]:
        """Parts of each *spec* and *full* point, by name (see :func:`~hskd.analysis.stats.points.taken_apart`)."""
        return taken_apart_by_name(self.trials)

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """:attr:`points` as plain dicts, which are faster to look up."""
        return self.points.to_dict("index")  # type: ignore[return-value]

    def amount(self, name: str, column: str) -> float:
        """Return how much HSK a point keeps; ``column`` is one of ``AMOUNT_COLUMNS``."""
        return float(self._rows[name][column])

    @cached_property
    def strategies(self) -> list[str]:
        """The strategies of the study's specs, in the order of the table."""
        return list(self.trials.loc[self.trials["arm"] == "spec", "strategy"].unique())

    @property
    def dimension(self) -> str:
        """The dimension whose amount varies over the specs, or ``joint`` where several vary."""
        return self.dimension_of(self.strategies)

    def dimension_of(self, strategies: Sequence[str]) -> str:
        """Return the dimension that varies over the specs of ``strategies``, or ``joint`` where several vary.

        For a single spec, it is the dimension in which the spec keeps less than full.
        """
        specs = self.trials[(self.trials["arm"] == "spec") & self.trials["strategy"].isin(strategies)]
        for rows in (specs, pd.concat([specs, self.trials[self.trials["arm"] == "full"]])):
            # Tables of earlier versions have no column of examples.
            there = [(name, column) for name, column in DIMENSION_COLUMNS.items() if column in rows]
            varying = [name for name, column in there if rows[column].nunique(dropna=False) > 1]
            if varying:
                return varying[0] if len(varying) == 1 else "joint"
        return "joint"

    def ladder(self, strategy: str, by: str = AMOUNT_COLUMNS[0]) -> tuple[list[str], str]:
        """Return a strategy's points from the least amount up, and the name of the full point above them.

        That full point is the one of most bytes. Where the strategy's specs differ in precision, the other full points
        of its mapping are steps below it. A spec that keeps as much as full or more is left out. The name is empty
        where there is no full point.

        Raises:
            HskdError: ``by`` is not one of ``AMOUNT_COLUMNS``.
        """
        if by not in AMOUNT_COLUMNS:
            raise HskdError(f"by: {by!r} is no column of amounts; expected {' or '.join(AMOUNT_COLUMNS)}.")
        order = (by, *(column for column in AMOUNT_COLUMNS if column != by))

        def amounts(name: str) -> tuple[float, ...]:
            return tuple(self.amount(name, column) for column in order)

        rows = self._rows
        specs = [name for name, row in rows.items() if row["arm"] == "spec" and row["strategy"] == strategy]
        references = sorted({rows[name]["reference"] for name in specs} - {""})  # sorted, so that ties are stable
        references.sort(key=amounts)
        if not references:
            return sorted(specs, key=amounts), ""
        full = references[-1]
        precisions = {rows[name]["precision"] for name in specs}
        others = [
            name
            for name, row in rows.items()
            if row["arm"] == "full" and row["reference"] in references and len(precisions) > 1
            if name != full and row["precision"] in precisions
        ]
        steps = sorted([*specs, *others], key=amounts)
        return [name for name in steps if amounts(name) < amounts(full)], full


def only_study(path: Path) -> Study:
    """Return the only study of a results folder or table (see :func:`read_trials`).

    Raises:
        HskdError: there are several studies, or as in :func:`studies`.
    """
    all_studies = studies(path)
    if len(all_studies) > 1:
        titles = ", ".join(study.title for study in all_studies)
        raise HskdError(f"{path}: holds {len(all_studies)} studies ({titles}); give the table of one.")
    return all_studies[0]


def studies(path: Path) -> list[Study]:
    """Return the studies of a results folder or table (see :func:`read_trials`), in the order of the table.

    Raises:
        HskdError: :func:`read_trials` or :meth:`Study.of` rejects the table.
    """
    path = Path(path)
    trials = read_trials(path)
    folder = path if path.is_dir() else path.parent
    results = folder if ResultsFolder(folder).exists else None
    groups = trials.groupby(list(KEYS), sort=False)
    return [Study._of_checked(group.reset_index(drop=True), results, path) for _, group in groups]
