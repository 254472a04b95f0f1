"""The table of results: one tidy row for each trial, made of the trials' results whenever you ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.errors import CorruptionError, brief
from hskd.results import spreadsheet
from hskd.trials.result import StageRecord, TrialResult

if TYPE_CHECKING:
    import pandas as pd


LARGEST = 2**63 - 1
"""The largest number of a column."""
_WORDS = {float: "a number", int: "a whole number of at most 64 bits", str: "text", list: "a list"}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: its header.
        description: what its values mean.
        get: its value for a trial's result.
        may_lack: its values are numbers that a trial may lack; the column holds floats even if no trial has one.
        kind: what its values are: float (any number), int, str (or None) or list.
    """

    name: str
    description: str
    get: Callable[[TrialResult], Any]
    may_lack: bool = False
    kind: type = float

    def of(self, result: TrialResult) -> Any:
        """The value for a trial.

        Raises:
            ValueError: the result holds something else there.
        """
        value = self.get(result)
        if value is None and (self.may_lack or self.kind is str):
            return value
        expected = (float, int) if self.kind is float else self.kind
        large = isinstance(value, int) and abs(value) > LARGEST
        if not isinstance(value, expected) or isinstance(value, bool) or large:
            raise ValueError(f"column {self.name}: expected {_WORDS[self.kind]}, got {brief(value)}")
        return value


def _config(result: TrialResult) -> dict[str, Any]:
    return result.config or {}


def _amount(result: TrialResult, dimension: str, field: str) -> str:
    """A field of the spec as text: amounts are numbers or ``all``, and a Parquet column has one type."""
    value = (result.spec_fields or {}).get(dimension, {}).get(field)
    return "" if value is None else str(value)


_NO_STAGE = StageRecord(
    epochs=0, steps=0, examples=0, seconds=0.0, examples_per_second=0.0, first_loss=None, last_loss=None
)


def _stage(result: TrialResult, name: str) -> StageRecord:
    return result.stages.get(name, _NO_STAGE)


def _examples_per_second(result: TrialResult) -> float | None:
    stages = [_stage(result, name) for name in ("hsk", "prediction")]
    seconds = sum(stage.seconds for stage in stages)
    return sum(stage.epochs for stage in stages) * result.train_examples / seconds if seconds else None


def _clipped_share(result: TrialResult) -> float | None:
    """Of trials of earlier versions; later ones do not record it."""
    stages = [_stage(result, name) for name in ("hsk", "prediction")]
    recorded = [(stage.steps, stage.clipped_share) for stage in stages if stage.clipped_share is not None]
    steps = sum(count for count, _ in recorded)
    return sum(count * share for count, share in recorded) / steps if steps else None


