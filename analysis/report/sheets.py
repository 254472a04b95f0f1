"""Tables of a report: all digits for programs, and rounded values with intervals for readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hskd.analysis.stats.sufficiency import Sufficiency, percent
from hskd.analysis.table import AMOUNT_COLUMNS
from hskd.io import write_text
from hskd.results import spreadsheet
from hskd.statistics import CONFIDENCE

BYTES_SHARE, VALUES_SHARE = "share of full's bytes in fp16", "share of full's values"
"""Column headers of the two shares of full HSK."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """One table.

    Attributes:
        name: of its files.
        title: heading on the page.
        about: what its columns are, in a sentence or two.
        data: all numbers, scores as shares of 1.
        text_table: the same as text, scores in per cent or points.
        numeric: the columns of ``text_table`` that are aligned right.
    """

    name: str
    title: str
    about: str
    data: pd.DataFrame
    text_table: pd.DataFrame
    numeric: tuple[str, ...]

    def write(self, folder: Path) -> list[Path]:
        """Write ``<name>.csv`` (data) and ``<name>.tex`` (text_table) into ``folder``, and return their paths.

        Raises:
            HskdError: the folder cannot be written.
        """
        table, source = folder / f"{self.name}.csv", folder / f"{self.name}.tex"
        spreadsheet.write(self.data, table, "%.10g")
        write_text(source, self.latex())
        return [table, source]

    def latex(self) -> str:
        """The table as a LaTeX ``tabular`` with booktabs rules, for ``\\input``."""
        text_table = self.text_table.map(lambda cell: " ".join(cell.split()))  # An empty line would end the table.
        styler = text_table.style.hide(axis="index").format(escape="latex").format_index(axis="columns", escape="latex")
        sides = "".join("r" if column in self.numeric else "l" for column in self.text_table)
        return f"% {self.title}. Needs \\usepackage{{booktabs}}.\n{styler.to_latex(hrules=True, column_format=sides)}"


def points_sheet(points: pd.DataFrame, unit: str = "%") -> Sheet:
    """The table of :func:`hskd.analysis.stats.curves.points`."""
    # Without bounds, several seeds do not show a gap, and a share of it would be a ratio of two accidents.
    closed = points.assign(relative=points["relative"].where(points["relative_low"].notna() | (points["n"] < 2)))
    text_table = pd.DataFrame(
        {
            "point": points["name"],
            "strategy": points["strategy"],
            "bytes an example": _each(points["bytes_per_example"], _whole),
            BYTES_SHARE: _shares(points["bytes_share"]),
            "values an example": _each(points["kept_per_example"], _whole),
            VALUES_SHARE: _shares(points["fraction"]),
            f"score, {unit}": _intervals(points, "mean", "low", "high"),
            "seeds": points["n"].astype(str),
            "above none, points": _intervals(points, "above_none", "above_none_low", "above_none_high", 2),
            "gap closed, %": _intervals(closed, "relative", "relative_low", "relative_high", 0),
        }
    )
    about = (
        "Intervals: t over seeds; above none paired by seed; gap closed by Fieller, left empty where several seeds do "
        "not show the gap itself."
    )
    return _sheet("points", "Scores", about, points, text_table, ("point", "strategy"))


def marginal_utility_sheet(steps: pd.DataFrame, x: str = AMOUNT_COLUMNS[0]) -> Sheet:
    """The table of :func:`hskd.analysis.stats.curves.marginal_utility` along the column ``x``."""
    title, say = (VALUES_SHARE, percent) if x == "fraction" else ("bytes an example", _whole)
    text_table = pd.DataFrame(
        {
            "from": steps["from_name"],
            "to": steps["to_name"],
            "strategy": steps["strategy"],
            title: [f"{say(low)} to {say(high)}" for low, high in zip(steps["low_x"], steps["high_x"], strict=True)],
            "gain per doubling, points": _intervals(steps, "gain", "low", "high", 2),
            "seeds": steps["n"].astype(str),
        }
    )
    about = "Score gained for each doubling of the HSK, paired by seed. Points closer than half a doubling are pooled."
    return _sheet("marginal_utility", "Marginal utility", about, steps, text_table, ("strategy", "from", "to"))


def minimum_sheet(answers: Sequence[Sufficiency]) -> Sheet:
    """The tests behind answers of :func:`hskd.analysis.stats.sufficiency.minimum_sufficient`, for either scope."""
    parts = [
        answer.tests.assign(
            strategy=answer.strategy,
            scope="new examples" if answer.new_examples else "these examples",
            margin=answer.limit,
        )
        for answer in answers
    ]
    data = pd.concat([part for part in parts if not part.empty], ignore_index=True)
    data = data[["scope", "strategy", *(column for column in data if column not in ("scope", "strategy"))]]
    text_table = pd.DataFrame(
        {
            "point": data["name"],
            "strategy": data["strategy"],
            "speaks of": data["scope"],
            "loss against full, points": _each(data["loss"], lambda value: _points(value, 2)),
            "at least": _each(data["low"], lambda value: _points(value, 2)),
            "at most": _each(data["high"], lambda value: _points(value, 2)),
            "margin": _each(data["margin"], lambda value: _points(value, 2)),
            "seeds": data["n"].astype(str),
            "by itself": data["verdict"],
        }
    )
    about = (
        f"At least, at most: one-sided {100 * answers[0].confidence:g} % bounds, each of one test alone; the answer "
        "above follows from testing them in their order."
    )
    text = ("speaks of", "strategy", "point", "by itself")
    return _sheet("minimum", "Tests of the minimum", about, data, text_table, text)


def verdicts_sheet(points: pd.DataFrame, answers: Sequence[Sufficiency], unit: str = "%") -> Sheet:
    """Each of :func:`hskd.analysis.stats.curves.points` with its loss against full HSK, and what its test shows."""
    columns = {"name": "name", "loss": "loss", "low": "loss_low", "high": "loss_high", "verdict": "verdict"}
    parts = [answer.tests for answer in answers if not answer.tests.empty]
    tests = pd.concat(parts) if parts else pd.DataFrame(columns=[*columns], dtype=float).astype({"name": str})
    # Each strategy has a test of none; the tests differ where the strategies are held against several fulls.
    tests = tests.drop_duplicates(["name", "loss"]).drop_duplicates("name", keep=False)
    kept = ["arm", "name", "strategy", "fraction", "bytes_per_example", "bytes_share", "mean", "low", "high", "n"]
    data = points[kept].merge(tests[[*columns]].rename(columns=columns), "left", "name")
    data["verdict"] = (
        data["verdict"].astype(object).fillna("").mask(data["loss"].isna() & (data["arm"] == "full"), "full")
    )
    text_table = pd.DataFrame(
        {
            "point": data["name"],
            "strategy": data["strategy"],
            "bytes an example": _each(data["bytes_per_example"], _whole),
            BYTES_SHARE: _shares(data["bytes_share"]),
            f"score, {unit}": _intervals(data, "mean", "low", "high"),
            "seeds": data["n"].astype(str),
            "loss against full, points": _intervals(data, "loss", "loss_low", "loss_high", 2),
            "by itself": data["verdict"],
        }
    )
    sure = f"{100 * CONFIDENCE:g} %"
    about = (
        f"Score: {sure} t-intervals over seeds. Loss: paired by seed, with one-sided {sure} bounds. By itself: each "
        "test alone; the verdict follows from testing them in their order."
    )
    return _sheet("verdicts", "Verdicts", about, data, text_table, ("point", "strategy", "by itself"))


def strategies_sheet(comparison: pd.DataFrame) -> Sheet:
    """The table of :func:`hskd.analysis.stats.strategies.compare_strategies`."""
    text_table = _compared(comparison)
    about = "Differences paired by seed, mean over the matched settings; p from a paired t-test, by Holm per dimension."
    return _sheet("strategies", "Strategies", about, comparison, text_table, _COMPARED)


def by_amount_sheet(comparison: pd.DataFrame) -> Sheet:
    """The table of :func:`hskd.analysis.stats.strategies.by_amount`."""
    text_table = _compared(comparison)
    text_table.insert(1, "amount", comparison["amount"].astype(str))
    about = "As the table of strategies, at each amount; Holm over all rows."
    return _sheet("strategies_by_amount", "Strategies at each amount", about, comparison, text_table, _COMPARED)


def surface_sheet(surface: pd.DataFrame, unit: str = "%") -> Sheet:
    """The table of :func:`hskd.analysis.stats.joint.surface`."""
    text_table = pd.DataFrame(
        {
            "point": surface["name"],
            "layers": surface["n"].astype(str),
            "tokens": surface["k"].astype(str),
            "neurons": [percent(value) for value in surface["w"]],
            "bytes an example": _each(surface["bytes_per_example"], _whole),
            VALUES_SHARE: _shares(surface["fraction"]),
            f"score, {unit}": _each(surface["score"], lambda value: _points(value, 1)),
            "seeds": surface["n_seeds"].astype(str),
        }
    )
    return _sheet("surface", "All dimensions at once", "Mean scores over the seeds.", surface, text_table, ("point",))


def pareto_sheet(pareto: pd.DataFrame, unit: str = "%") -> Sheet:
    """The front of :func:`hskd.analysis.stats.joint.pareto`; ``data`` also holds the points off the front."""
    front = pareto[pareto["front"]]
    text_table = pd.DataFrame(
        {
            "point": front["name"],
            "strategy": front["strategy"],
            "bytes an example": _each(front["bytes_per_example"], _whole),
            BYTES_SHARE: _shares(front["bytes_share"]),
            VALUES_SHARE: _shares(front["fraction"]),
            f"score, {unit}": _intervals(front, "mean", "low", "high"),
            "seeds": front["n"].astype(str),
        }
    )
    return _sheet(
        "pareto",
        "Pareto front",
        "What no other point beats at its price in bytes.",
        pareto,
        text_table,
        ("point", "strategy"),
    )


def equal_bytes_sheet(compared: pd.DataFrame, unit: str = "%") -> Sheet:
    """The table of :func:`hskd.analysis.stats.equal_bytes.equal_bytes`."""
    text_table = pd.DataFrame(
        {
            "group": compared["group"].astype(str),
            "point": compared["name"],
            "bytes an example": _each(compared["bytes_per_example"], _whole),
            BYTES_SHARE: _shares(compared["bytes_share"]),
            f"score, {unit}": _intervals(compared, "mean", "low", "high"),
            "seeds": compared["n"].astype(str),
            "behind the best mean, points": _intervals(compared, "behind", "behind_low", "behind_high", 2),
            "p (Holm)": _each(compared["p_holm"], _p),
            "verdict": compared["verdict"],
        }
    )
    about = "Groups within half a doubling of bytes; differences paired by seed, Holm over all pairs of a group."
    return _sheet("equal_bytes", "At about equal bytes", about, compared, text_table, ("point", "verdict"))


def next_byte_sheet(steps: pd.DataFrame) -> Sheet:
    """The table of :func:`hskd.analysis.stats.joint.next_byte`."""
    text_table = pd.DataFrame(
        {
            "from": steps["from_name"],
            "dimension": steps["dimension"],
            "to": steps["to_name"],
            "more bytes": _each(steps["extra_bytes"], _whole),
            "gain, points": _intervals(steps, "gain", "low", "high", 2),
            "per doubling": _each(steps["gain_per_doubling"], lambda value: _points(value, 2)),
            "p (Holm)": _each(steps["p_holm"], _p),
            "seeds": steps["n"].astype(str),
            "verdict": steps["verdict"],
        }
    )
    about = "From each point of the front, the next larger amount of each dimension; gains paired by seed."
    return _sheet(
        "next_byte", "Where the next byte goes", about, steps, text_table, ("from", "dimension", "to", "verdict")
    )


_COMPARED = ("dimension", "amount", "first", "second", "better")


def _compared(comparison: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "dimension": comparison["dimension"],
            "first": comparison["a"],
            "second": comparison["b"],
            "settings": comparison["matched"].astype(str),
            "first - second, points": _intervals(comparison, "difference", "low", "high", 2),
            "p": _each(comparison["p"], _p),
            "p (Holm)": _each(comparison["p_holm"], _p),
            "seeds": comparison["n"].astype(str),
            "better": comparison["verdict"],
        }
    )


def _sheet(
    name: str, title: str, about: str, data: pd.DataFrame, text_table: pd.DataFrame, text: Sequence[str]
) -> Sheet:
    # A column without any text, such as the strategy where there is only one, is left out.
    text_table = text_table[[str(column) for column in text_table if (text_table[column] != "").any()]].reset_index(
        drop=True
    )
    return Sheet(
        name, title, about, data, text_table, tuple(str(column) for column in text_table if column not in text)
    )


def _intervals(table: pd.DataFrame, mean: str, low: str, high: str, digits: int = 1) -> list[str]:
    rows = zip(table[mean], table[low], table[high], strict=True)
    return [_interval(*row, digits) for row in rows]


def _interval(mean: float, low: float, high: float, digits: int) -> str:
    if math.isnan(mean):
        return ""
    # The bounds equal the mean where a point is compared with itself.
    if math.isnan(low) or math.isnan(high) or low == mean == high:
        return _points(mean, digits)
    return f"{_points(mean, digits)} ({_points(low, digits)} to {_points(high, digits)})"


def _each(values: pd.Series[float], say: Callable[[float], str]) -> list[str]:
    return ["" if math.isnan(value) else say(value) for value in values]


def _shares(values: pd.Series[float]) -> list[str]:
    return _each(values, lambda value: percent(value) if value else "0")


def _points(score: float, digits: int) -> str:
    text = f"{100 * score:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
