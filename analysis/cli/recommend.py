"""The command ``hskd recommend``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import tables
from hskd.errors import HskdError

if TYPE_CHECKING:
    import pandas as pd

_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?))?(b|bytes?)?", re.IGNORECASE)


@plugin_option
def recommend(
    results: Annotated[Path, typer.Argument(help="Folder of a grid's results, or its table as CSV.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Points of score that may be lost against full HSK (default: 0.5).")
    ] = None,
    margin_share: Annotated[
        float | None, typer.Option(help="Instead: share of the gap from none to full that may be lost, such as 0.1.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Instead: the largest size of the store, such as 50MB.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Training examples in the store (default: as in the trials).")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Only this student of the table.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task of the table.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the claim.")] = 0.95,
    new_examples: Annotated[
        bool, typer.Option(help="Make the claim for new test examples too, from the stored predictions of the trials.")
    ] = False,
) -> None:
    """Recommend a spec: the cheapest that is shown to be as good as full HSK, or the best that fits a budget.

    Each task, student and training set of the table gets a recommendation, with its evidence and a command to paste.
    """
    from hskd.analysis.report.recommendation import recommend as recommend_spec
    from hskd.analysis.stats.examples import Answers
    from hskd.analysis.table import studies

    all_studies = studies(results)
    chosen = [study for study in all_studies if student in (None, study.student) and task in (None, study.task)]
    if not chosen:
        choices = ", ".join(sorted({f"--task {study.task} --student {study.student}" for study in all_studies}))
        raise HskdError(f"{results}: no trials of that task and student; there are: {choices}.")
    size = parse_bytes(budget, "--budget") if budget is not None else None
    console = tables()
    for study in chosen:
        answers = Answers.read(study.folder, study) if new_examples else None
        if new_examples and answers is None:
            raise HskdError(f"{results}: has no predictions of the trials, or no labels; leave out --new-examples.")
        recommendation = recommend_spec(study, tolerance, size, examples, margin_share, confidence, answers)
        console.print(f"{study.title}\n", style="bold")
        for sentence in recommendation.evidence:
            console.print(sentence)
        console.print(_evidence(recommendation.table, confidence))
        print("The command (runs/student and runs/superset stand for your student and your store of these examples):\n")
        print(recommendation.command + "\n")


def _evidence(points: pd.DataFrame, confidence: float) -> Table:
    """Return a line per point: bytes, score, and intervals of the paired differences with full and none."""
    import pandas as pd

    caption = f"Scores in per cent. Below full, above none: paired {100 * confidence:g} % intervals, each by itself."
    table = Table(box=SIMPLE, caption=caption)
    for column in ("spec or arm", "bytes", "score", "below full", "above none", "remark"):
        table.add_column(column, justify="left" if column in ("spec or arm", "remark") else "right", overflow="fold")
    percent = points.assign(**100 * points.filter(regex="mean|low|high"))
    for row in percent.to_dict("records"):
        intervals = [(row[f"{column}_low"], row[f"{column}_high"]) for column in ("below_full", "above_none")]
        table.add_row(
            str(row["name"]),
            f"{row['bytes_per_example']:,.0f}",
            f"{row['mean']:.1f}",
            *["" if pd.isna(low) else f"{low:.1f} to {high:.1f}" for low, high in intervals],
            row["remark"],
        )
    return table


def parse_bytes(text: str, flag: str = "size") -> float:
    """Return the bytes that ``text`` names, such as ``50MB``, ``1.5GiB``, ``200 kB`` or ``5000``.

    Units without ``i`` are powers of 1000, units with it powers of 1024.

    Raises:
        HskdError: ``text`` is not a size above 0; the message names ``flag``.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) == 0:
        raise HskdError(f"{flag} {text!r}: expected a size above 0 such as 50MB, 1.5GiB or 200 kB.")
    number, unit, binary, _ = match.groups()
    power = "kmgt".index(unit.lower()) + 1 if unit else 0
    return float(number) * (1024 if binary else 1000) ** power
