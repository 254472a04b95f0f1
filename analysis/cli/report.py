"""The command ``hskd report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hskd.cli.plugin_option import plugin_option


@plugin_option
def report(
    results: Annotated[Path, typer.Argument(help="Folder of a grid's results, or its table as CSV.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report (default: report, in the results folder).")
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="Points of score that a spec may lose against full HSK and still be enough.")
    ] = 0.5,
    axis: Annotated[
        Literal["bytes", "values"],
        typer.Option(help="Measure amounts in bytes an example, or as the paper's share of full HSK's values."),
    ] = "bytes",
) -> None:
    """Write a report on how little HSK is enough: one page, with figures (PNG, SVG) and tables (CSV, LaTeX) beside it.

    The page needs no other file and no network. It also says what the results cannot show.
    """
    from hskd.analysis.report.page import write_report

    print(f"report: {write_report(results, out, margin / 100, axis=axis)}")
