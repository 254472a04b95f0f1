"""Write the page of a search: the answer, its evidence, every stage, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hskd.analysis.figures import style
from hskd.analysis.figures.hover import Key
from hskd.analysis.figures.minimum import caption
from hskd.analysis.report.page import INDEX
from hskd.analysis.report.pictures import Picture, Texts
from hskd.analysis.report.rendering import render
from hskd.analysis.stats.sufficiency import percent
from hskd.io import write_text
from hskd.minimum.search import CHAIN, DEARER_SHARE, GAP_LEVEL

if TYPE_CHECKING:
    from hskd.analysis.minimum import FindResult

FIND_REPORT = "find-report"
"""Name of the page's folder within the results folder. It differs from that of ``hskd report``."""

_TITLES = {
    "name": "spec",
    "bytes_per_example": "bytes an example",
    "loss": "loss, points",
    "low": "at least",
    "high": "at most",
    "n": "seeds",
    "expected": "expected loss, points",
    "spread": "its spread, points",
    "verdict": "verdict",
}
"""Column headings of the page, by column."""


def write_page(result: FindResult, out: Path | None = None) -> Path:
    """Write the page of a search. It needs no other file; its figure and tables lie beside it.

    Args:
        result: the search.
        out: folder of the page [default: ``find-report`` in the results folder].

    Returns:
        The path of ``index.html``.

    Raises:
        HskdError: ``out`` cannot be written.
    """
    out = out or result.folder / FIND_REPORT
    figure = result.figure()
    style.save(figure, out / "figures" / "losses.png")
    vector = style.save(figure, out / "figures" / "losses.svg")
    explanation = caption(1 - result.settings.level)
    for name, table in (("tests", result.tests), ("screened", result.screened)):
        write_text(out / "tables" / f"{name}.csv", table.to_csv(index=False))
    page = render(
        "minimum.html.j2",
        result=result,
        headline=_headline(result),
        picture=Picture.of(figure, vector, "losses", "Loss against full HSK by bytes", explanation, _texts(result)),
        rules=_rules(result),
        rates=_rates(result),
        tests=_cells(result.tests),
        screened=_cells(result.screened),
        stages=_stages(result),
    )
    write_text(out / INDEX, page)
    return out / INDEX


def _headline(result: FindResult) -> str:
    """The answer in a sentence."""
    match result.outcome.verdict:
        case "enough":
            assert result.outcome.answer is not None, "enough without an answer"
            stored = result.chosen[result.outcome.answer].bytes_per_example
            share = percent(stored / result.full_bytes)
            return f"Enough: {share} of the bytes of all hidden states, with the spec {result.answer}."
        case "no gap":
            return "No gap: hidden states are not shown to help."
        case "nothing is enough":
            return "Nothing is enough of what was tried below all hidden states."
        case _:
            return "Undetermined: these trials do not show how much is enough."


def _texts(result: FindResult) -> Texts:
    """The texts of the figure's markers: rows of the tables, and the share of full HSK's bytes."""
    texts: Texts = {}
    for kind, table in (("screened", result.screened), ("tested", result.tests)):
        columns, rows = _cells(table)
        for (name, *cells), stored in zip(rows, table["bytes_per_example"], strict=True):
            lines = [f"{column}: {cell}" for column, cell in zip(columns[1:], cells, strict=True)]
            share = f"share of full's bytes: {percent(stored / result.full_bytes)}"
            texts[Key(kind, name)] = (name, lines[0], share, *lines[1:])
    return texts


def _rules(result: FindResult) -> list[str]:
    """The rules that were fixed before the first trial or before confirmation."""
    settings, known = result.settings, result.outcome.known
    search_seeds = f"{settings.first_search_seed} and up"
    rules = [
        f"May be lost: {result.margin}. Budget: {settings.budget} trials. Candidates: {len(result.chosen):,}.",
        f"Search seeds: {search_seeds}. Fresh seeds: {settings.first_seed} and up; they took no part in a choice.",
        f"Gap: a one-sided test at {100 * GAP_LEVEL:g} % over all looks.",
        f"Confirmation: one-sided paired t-tests at {100 * settings.level:g} % over all looks, spent by a "
        f"{settings.spending.replace('_', '-')} function, with looks at {', '.join(map(str, known.looks))} seeds.",
    ]
    if known.chain:
        names = " > ".join(result.chosen[index].name for index in known.chain)
        chances = ", ".join(f"{100 * least:g}" for least in CHAIN)
        rules.append(
            f"Order of the tests, fixed by screening: {names}. First the safest, then the cheapest whose test succeeds "
            f"with {chances} %. Each is tested only if the one before is enough, so the level is not divided."
        )
    if known.dearer:
        names = " > ".join(result.chosen[index].name for index in known.dearer)
        rules.append(
            f"If the first is not shown to be enough: {names}, fixed at the same time. {100 * DEARER_SHARE:g} % of the "
            "level is kept for them."
        )
    return rules


def _rates(result: FindResult) -> list[tuple[str, str]]:
    return [
        (name, f"{rates.prediction:g}" if name == "none" else f"{rates.hsk:g} and {rates.prediction:g}")
        for name, rates in result.outcome.known.rates.items()
    ]


def _stages(result: FindResult) -> list[tuple[int, str, str, int]]:
    return [
        (number, batch.stage, batch.why, len(batch.trials))
        for number, batch in enumerate(result.outcome.history, start=1)
    ]


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings, and cells as text; losses in points."""
    columns = [str(column) for column in table.columns]
    headings = [_TITLES[column] for column in columns]
    return headings, [[_cell(column, row[column]) for column in columns] for row in table.to_dict("records")]


def _cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if column == "bytes_per_example" else f"{100 * value:.2f}"