_COLUMNS = (
    Column(
        "trial", "fingerprint of the trial's config; names its files in trials/", lambda result: result.id, kind=str
    ),
    Column("task", "name of the task", lambda result: result.task, kind=str),
    Column("teacher", "the teacher's model", lambda result: _config(result)["teacher"]["model"], kind=str),
    Column("student", "kind and sizes of the student", lambda result: result.student_name, kind=str),
    Column(
        "train_examples",
        "examples that the student trained on, augmented ones included",
        lambda result: result.train_examples,
        kind=int,
    ),
    Column("arm", "spec, full, none, paper_none, gold or shuffled", lambda result: result.settings["arm"], kind=str),
    Column(
        "spec",
        "label of the HSK spec; empty but for the arms spec, full and shuffled",
        lambda result: result.spec or "",
        kind=str,
    ),
    Column("seed", "decides batches, dropout and W", lambda result: result.settings["seed"], kind=int),
    Column(
        "fraction",
        "kept values / values of full HSK of the same mapping, on real tokens",
        lambda result: result.fraction,
    ),
    Column(
        "fraction_padded",
        "the same, counted on tokens padded to the maximum length, as in the paper",
        lambda result: result.fraction_padded,
    ),
    Column("kept_values", "values kept, over all training examples", lambda result: result.kept_values, kind=int),
    Column("bytes_per_example", "what the spec's store takes on disk", lambda result: result.bytes_per_example),
    Column("n", "depth: top student layers kept", lambda result: _amount(result, "depth", "n"), kind=str),
    Column(
        "l_top",
        "depth: teacher layer, or share of its layers, that the top student layer learns from",
        lambda result: _amount(result, "depth", "l_top"),
        kind=str,
    ),
    Column("length", "length: selector", lambda result: _amount(result, "length", "selector"), kind=str),
    Column("k", "length: tokens kept of an example", lambda result: _amount(result, "length", "k"), kind=str),
    Column("width", "width: selector", lambda result: _amount(result, "width", "selector"), kind=str),
    Column(
        "w",
        "width: share of the neurons kept",
        lambda result: (result.spec_fields or {}).get("width", {}).get("w"),
        may_lack=True,
    ),
    Column("precision", "precision: selector", lambda result: _amount(result, "precision", "selector"), kind=str),
    Column(
        "score",
        "what is reported: the score on score_split after the last epoch, a share of 1",
        lambda result: result.metrics[result.scored_split]["score"],
    ),
    Column("score_split", "test where it has labels, else dev", lambda result: result.scored_split, kind=str),
    Column(
        "mismatched_score",
        "mnli: the score on the mismatched split beside score_split",
        lambda result: result.metrics.get(f"{result.scored_split}_mismatched", {}).get("score", math.nan),
    ),
    Column("dev_score", "score on dev after the last epoch", lambda result: result.metrics["dev"]["score"]),
    Column(
        "best_dev_score",
        "best score on dev over the epochs of the last stage; for information, not for reporting",
        lambda result: result.best_dev_score,
        may_lack=True,
    ),
    Column(
        "dev_scores", "score on dev after each epoch of the last stage", lambda result: result.dev_scores, kind=list
    ),
    Column(
        "teacher_score",
        "the teacher's score on score_split",
        lambda result: (result.teacher_metrics or {})[result.scored_split]["score"],
    ),
    Column(
        "held_out_hsk_loss",
        "after the HSK stage: loss against full HSK of the same mapping, on dev examples",
        lambda result: _stage(result, "hsk").held_out_loss,
        may_lack=True,
    ),
    Column("hsk_epochs", "epochs of the HSK stage", lambda result: _stage(result, "hsk").epochs, kind=int),
    Column(
        "prediction_epochs", "epochs of the last stage", lambda result: _stage(result, "prediction").epochs, kind=int
    ),
    Column(
        "hsk_lr",
        "learning rate of the HSK stage",
        lambda result: result.settings["hsk_lr"] if "hsk" in result.stages else None,
        may_lack=True,
    ),
    Column("prediction_lr", "peak learning rate of the last stage", lambda result: result.settings["prediction_lr"]),
    Column("hsk_seconds", "time of the HSK stage", lambda result: _stage(result, "hsk").seconds),
    Column("prediction_seconds", "time of the last stage", lambda result: _stage(result, "prediction").seconds),
    Column(
        "examples_per_second",
        "over both stages, each example counted once an epoch",
        _examples_per_second,
        may_lack=True,
    ),
    Column(
        "clipped_share",
        "share of the steps whose gradient was clipped; recorded before TrialResult had a version",
        _clipped_share,
        may_lack=True,
    ),
    Column(
        "peak_memory_bytes",
        "peak resident memory of the process that ran the trial, which may have run others before",
        lambda result: result.peak_memory_bytes,
        kind=int,
    ),
    Column("dtype", "fp32, or bf16 for autocast", lambda result: result.dtype, kind=str),
    Column("device", "where the student trained", lambda result: result.device, kind=str),
    Column("threads", "CPU threads of the trial", lambda result: result.threads, kind=int),
    Column("git_commit", "of the code", lambda result: result.made_by["git_commit"], kind=str),
)
COLUMNS = {column.name: column.description for column in _COLUMNS}
"""Every column of the table, and what it means."""
NUMBERS = tuple(column.name for column in _COLUMNS if column.kind in (int, float))
"""The columns that hold numbers."""
_FIELDS = {
    "depth": {"n", "l_top", "selector"},
    "length": {"selector", "k"},
    "width": {"selector", "w"},
    "examples": {"selector", "e"},
}
"""The fields of selectors that have a column of their own in :data:`COLUMNS`."""
_ORDER = ["student", "seed", "fraction", "arm", "spec", "trial"]


