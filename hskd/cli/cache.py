"""``hskd cache``: list and clear the work folder (ls, gc)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hskd.artifact_gc import DAY, Artifact, artifacts, collect
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import tables
from hskd.errors import HskdError
from hskd.hashing import canonical_json
from hskd.io import format_bytes

app = typer.Typer(
    help="The work folder: teachers, general students, students, stores, trials, and copies of remote artifacts.",
    no_args_is_help=True,
)


@app.command("ls")
@plugin_option
def ls(work: Annotated[Path, typer.Option(help="Folder of artifacts.")] = Path("work")) -> None:
    """List artifacts, the most recently used first."""
    _show(artifacts(work), str(work))


@app.command("gc")
@plugin_option
def gc(
    work: Annotated[Path, typer.Option(help="Folder of artifacts.")] = Path("work"),
    older_than: Annotated[float, typer.Option(min=0, help="Days since the last use.")] = 30,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind: teachers, general, students, stores, trials or remote (copies of URLs)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only show what would be removed.")] = False,
) -> None:
    """Remove artifacts that have not been used for a while; they can be made again. Results are not touched."""
    removed = collect(work, older_than, tuple(kind or ()), dry_run)
    _show(removed, "would be removed" if dry_run else "removed")


def _show(listed: list[Artifact], title: str) -> None:
    table = Table(title=f"{title}: {len(listed)} artifacts, {format_bytes(sum(a.bytes for a in listed))}")
    for column in ("kind", "artifact", "size", "days since used", "made from"):
        table.add_column(column, overflow="fold")
    for artifact in listed:
        days = (time.time() - artifact.used) / DAY
        note = "" if artifact.finished else " (unfinished)"
        table.add_row(
            artifact.kind, artifact.folder.name + note, format_bytes(artifact.bytes), f"{days:.1f}", _summary(artifact)
        )
    tables().print(table)


def _summary(artifact: Artifact) -> str:
    from hskd.remote.copies import CACHE

    recipe, kind = artifact.recipe, artifact.kind
    if kind == CACHE:
        return str(recipe["url"])
    spec = _label(recipe["spec"]) if recipe.get("spec") else None
    if kind == "stores":
        return spec or "superset"
    fields = recipe.get(
        {"teachers": "teacher", "general": "settings", "students": "student", "trials": "settings"}.get(kind, ""), {}
    )
    chosen = {"teachers": ("model",), "trials": ("arm", "seed")}.get(kind, tuple(fields))
    summary = {name: fields.get(name) for name in chosen} | {"spec": spec}
    return ", ".join(f"{name} {value}" for name, value in summary.items() if value is not None)


def _label(spec: Any) -> str:
    """Return the short form of a spec, or its JSON if its plug-in is not loaded."""
    from hskd.spec import HSKSpec

    try:
        return HSKSpec.parse(spec).label
    except HskdError:
        return canonical_json(spec)
