"""Search a grid's learning rates, on sentences and seeds that the grid does not report.

The arms *none* and *full* and every family of specs are searched in the same way: the best rate for full HSK may ruin a
student that learns from little HSK. A search adds each trial to a table, skips trials that its work folder
already has, and writes the best rates into a file that a grid reads from its key ``rates``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy import stats

from hskd.errors import HskdError
from hskd.grid.estimate import amount_of
from hskd.grid.executors import Executor, InProcess, Workers
from hskd.grid.rates import FULL, NONE, FamilyRates, family_of_arm
from hskd.grid.run import GridProgress
from hskd.grid.spec import GridSpec
from hskd.io import write_text
from hskd.results import ResultsFolder, load, spreadsheet
from hskd.spec import HSKSpec
from hskd.teachers.loading import load_config
from hskd.trials.config import Machine, TrialConfig
from hskd.trials.workspace import Workspace

COLUMNS = {
    "student": str,
    "train_examples": int,
    "held_out": int,
    "family": str,
    "arm": str,
    "hsk_epochs": int,
    "prediction_epochs": int,
    "hsk_lr": float,
    "prediction_lr": float,
    "seed": int,
    "dev_score": float,
}
"""The columns of a search's table. ``arm`` is the spec's label, or else the arm; ``dev_score`` is the score on the
``held_out`` training sentences, or on dev if none are held out."""
SEARCH_KEYS = [name for name in COLUMNS if name not in ("seed", "dev_score")]
"""The columns that identify what a trial of a search tried."""
MAY_LACK = ("train_examples", "held_out", "family", "hsk_epochs", "hsk_lr")
NONE_COLUMNS = {"grid": str, "none_lr": float, "seed": int, "dev_score": float, "score": float}
"""The columns of the table of :func:`add_none_trials`."""
NONE_KEYS = ["grid", "none_lr"]
"""The columns that, with the seed, identify a row of :func:`none_trials`."""


@dataclass(frozen=True)
class Rates:
    """The learning rates that a search tries, and the points that it tries them on.

    Attributes:
        none: rates of the arm *none*.
        hsk: rates of the HSK stage.
        prediction: rates of the prediction stage after it; every pair with ``hsk`` is tried.
        specs: labels of the specs to try [default: the middle one by bytes of each family and band].
        bands: sizes in bytes per example that divide each family into bands, each with rates of its own.
    """

    none: Sequence[float]
    hsk: Sequence[float]
    prediction: Sequence[float]
    specs: Sequence[str] = ()
    bands: Sequence[float] = ()


@dataclass(frozen=True)
class Part:
    """A group of trials with the same rates: a family, or its specs in one band of bytes.

    Attributes:
        family: name of the family.
        student: name of the student.
        specs: labels of the specs of the band; empty for the whole family.
        tried: the points that the rates are tried on: labels of specs, or the arm.
    """

    family: str
    student: str
    specs: tuple[str, ...]
    tried: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The best rates of a part.

    Attributes:
        part: the part.
        rates: its rates.
        score: mean score over the seeds and the points that were tried.
        settings: how many rates, or pairs of rates, were compared.
        seeds: on how many seeds.
        edge: in words, which rates are the highest or the lowest of several that were compared.
        doubt: in words, the next best rates, if the seeds do not show these to be worse.
    """

    part: Part
    rates: FamilyRates
    score: float
    settings: int
    seeds: int
    edge: str
    doubt: str = ""


