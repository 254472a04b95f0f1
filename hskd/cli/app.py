"""The command ``hskd``: every command under one name, and errors as one line."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated, NoReturn

import typer
from safetensors import SafetensorError

from hskd import processes
from hskd.cli import cache, distill, general, grid, remote, store, student, teacher
from hskd.cli.launch import SHARED, leave_to_main, note_missing_processes
from hskd.cli.progress import console
from hskd.errors import HskdError

app = typer.Typer(
    help="How little of a teacher's hidden-state knowledge (HSK) does a student need?\n\n"
    "Try [bold]hskd demo[/bold] first. By hand: [bold]teacher[/bold] fine-tunes a teacher, [bold]student[/bold] "
    "prunes it, [bold]store extract[/bold] runs it once over the data, [bold]distill[/bold] trains the student from "
    "the store.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("teacher")(teacher.command)
app.command("general")(general.command)
app.command("student")(student.command)
app.add_typer(store.app, name="store")
app.command("distill")(distill.command)
app.command("push")(remote.push)
app.command("pull")(remote.pull)
app.add_typer(grid.app, name="grid")
app.add_typer(cache.app, name="cache")
for _command in entry_points(group="hskd.commands"):
    # Packages built on the engine add commands of their own; the engine need not know them.
    app.command(_command.name)(_command.load())

_debug = False


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug
    if context.invoked_subcommand not in SHARED:
        leave_to_main()
    note_missing_processes()
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> None:
    """Run the command line; an error that the user can mend is one message and exit code 2."""
    try:
        app()
    except SystemExit as end:
        if not end.code:
            processes.stop()
        raise
    except (HskdError, OSError, SafetensorError) as error:
        if _debug:
            raise
        _end_with(str(error))
    except Exception as error:
        if _debug:
            raise
        if "by peer" in str(error):  # how gloo says that it lost a connection
            _end_with(
                "another process is gone, killed or out of memory; the launcher says which. Nothing is lost: run the "
                "same command again, perhaps in fewer processes."
            )
        if not processes.first_to_fail():
            sys.exit(2)
        raise


def _end_with(message: str) -> NoReturn:
    if processes.first_to_fail():
        console.quiet = False
        console.print(f"error: {message}", style="bold red", markup=False)
    sys.exit(2)
