"""The marginal-utility figure: what the student scores against how much of the teacher's HSK it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from analysis import style
from hskd.errors import HskdError

TITLE = "How much of the teacher's hidden-state knowledge is enough?"
CONFIDENCE = 0.95
CURVE_ARMS = ("spec", "full")  # the arms that are points of the curve; every arm but spec is a horizontal line

_TEXT = ("task", "student", "arm", "spec", "score_split")
_NUMBERS = ("train_examples", "seed", "fraction", "score", "teacher_score")
_SCORES = ("score", "teacher_score")
_DASHES: dict[str, Any] = {
    "teacher": (0, (7, 2)),
    "full": (0, (4, 2)),
    "none": (0, (1.5, 1.5)),
    "paper_none": (0, (1, 3)),
    "gold": (0, (6, 2, 1, 2)),
    "shuffled": (0, (3, 2, 1, 2, 1, 2)),
}


def read_trials(path: Path) -> pd.DataFrame:
    """Read the table of a grid's results: a CSV file with one row per trial.

    Needs the columns task, student, train_examples, arm, spec (the label; empty but for the arm spec), seed,
    fraction (kept values / values of full HSK), score and teacher_score (shares, not per cent) and score_split
    (``test`` or ``dev``); keeps any others as they are.

    Raises:
        HskdError: the file is missing, is no CSV table, is empty, or a column is missing or holds what it may not.
    """
    try:
        trials = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, "str"))
    except FileNotFoundError:
        raise HskdError(f"{path}: no such file. Run the grid first, or give the path of its table.") from None
    except pd.errors.EmptyDataError:
        raise HskdError(f"{path}: the file is empty. Run the grid again to write its table.") from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise HskdError(f"{path}: cannot be read as a CSV table ({error}). Give the table of a grid.") from None

    missing = [column for column in (*_TEXT, *_NUMBERS) if column not in trials]
    if missing:
        raise HskdError(f"{path}: no column {', '.join(missing)}. Give the table of a grid, with its header row.")
    if trials.empty:
        raise HskdError(f"{path}: no trials, only a header row. Run the grid until one trial is done.")

    trials["spec"] = trials["spec"].fillna("")
    for column in _NUMBERS:
        trials[column] = pd.to_numeric(trials[column], errors="coerce")
    for column in (*_TEXT, *_NUMBERS):
        bad = trials[column].isna() | (trials[column].abs() == np.inf if column in _NUMBERS else False)
        _refuse(path, trials, column, bad, "is missing or not a number" if column in _NUMBERS else "is missing")
    for column in _SCORES:
        _refuse(path, trials, column, trials[column].abs() > 1, "is not a share (a score of 79 % is written 0.79)")
    on_curve = trials["arm"].isin(CURVE_ARMS)
    bad = on_curve & ~trials["fraction"].between(0, 1, inclusive="right")
    _refuse(path, trials, "fraction", bad, "is not above 0 and at most 1")
    _refuse(path, trials, "spec", (trials["arm"] == "spec") & (trials["spec"] == ""), "has no label")
    return trials


def summarise(trials: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each spec, and of each other arm, over its seeds.

    Returns:
        One row per spec and per other arm, by rising fraction: arm, spec (empty but for the arm spec), fraction,
        mean, low, high (shares; the bounds of the 95 % t-interval of the mean, NaN where n is 1), n (seeds).

    Raises:
        HskdError: two trials share arm, label and seed, so that a mean would mix two different things.
    """
    # A label beside another arm (say, all_all_all beside full) distinguishes nothing.
    keyed = trials.assign(spec=trials["spec"].where(trials["arm"] == "spec", ""))
    twice = keyed.duplicated(["arm", "spec", "seed"])
    if twice.any():
        row = keyed[twice].iloc[0]
        name = row["spec"] or row["arm"]
        raise HskdError(
            f"column seed: {name} has two trials with seed {row['seed']}. They differ in something the label does not "
            "say, or one is a repeat: keep the rows of one."
        )
    grouped = keyed.groupby(["arm", "spec"], sort=False)
    summary = grouped.agg(
        fraction=("fraction", "mean"), mean=("score", "mean"), deviation=("score", "std"), n=("score", "size")
    ).reset_index()
    seeds = summary["n"].to_numpy()
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(seeds - 1, 1))
    half = quantile * summary["deviation"] / np.sqrt(seeds)  # the deviation of one score is NaN, and so is this
    summary = summary.assign(low=summary["mean"] - half, high=summary["mean"] + half)
    summary = summary.sort_values(["fraction", "mean"], kind="stable", ignore_index=True)
    return summary[["arm", "spec", "fraction", "mean", "low", "high", "n"]]


