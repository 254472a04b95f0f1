"""The command ``hskd report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hskd.cli.plugin_option import plugin_option
from hskd.errors import HskdError


@plugin_option
def report(
    results: Annotated[
        Path, typer.Argument(help="Folder of a grid's results, or its table as CSV; or folder of a finished search.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report (default: report, in the results folder).")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0, help="Points of score that a spec may lose against full HSK and still be enough (default: 0.5)."
        ),
    ] = None,
    axis: Annotated[
        Literal["bytes", "values"] | None,
        typer.Option(
            help="Measure amounts in bytes an example (the default), or as the paper's share of full HSK's values."
        ),
    ] = None,
) -> None:
    """Write a report on how little HSK is enough: one page, with figures (PNG, SVG) and tables (CSV, LaTeX) beside it.

    The page needs no other file and no network. It also says what the results cannot show. For the folder of a search
    by hskd find, it is the page that the search wrote, made again from its recorded answer.
    """
    from hskd.analysis.report.page import write_report
    from hskd.analysis.stats.sufficiency import MARGIN
    from hskd.minimum.finished import ANSWER_FILE
    from hskd.results import GRID_FILE

    if (results / ANSWER_FILE).is_file() and not (results / GRID_FILE).is_file():
        page = _page_of_search(results, out, margin, axis)
    else:
        page = write_report(results, out, MARGIN if margin is None else margin / 100, axis=axis or "bytes")
    print(f"report: {page}")


def _page_of_search(folder: Path, out: Path | None, margin: float | None, axis: str | None) -> Path:
    """Write the page of a finished search.

    Raises:
        HskdError: an option is given that only the report of a grid has.
    """
    from hskd.analysis.minimum import FindResult
    from hskd.analysis.report.minimum_page import write_page

    for option, value in (("--margin", margin), ("--axis", axis)):
        if value is not None:
            raise HskdError(
                f"{option}: {folder} holds a search, which fixed before its first trial how much may be lost. Omit it, "
                "or run hskd find with another --tolerance."
            )
    return write_page(FindResult.load(folder), out)
