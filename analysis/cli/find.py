"""The command ``hskd find``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hskd.cli.options import ExecutorOptions, GridChanges, GridData, GridTeacher, TrialOptions, Work, with_settings
from hskd.cli.plugin_option import plugin_option
from hskd.errors import HskdError

if TYPE_CHECKING:
    from hskd.analysis.minimum import FindResult

_TIME = re.compile(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)", re.ASCII)


@plugin_option
@with_settings(machine=TrialOptions, place=ExecutorOptions)
def find(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK_OR_GRID", help="A task, such as mr; a preset, such as mr-joint; or a grid's .yaml file."
        ),
    ],
    tolerance: Annotated[
        float | None, typer.Option(help="Points of score that may be lost against full HSK (default: 0.5).")
    ] = None,
    margin_share: Annotated[
        float | None, typer.Option(help="Instead: share of the gap from none to full that may be lost, such as 0.1.")
    ] = None,
    budget_trials: Annotated[int, typer.Option(help="Largest number of trials, finished ones included.")] = 60,
    budget: Annotated[
        str | None, typer.Option(help="Time after which no further trials begin, such as 2h or 90min.")
    ] = None,
    students: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Students of the grid, by name; repeatable (default: all, one search each)."),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="Specs to choose from: a .yaml file, or paper (default: by model sizes; see docs/find.md)."),
    ] = None,
    most_bytes: Annotated[
        str | None, typer.Option(help="Only specs of at most this many bytes an example, such as 2kB.")
    ] = None,
    most_layers: Annotated[int | None, typer.Option(min=1, help="Only specs of at most this many layers.")] = None,
    no_attention: Annotated[
        bool, typer.Option("--no-attention", help="Only specs that do not use the teacher's attention.")
    ] = False,
    rates: Annotated[
        Literal["auto", "search", "keep"],
        typer.Option(help="Learning rates: search them, or keep the grid's (auto: search where the grid has none)."),
    ] = "auto",
    finished_teacher: Annotated[
        str | None, typer.Option(help="Folder of a fine-tuned teacher (teacher.model, teacher.fine_tuned).")
    ] = None,
    teacher: GridTeacher = None,
    data: GridData = None,
    changes: GridChanges = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: results/find-NAME).")] = None,
    work: Work = Path("work"),
    *,
    machine: TrialOptions,
    place: ExecutorOptions,
) -> None:
    """Find the cheapest spec that is shown to be enough, with few trials.

    It searches learning rates where the grid has none, and tests whether full HSK beats no HSK. Then it screens
    candidates on search seeds, and confirms the cheapest promising ones on fresh seeds. Run it again to resume after an
    interruption: the answer is the same. docs/find.md explains every stage.
    """
    _refuse_contradictions(tolerance, margin_share, teacher, finished_teacher)
    from hskd.analysis.cli.recommend import parse_bytes

    constraints = {
        "most_bytes": None if most_bytes is None else parse_bytes(most_bytes, "--most-bytes"),
        "most_layers": most_layers,
        "attention": False if no_attention else None,
    }
    seconds = None if budget is None else parse_time(budget)
    from hskd.analysis.minimum import TOLERANCE, find_each
    from hskd.analysis.report.minimum_page import write_page
    from hskd.cli.find_display import find_display
    from hskd.grid.changes import parse_changes

    asked: dict[str, Any] = {"task.data": data, "teacher.model": finished_teacher or teacher}
    asked = {key: value for key, value in asked.items() if value is not None}
    if finished_teacher is not None:
        asked["teacher.fine_tuned"] = True
    with find_display() as watcher:
        results = find_each(
            task,
            students,
            tolerance=TOLERANCE if tolerance is None else tolerance,
            margin_share=margin_share,
            budget_trials=budget_trials,
            seconds=seconds,
            space=space,
            constraints=constraints,
            search_rates=None if rates == "auto" else rates == "search",
            changes=asked | parse_changes(changes or []),
            out=out,
            work=work,
            executor=place.executor(),
            machine=machine.machine(),
            watcher=watcher,
        )
    for result in results:
        _print(result)
        print(f"report: {write_page(result)}")


def _refuse_contradictions(
    tolerance: float | None,
    margin_share: float | None,
    teacher: str | None,
    finished_teacher: str | None,
) -> None:
    for first, second, names in (
        (tolerance is not None, margin_share is not None, "--tolerance or --margin-share"),
        (teacher is not None, finished_teacher is not None, "--teacher or --finished-teacher"),
    ):
        if first and second:
            raise HskdError(f"give {names}, not both.")


def _print(result: FindResult) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from hskd.cli.progress import tables

    console = tables()
    console.print(f"{result.title}\n", style="bold")
    console.print(result.sentence)
    if not result.tests.empty:
        table = Table(box=SIMPLE, caption="Losses in points; bounds hold over all looks at fresh seeds.")
        for column in ("spec", "bytes", "loss", "bounds", "seeds", "verdict"):
            table.add_column(column, justify="left" if column in ("spec", "verdict") else "right", overflow="fold")
        for row in result.tests.to_dict("records"):
            bounds = f"{100 * row['low']:.2f} to {100 * row['high']:.2f}" if row["n"] else ""
            loss = f"{100 * row['loss']:.2f}" if row["n"] else ""
            table.add_row(row["name"], f"{row['bytes_per_example']:,.0f}", loss, bounds, str(row["n"]), row["verdict"])
        console.print(table)
    if result.command is not None:
        print("The command (runs/student and runs/superset stand for your student and your store of these examples):\n")
        print(result.command + "\n")


def parse_time(text: str) -> float:
    """Return the seconds that ``text`` names, such as ``2h``, ``90min`` or ``30 s``.

    Raises:
        HskdError: ``text`` is not a time above 0.
    """
    match = _TIME.fullmatch(text.strip())
    if not match or float(match[1]) == 0:
        raise HskdError(f"--budget {text}: expected a time above 0 such as 2h, 90min or 30s.")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