def marginal_utility_figure(trials: pd.DataFrame, path: Path) -> Path:
    """Draw score against fraction of full HSK for one task, student and training set; write it to ``path`` (PNG).

    Raises:
        HskdError: the trials are of several tasks, students, training sets, splits or teachers; none has the arm
            spec; two share label and seed; or ``path`` cannot be written.
    """
    with style.figure() as (figure, axes):
        figure.subplots_adjust(left=0.105, right=0.805, top=0.86, bottom=0.185)
        draw(axes, trials)
        summary = summarise(trials)
        subtitle = (
            f"{_only(trials, 'task')} · {_only(trials, 'student')} · "
            f"{int(_only(trials, 'train_examples')):,} training sentences · {_seeds(summary)}"
        )
        figure.text(0.015, 0.975, TITLE, fontsize=11, weight="bold", va="top")
        figure.text(0.015, 0.918, subtitle, fontsize=8, color="0.3", va="top")
        figure.text(0.015, 0.02, footnote(summary), fontsize=style.SMALL, color="0.3")
        return style.save(figure, path)


def draw(axes: Axes, trials: pd.DataFrame) -> None:
    """Draw the curve, the horizontal lines and all labels into ``axes``, in per cent; raises as the figure does.

    The margins of the figure must be final, and leave room for labels at the right.
    """
    summary = summarise(trials)
    curve = summary[summary["arm"].isin(CURVE_ARMS)]
    if not (curve["arm"] == "spec").any():
        raise HskdError("column arm: no trial of the arm spec, so there is no curve. Run the grid until one is done.")
    percent = curve[["fraction", "mean", "low", "high"]] * 100
    scattered = trials[trials["arm"].isin(CURVE_ARMS)]

    x, y = percent["fraction"].to_numpy(), percent["mean"].to_numpy()
    bars = np.nan_to_num(np.stack([y - percent["low"].to_numpy(), percent["high"].to_numpy() - y]))
    axes.plot(x, y, "-o", color=style.CURVE, lw=1.2, ms=4.5, zorder=4, label="mean per spec")
    if (curve["n"] > 1).any():
        axes.errorbar(x, y, bars, fmt="none", ecolor=style.CURVE, elinewidth=0.9, capsize=2, alpha=0.8, zorder=3)
    axes.scatter(
        scattered["fraction"] * 100,
        scattered["score"] * 100,
        s=11,
        color=style.CURVE,
        alpha=0.35,
        linewidths=0,
        zorder=3,
        label="trial",
    )

    others = summary[summary["arm"] != "spec"]
    levels = [
        ("teacher", 100 * float(_only(trials, "teacher_score"))),
        *zip(others["arm"], 100 * others["mean"], strict=True),
    ]
    # One band only, none's: full has its interval as a bar at 100 %, and bands upon bands tell nothing apart.
    none = others[(others["arm"] == "none") & (others["n"] > 1)]
    for low, high in zip(100 * none["low"], 100 * none["high"], strict=True):
        axes.axhspan(low, high, color=style.ARM_COLOURS["none"], alpha=0.1, lw=0, zorder=0)
    for arm, level in levels:
        axes.axhline(
            level, color=style.ARM_COLOURS.get(arm, "0.5"), ls=_DASHES.get(arm, "--"), lw=1.1, zorder=1, label=arm
        )

    axes.set_xscale("log")
    axes.set_xlim(x.min() / 2.2, max(100.0, x.max()) * 1.25)
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{np.format_float_positional(value, precision=6, trim='-')} %")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.09)
    axes.autoscale_view(scalex=False)
    axes.set_xlabel("fraction of full HSK (log scale)")
    axes.set_ylabel(f"{_only(trials, 'score_split')} score on {_only(trials, 'task')} (%)")

    _label_levels(axes, levels)
    specs = curve[curve["arm"] == "spec"]
    labels = list(zip(100 * specs["fraction"], 100 * specs["mean"], specs["spec"], strict=True))
    style.label_points(axes, labels, _drawn(axes, x, y, bars, [level for _, level in levels]))