def table_of(results: Mapping[str, TrialResult]) -> pd.DataFrame:
    """The table of some results, by id: the columns of :data:`COLUMNS`, then the further fields of selectors, sorted.

    Such a column is named ``DIMENSION.FIELD``, holds text, and is empty where a selector has no such field. There is a
    column ``hsk_loss``, too, where a trial has another loss of the HSK stage than the squared error; and ``examples``
    and ``e``, selector and share, where one keeps HSK of a share of the examples (empty for those that keep all).

    Raises:
        CorruptionError: a result lacks what a column needs; the message names the trial.
    """
    import pandas as pd

    rows = []
    for trial, result in results.items():
        try:
            rows.append(row(result))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            reason = error if isinstance(error, ValueError) else brief(error)
            raise CorruptionError(
                f"{trial}.json: not a trial's result ({reason}); delete it and run the grid."
            ) from None
    further = sorted({name for values in rows for name in values} - set(COLUMNS))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *further])
    table[further] = table[further].fillna("")
    table = table.astype({column.name: float for column in _COLUMNS if column.may_lack})
    return table.sort_values(_ORDER, kind="stable", ignore_index=True)


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, with lists as numbers separated by spaces; returns ``path``.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    flat = table.assign(dev_scores=[" ".join(map(str, scores)) for scores in table["dev_scores"]])
    return spreadsheet.write(flat, path)


def row(result: TrialResult) -> dict[str, Any]:
    """A trial's result as a row of the table, with the further fields of its selectors.

    Raises:
        ValueError: it holds something else than a column does.
        KeyError, TypeError, AttributeError: it lacks what a column needs.
    """
    return {column.name: column.of(result) for column in _COLUMNS} | _further(result)


def contradiction(stored: Mapping[str, Sequence[Any]], results: Sequence[TrialResult]) -> str | None:
    """Where the columns of a table say something else than the results of its rows; None if nowhere.

    Columns that this version does not know are not compared, and those of earlier versions may lack some.
    """
    rows = [row(result) for result in results]
    further = {name for values in rows for name in values} - set(COLUMNS)
    for name in (*COLUMNS, *sorted(further)):
        for place, (recorded, values) in enumerate(zip(stored.get(name, ()), rows, strict=False)):
            expected = values.get(name, "")
            if not _same(recorded, expected):
                row_said = f"column {name} says {brief(recorded)} in data row {place + 1}"
                return f"{row_said}, and the trial's result {brief(expected)}"
    return None


def _same(recorded: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return isinstance(recorded, list) and recorded == expected
    nothing = [value is None or value != value for value in (recorded, expected)]
    if any(nothing):
        return all(nothing)
    return isinstance(recorded, str) == isinstance(expected, str) and bool(recorded == expected)


def _further(result: TrialResult) -> dict[str, str]:
    loss = result.settings.get("hsk_loss")
    share = (result.spec_fields or {}).get("examples", {})
    chosen = {"examples": str(share["selector"]), "e": str(share["e"])} if share else {}
    return (
        ({} if loss is None else {"hsk_loss": loss})
        | chosen
        | {
            f"{dimension}.{field}": str(value)
            for dimension, fields in (result.spec_fields or {}).items()
            for field, value in fields.items()
            if field not in _FIELDS.get(dimension, {"selector"})
        }
    )
