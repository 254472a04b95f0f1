"""The command ``hskd overview``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hskd.cli.plugin_option import plugin_option
from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.analysis.figures.overview import Line


@plugin_option
def overview(
    results: Annotated[
        list[str],
        typer.Argument(
            help="Results folders of one teacher, student and task. Write FOLDER:STRATEGY where a grid has several "
            "strategies, such as results/mr-length:attention_no_sep.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The figure, .png or .svg.")] = Path("overview.png"),
    axis: Annotated[
        Literal["bytes", "values"], typer.Option(help="Bytes an example, or the share of full HSK's values.")
    ] = "bytes",
) -> None:
    """Draw several grids in one figure, to compare the dimensions, and all of them together, at equal amounts."""
    from hskd.analysis.figures import style
    from hskd.analysis.figures.overview import overview_figure
    from hskd.analysis.table import AXES

    figure = overview_figure([_line(text) for text in results], AXES[axis])
    print(f"figure: {style.save(figure, out)}")


def _line(text: str) -> Line:
    from hskd.analysis.figures.overview import Line
    from hskd.analysis.table import only_study

    path, _, strategy = (text, "", "") if Path(text).exists() else text.rpartition(":")
    study = only_study(Path(path or text))
    known = study.strategies
    if not known:
        raise HskdError(f"{text}: no trial of the arm spec, so there is no line to draw.")
    chosen = strategy or (known[0] if len(known) == 1 else "")
    if chosen not in known:
        raise HskdError(f"{text}: say which strategy, as {path}:STRATEGY; there are {', '.join(known)}.")
    return Line(study, chosen)
