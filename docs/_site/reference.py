"""Reference pages, generated from the commands, the models and the columns."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer

from hskd.cli.commands import BUILT_IN, LazyCommand


def pages() -> dict[str, str]:
    """Return the Markdown of each page, by path."""
    return {
        "reference/commands.md": commands(),
        "reference/grid-file.md": grid_file(),
        "reference/columns.md": columns(),
        "reference/python.md": python(),
    }


def commands() -> str:
    """Return the page of every command with its options."""
    parts = ["# Command line\n\nMade from the commands. `hskd COMMAND --help` says the same.\n"]
    for name, listing in BUILT_IN.items():
        loaded = LazyCommand(name, listing.target, listing.help).load()
        subcommands = getattr(loaded, "commands", None)
        if not subcommands:
            parts.append(_command(f"hskd {name}", loaded, 2))
            continue
        parts.append(f"## hskd {name}\n\n{_plain(loaded.help or listing.help)}\n")
        parts += [_command(f"hskd {name} {sub}", command, 3) for sub, command in subcommands.items()]
    return "\n".join(parts)


def _command(title: str, command: Any, level: int) -> str:
    context = typer.Context(command, info_name=title)
    lines = [f"{'#' * level} {title}\n", _plain(command.help or ""), ""]
    arguments, options = [], []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        record = parameter.get_help_record(context) if parameter.param_type_name == "option" else None
        if record is not None:
            names, text = record
            options.append(f"| `{_cell(names)}` | {_cell(_plain(text))} |")
        else:
            text = getattr(parameter, "help", None) or ""
            arguments.append(f"| `{_cell(parameter.metavar or parameter.name.upper())}` | {_cell(_plain(text))} |")
    for header, rows in (("argument", arguments), ("option", options)):
        if rows:
            lines += [f"| {header} | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return help without rich's markup, as Markdown that shows it literally."""
    for tag in ("bold", "/bold"):
        text = text.replace(f"[{tag}]", "")
    text = inspect.cleandoc(text).replace("\\[", "[")
    return text.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def grid_file() -> str:
    """Return the page of the keys of a grid's YAML file."""
    from hskd.grid.spec import GridSpec, MoreSeeds, Sweep
    from hskd.students.registry import STUDENTS
    from hskd.teachers.settings import TeacherSettings
    from hskd.trials.config import TaskPlan, TeacherPlan
    from hskd.trials.settings import DistillSettings

    parts = [
        "# Grid file\n\nThe keys of a grid's YAML file, from its models. [Grids](../docs/grids.md) explains them.\n"
    ]
    models: list[tuple[str, Any]] = [
        ("Top level", GridSpec),
        ("`task`", TaskPlan),
        ("`teacher`", TeacherPlan),
        ("`teacher.settings`", TeacherSettings),
        ("`sweeps`: each", Sweep),
        ("`more_seeds`", MoreSeeds),
        ("`training`", DistillSettings),
        *((f"`students`: kind `{kind}`", STUDENTS[kind]) for kind in STUDENTS),
    ]
    for title, model in models:
        parts += [f"## {title}\n", "| key | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{_default(field)}`"
            parts.append(f"| `{name}` | {_cell(default)} | {_cell(_plain(field.description or ''))} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        return "defaults below"
    if isinstance(value, tuple):
        return str([getattr(entry, "kind", entry) for entry in value])
    return str(value)


def columns() -> str:
    """Return the page of the columns of a results table."""
    from hskd.results import COLUMNS

    rows = [f"| `{name}` | {_cell(_plain(text))} |" for name, text in COLUMNS.items()]
    head = (
        "# Result columns\n\n`hskd.results.load(folder)` gives a table with one row for each trial. "
        "[File formats](../docs/formats.md#results-folder) lists the files that it reads.\n"
    )
    return "\n".join([head, "| column | meaning |", "|---|---|", *rows, ""])


def python() -> str:
    """Return the page of every public name, documented from its docstring."""
    import hskd
    from hskd.results import explore

    head = "# Python\n\nEvery name of `import hskd`, and `hskd.results.explore`."
    parts = [f"{head} [From Python](../docs/api.md) shows how they go together.\n"]
    names = {name: getattr(hskd, name) for name in sorted(hskd.__all__, key=str.lower)} | {"explore": explore}
    for name, value in names.items():
        # mkdocstrings reads files, and in the repository these packages are not folders of hskd.
        module = re.sub(r"^hskd\.(?=analysis|benchmarks)", "", getattr(value, "__module__", "hskd"))
        parts.append(f"::: {module}.{getattr(value, '__qualname__', name)}\n")
    return "\n".join(parts)
