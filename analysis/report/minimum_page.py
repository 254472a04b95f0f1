"""The page of a search: the answer, its evidence, every stage, and the command."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from hskd.analysis.figures import style
from hskd.analysis.figures.minimum import caption
from hskd.analysis.report.page import INDEX
from hskd.io import write_text
from hskd.minimum.search import CHAIN, GAP_LEVEL

if TYPE_CHECKING:
    from hskd.analysis.minimum import FindResult

FIND_REPORT = "find-report"
"""The folder of the page, in that of the results; ``hskd report`` has one of its own there."""


def write_page(result: FindResult, out: Path | None = None) -> Path:
    """Write the page of a search, which needs no other file, with its figure and tables beside it.

    Args:
        result: the search.
        out: folder of the page [default: ``find-report`` in that of the results].

    Returns:
        The path of ``index.html``.

    Raises:
        HskdError: ``out`` cannot be written.
    """
    out = out or result.folder / FIND_REPORT
    figure = result.figure()
    style.save(figure, out / "figures" / "losses.png")
    vector = style.save(figure, out / "figures" / "losses.svg")
    environment = Environment(
        loader=PackageLoader("hskd.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, table in (("tests", result.tests), ("screened", result.screened)):
        write_text(out / "tables" / f"{name}.csv", table.to_csv(index=False))
    page = environment.get_template("minimum.html.j2").render(
        result=result,
        picture=base64.b64encode(vector.read_bytes()).decode(),
        caption=caption(1 - result.settings.level),
        rules=_rules(result),
        rates=_rates(result),
        tests=_cells(result.tests),
        screened=_cells(result.screened),
        stages=_stages(result),
    )
    write_text(out / INDEX, page)
    return out / INDEX


def _rules(result: FindResult) -> list[str]:
    """What was decided before the first trial, and before confirmation."""
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
    """Headings and cells as text; losses in points."""
    columns = [str(column) for column in table.columns]
    return columns, [[_cell(column, row[column]) for column in columns] for row in table.to_dict("records")]


def _cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if column == "bytes_per_example" else f"{100 * value:.2f}"