def footnote(summary: pd.DataFrame) -> str:
    """What the dots and the intervals are, from the number of seeds in ``summary``'s rows."""
    if summary["n"].max() == 1:
        return "1 seed: each point is a single trial and carries no interval."
    text = (
        "Pale dots: trials. Dark dots: mean per spec. "
        f"Bars, and the band of none: {100 * CONFIDENCE:g} % t-interval of the mean over seeds"
    )
    return f"{text}; no interval where there is 1 seed." if summary["n"].min() == 1 else f"{text}."


def _seeds(summary: pd.DataFrame) -> str:
    low, high = int(summary["n"].min()), int(summary["n"].max())
    if low == high:
        return "1 seed" if low == 1 else f"{low} seeds"
    return f"{low} to {high} seeds"


def _refuse(path: Path, trials: pd.DataFrame, column: str, bad: pd.Series[bool], what: str) -> None:
    if bad.any():
        index = int(np.flatnonzero(bad.to_numpy())[0])
        value = trials[column].iloc[index]
        shown = "" if pd.isna(value) or value == "" else f" ({value})"
        raise HskdError(
            f"{path}: column {column}{shown} {what} in {int(bad.sum())} of {len(trials)} trials, first in data row "
            f"{index + 1}. Run those trials again, or take their rows out."
        )


def _only(trials: pd.DataFrame, column: str) -> Any:
    values = trials[column].unique()
    if len(values) != 1:
        shown = ", ".join(map(str, values[:4]))
        raise HskdError(
            f"column {column}: {len(values)} values ({shown}); one figure shows one. Keep the rows of one value."
        )
    return values[0]


def _label_levels(axes: Axes, levels: list[tuple[str, float]]) -> None:
    """Name the horizontal lines in the right margin, apart from each other, each tied to its line."""
    height = axes.get_window_extent().height / style.pixels_per_point(axes)  # points
    to_axes = axes.transLimits  # data to shares of the axes; the vertical axis is linear
    wanted = [float(to_axes.transform((0, level))[1]) for _, level in levels]
    line = 1.3 * 8 / height
    placed = style.spread(wanted, line, line / 2, 1 - line / 2)
    for (arm, level), at, moved in zip(levels, wanted, placed, strict=True):
        colour = style.ARM_COLOURS.get(arm, "0.5")
        axes.plot([1.0, 1.015, 1.03], [at, moved, moved], color=colour, lw=0.8, transform=axes.transAxes, clip_on=False)
        axes.text(1.04, moved, f"{arm} {level:.1f}", color=colour, fontsize=8, va="center", transform=axes.transAxes)


def _drawn(axes: Axes, x: np.ndarray, y: np.ndarray, bars: np.ndarray, levels: list[float]) -> np.ndarray:
    """Points along the curve, its bars and the horizontal lines: ``(n, 2)``, in data units."""
    steps = np.linspace(0, 1, 60)
    along = np.log10(x)
    curve = [
        np.stack([10 ** (along[i] + steps * (along[i + 1] - along[i])), y[i] + steps * (y[i + 1] - y[i])], axis=1)
        for i in range(len(x) - 1)
    ]
    upright = [
        np.stack([np.full(60, x[i]), y[i] - bars[0, i] + steps * bars[:, i].sum()], axis=1)
        for i in range(len(x))
        if bars[:, i].any()
    ]
    low, high = np.log10(axes.get_xlim())
    flat = [np.stack([10 ** (low + steps * (high - low)), np.full(60, level)], axis=1) for level in levels]
    return np.concatenate([*curve, *upright, *flat])