def parts_of(grid: GridSpec, rates: Rates, work: Path, machine: Machine) -> list[Part]:
    """Return the parts that a search chooses rates for, by student: *none*, *full*, and each family, by band.

    Raises:
        HskdError: one of ``rates.specs`` is not a spec of the grid.
    """
    trials = grid.trials(machine)
    first = [trial for trial in trials if trial.settings.seed == trials[0].settings.seed]
    known = {trial.spec.label for trial in first if trial.spec is not None}
    asked = [HSKSpec.parse(label).label for label in rates.specs]
    if unknown := [label for label in asked if label not in known]:
        raise HskdError(f"--specs {unknown[0]}: is not a spec of the grid {grid.name}; add it under include.")
    workspace = Workspace(work, trials)
    encoder = load_config(workspace.shared.teacher_plan.model)
    sizes: dict[tuple[str, str], dict[str, float]] = {}
    for trial in first:
        if trial.settings.arm not in ("full", "spec"):
            continue
        assert trial.spec is not None
        key = trial.student_name, family_of_arm(trial.settings, trial.spec)
        amount = amount_of(trial.spec, trial, workspace, workspace.train, encoder)
        sizes.setdefault(key, {})[trial.spec.label] = amount.bytes_per_example
    parts = [Part(NONE, student.name, (), (NONE,)) for student in grid.students]
    for (student, family), stored in sizes.items():
        if family.partition(",")[0] == FULL:
            # If there are several mappings and precisions, try the largest; they all share the rates.
            parts.append(Part(family, student, (), (max(stored, key=lambda label: stored[label]),)))
            continue
        bands = [band for band in _bands(stored, rates.bands) if not asked or set(band) & set(asked)]
        for band in bands:
            tried = tuple(label for label in asked if label in band) or (band[(len(band) - 1) // 2],)
            parts.append(Part(family, student, tuple(band) if rates.bands else (), tried))
    return parts


def _bands(sizes: dict[str, float], cuts: Sequence[float]) -> Iterator[list[str]]:
    """Yield bands of labels, sorted by bytes and divided at ``cuts``. Empty bands are left out."""
    edges = [0.0, *sorted(cuts), math.inf]
    ordered = sorted(sizes, key=lambda label: (sizes[label], label))
    for low, high in itertools.pairwise(edges):
        band = [label for label in ordered if low <= sizes[label] < high]
        if band:
            yield band


def search_trials(grid: GridSpec, rates: Rates, parts: Sequence[Part], machine: Machine) -> list[TrialConfig]:
    """Return the trials of a search: *none* at each of its rates, all other parts at each pair of rates."""
    points = {(part.student, label) for part in parts for label in part.tried}
    specs = tuple(sorted({label for _, label in points if label != NONE}))
    bare = grid.model_copy(
        update={"sweeps": (), "include": specs, "exclude": (), "arms": (), "more_seeds": None, "rates": ()}
    )
    trials = [
        trial
        for none_rate in rates.none
        for trial in bare.model_copy(update={"none_lr": none_rate}).trials(machine)
        if trial.settings.arm == "none"
    ]
    for hsk_rate, prediction_rate in itertools.product(rates.hsk, rates.prediction):
        training = bare.training.model_copy(update={"hsk_lr": hsk_rate, "prediction_lr": prediction_rate})
        trials += [
            trial
            for trial in bare.model_copy(update={"training": training}).trials(machine)
            if trial.spec is not None and (trial.student_name, trial.spec.label) in points
        ]
    return trials


def search(grid: GridSpec, rates: Rates, table: Path, work: Path, workers: int, progress: GridProgress) -> Path:
    """Run a search: add each trial to ``table`` as it finishes, and write the best rates beside the table.

    Args:
        grid: the grid whose rates are searched, with the seeds of the search and the number of held-out sentences.
        rates: the rates to try.
        table: the CSV file to add to. The file of rates has the same name with the ending ``.yaml``.
        work: folder of artifacts; trials that an earlier search left there are not run again.
        workers: number of trials at the same time.
        progress: receives a report of each trial.

    Returns:
        The file of rates.

    Raises:
        HskdError: a trial failed, the table is damaged, or a part has no trial.
    """
    machine = Machine.here()
    if table.is_file():
        read_table(table)  # Refuse a damaged table now, not after hours of training.
    parts = parts_of(grid, rates, work, machine)
    trials = search_trials(grid, rates, parts, machine)
    if trials:
        _run(trials, table, work, Workers(workers) if workers > 1 else InProcess(), grid.name, progress)
    elif not table.is_file():
        raise HskdError(f"{table}: no such file, and no rates to try; give --none-lr, or --hsk-lr and --prediction-lr.")
    file = table.with_suffix(".yaml")
    write_text(file, rates_text(grid, chosen(read_table(table), grid, parts)))
    return file


def _run(
    trials: Sequence[TrialConfig], table: Path, work: Path, executor: Executor, name: str, progress: GridProgress
) -> None:
    workspace = Workspace(work, trials)
    workspace.ensure_shared(progress)
    failed = []
    for done, (config, result, error) in enumerate(
        executor.run(workspace, trials, work / "rates" / name, progress), start=1
    ):
        if result is None:
            failed.append(f"{config.title}: {error}")
            news = failed[-1]
        else:
            row = search_row(config, result.metrics["dev"]["score"])
            add_rows(table, pd.DataFrame([row]), COLUMNS, SEARCH_KEYS, MAY_LACK)
            news = f"{row['arm']}, rates {row['hsk_lr'] or '-'} and {row['prediction_lr']}, seed {row['seed']}"
        progress.trials(done - len(failed), len(failed), len(trials), news)
    if failed:
        raise HskdError(
            f"{len(failed)} of {len(trials)} trials failed, so no rates are chosen. The first: {failed[0]}. "
            "Run the same command again: finished trials are kept."
        )


def search_row(config: TrialConfig, dev_score: float) -> dict[str, Any]:
    """Return a trial's row in the table of a search."""
    settings = config.settings
    values = (
        config.student_name,
        config.task.train_examples,
        config.task.held_out,
        family_of_arm(settings, config.spec),
        _point(settings.arm, config.spec),
        settings.hsk_epochs,
        settings.prediction_epochs,
        settings.hsk_lr if settings.arm != NONE else None,
        settings.prediction_lr,
    )
    return dict(zip(SEARCH_KEYS, values, strict=True)) | {"seed": settings.seed, "dev_score": dev_score}


def _point(arm: str, spec: HSKSpec | None) -> str:
    """Return the spec's label, also for *full* because there may be several, or else the arm."""
    return arm if spec is None else spec.label


def read_table(path: Path) -> pd.DataFrame:
    """Read and validate the table of a search.

    Raises:
        HskdError: there is no table, or it is damaged.
    """
    return spreadsheet.read(path, COLUMNS, MAY_LACK)


def chosen(table: pd.DataFrame, grid: GridSpec, parts: Sequence[Part]) -> list[Choice]:
    """Return the rates of each part with the best mean score in ``table``; among equal scores, the lowest rates.

    Only rates that were tried on the most seeds, and on all points of the part, are compared.

    Raises:
        HskdError: no trial of a part is in the table.
    """
    task, training = grid.task, grid.training
    same = {
        "train_examples": task.train_examples,
        "held_out": task.held_out,
        "hsk_epochs": training.hsk_epochs,
        "prediction_epochs": training.prediction_epochs,
    }
    for column, value in same.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    choices = []
    for part in parts:
        rows = table[(table["student"] == part.student) & (table["family"] == part.family)]
        rows = rows[rows["arm"].isin(part.tried)]
        if rows.empty:
            raise HskdError(
                f"{part.family}: no rates were tried for {', '.join(part.tried)} of {part.student}; give --none-lr for "
                "none, --hsk-lr and --prediction-lr for all else."
            )
        settings = rows.groupby(["hsk_lr", "prediction_lr"], dropna=False)["dev_score"].agg(["mean", "count"])
        compared = settings[settings["count"] == settings["count"].max()]["mean"].sort_index()
        (hsk_rate, prediction_rate), score = compared.idxmax(), compared.max()
        rates = FamilyRates(
            family=part.family,
            student=part.student if len(grid.students) > 1 else None,
            specs=part.specs,
            hsk_lr=None if math.isnan(hsk_rate) else hsk_rate,
            prediction_lr=prediction_rate,
        )
        edges = [
            f"{name} {'highest' if value == max(tried) else 'lowest'}"
            for name, value in rates.changes.items()
            if len(tried := set(compared.index.get_level_values(name))) > 1 and value in (min(tried), max(tried))
        ]
        seeds = int(settings["count"].max()) // len(part.tried)
        doubt = _doubt(rows, compared, seeds)
        choices.append(Choice(part, rates, float(score), len(compared), seeds, ", ".join(edges), doubt))
    return choices


def _doubt(rows: pd.DataFrame, compared: pd.Series[float], seeds: int) -> str:
    """Return the rates with the second best mean, in words, unless a paired t-test (5 %) shows them to be worse."""
    if len(compared) < 2:
        return ""
    best, other = compared.sort_values(ascending=False, kind="stable").index[:2]
    lead = (_by_seed(rows, *best) - _by_seed(rows, *other)).dropna()
    if len(lead) > 1 and stats.ttest_1samp(lead, 0, alternative="greater").pvalue <= 0.05:
        return ""
    names = [
        f"{name} {value:g}" for name, value in zip(compared.index.names, other, strict=True) if not math.isnan(value)
    ]
    less = f"{100 * lead.mean():.2g} points less"
    return f"{seeds} seed{'s' * (seeds > 1)} cannot rank it against {', '.join(names)} ({less})"


def _by_seed(rows: pd.DataFrame, hsk_rate: float, prediction_rate: float) -> pd.Series[float]:
    hsk = rows["hsk_lr"].isna() if math.isnan(hsk_rate) else rows["hsk_lr"] == hsk_rate
    return rows[hsk & (rows["prediction_lr"] == prediction_rate)].groupby("seed")["dev_score"].mean()


def rates_text(grid: GridSpec, choices: Sequence[Choice]) -> str:
    """Return the text of the file of rates: a list that a grid reads under ``rates``, with a comment on each entry."""
    task = grid.task
    where = "dev" if task.held_out is None else f"{task.held_out:,} training sentences held out"
    lines = [f"# Rates of the grid {grid.name}, searched by `hskd grid search` on {where}."]
    for choice in choices:
        score = f"{choice.score:.4f}, best of {choice.settings} on {choice.seeds} seeds"
        edge = f"; at the edge of what was tried: {choice.edge}" if choice.edge else ""
        doubt = f"; {choice.doubt}" if choice.doubt else ""
        lines.append(f"# {score}, tried on {', '.join(choice.part.tried)}{edge}{doubt}")
        entry = choice.rates.model_dump(mode="json")
        lines.append("- " + yaml.safe_dump(entry, sort_keys=False, default_flow_style=True, width=10_000).strip())
    return "\n".join(lines) + "\n"


def none_trials(folder: Path) -> pd.DataFrame:
    """Return the scores of *none* in a finished grid, one row per seed, under the grid's name."""
    trials = load(folder)
    none = trials.loc[trials["arm"] == "none", ["prediction_lr", "seed", "dev_score", "score"]]
    none.insert(0, "grid", (ResultsFolder(folder).grid() or {}).get("name", folder.name))
    return none.rename(columns={"prediction_lr": "none_lr"})


def add_none_trials(folders: Sequence[Path], table: Path) -> pd.DataFrame:
    """Add the trials of *none* of finished grids, run at different rates, to ``table``.

    Returns:
        Mean dev score and mean score of every grid and rate in ``table``, with the number of seeds.

    Raises:
        HskdError: ``table`` is damaged, or a folder holds no results.
    """
    rows = add_rows(table, pd.concat([none_trials(folder) for folder in folders]), NONE_COLUMNS, NONE_KEYS)
    return rows.groupby(NONE_KEYS)[["dev_score", "score"]].agg(["mean", "count"])


def add_rows(
    path: Path, rows: pd.DataFrame, columns: dict[str, type], keys: Sequence[str], may_lack: Sequence[str] = ()
) -> pd.DataFrame:
    """Write ``rows`` into a table, replacing rows with the same ``keys`` and seed, and return the whole table.

    Raises:
        HskdError: the existing table is damaged.
    """
    tables = [spreadsheet.read(path, columns, may_lack)] if path.is_file() else []
    order = [*keys, "seed"]
    table = pd.concat([*tables, rows.astype({name: float for name in may_lack if columns[name] is not str})])
    table = table.drop_duplicates(order, keep="last").sort_values(order, ignore_index=True)
    spreadsheet.write(table.astype({name: "Int64" for name in may_lack if columns[name] is int}), path)
    return table
