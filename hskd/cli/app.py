"""The command ``hskd``: all commands under one name, with errors printed as a single line."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from hskd import processes
from hskd.cli.commands import LazyGroup
from hskd.cli.launch import SHARED, leave_to_main, note_missing_processes
from hskd.cli.progress import console, print_notices
from hskd.cli.quiet import quiet_libraries
from hskd.errors import HskdError
from hskd.io import with_home

app = typer.Typer(
    cls=LazyGroup,
    help="How little of a teacher's hidden-state knowledge (HSK) does a student need?\n\n"
    "Try [bold]hskd demo[/bold] first. Step by step: [bold]teacher[/bold] fine-tunes a teacher, [bold]student[/bold] "
    "prunes it, [bold]store extract[/bold] runs it once over the data, [bold]distill[/bold] trains the student from "
    "the store.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_EXTRAS = {
    "matplotlib": "analysis",
    "seaborn": "analysis",
    "jinja2": "analysis",
    "pytest": "bench",
    "pytest_benchmark": "bench",
    "ray": "cluster",
}
"""Packages that a plain installation lacks, and the extra that installs each."""

# The base class of click's usage errors, which typer vendors but does not export.
_UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_debug = False
_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells define it: 128 + SIGINT."""


def _print_versions(asked: bool) -> None:
    """Print the versions that a bug report needs, and end."""
    if asked:
        from hskd.provenance import versions

        for name, version in versions().items():
            print(name, version or "not installed")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, is_eager=True, help="Print the versions of hskd and its libraries."
        ),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    if context.invoked_subcommand not in SHARED:
        leave_to_main()
    note_missing_processes()
    quiet_libraries()
    print_notices()


def main() -> None:
    """Run the command line. An error that the user can fix gives one message and exit code 2."""
    try:
        # In standalone mode, typer would frame usage errors with rich, and importing rich takes longer than everything
        # else.
        code = app([_with_home(word) for word in sys.argv[1:]], standalone_mode=False) or 0
        if code == 0:
            processes.stop()
        if code == _INTERRUPTED:  # typer returns this code if it caught the interrupt
            _end_interrupted()
        sys.exit(code)
    except KeyboardInterrupt:
        _end_interrupted()
    except typer.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # click mistakes it for the end of terminal input
            _end_with("error: a file ends too early: it is damaged. hskd --debug says which.")
        _end_interrupted()
    except Exception as error:
        if isinstance(error, _UsageError):
            error.show()
            sys.exit(error.exit_code)
        if _debug:
            raise
        if isinstance(error, (HskdError, OSError)) or _is_of_safetensors(error):
            _end_with(f"error: {error}")
        if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get((error.name or "").partition(".")[0])):
            _end_with(f"error: this command needs {error.name}, which is not installed: pip install 'hskd[{extra}]'")
        if "by peer" in str(error):  # gloo's message for a lost connection
            _end_with(
                "error: another process was killed or ran out of memory; the launcher says which. Nothing is lost: run "
                "the same command again, perhaps with fewer processes."
            )
        if not processes.first_to_fail():
            sys.exit(2)
        raise


def _is_of_safetensors(error: Exception) -> bool:
    """Return whether this is the error of ``safetensors`` for a damaged file. It cannot be if it is not imported."""
    library = sys.modules.get("safetensors")
    return library is not None and isinstance(error, library.SafetensorError)


def _with_home(word: str) -> str:
    """Return a word of the command line with a leading ``~``, also after ``=``, replaced by the home folder."""
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{with_home(value)}" if value.startswith("~") else with_home(word)


def _end_interrupted() -> NoReturn:
    _end_with("interrupted. Nothing is lost: run the same command again to resume.", code=_INTERRUPTED)


def _end_with(line: str, code: int = 2) -> NoReturn:
    if processes.first_to_fail():
        console().quiet = False
        console().print(line, style="bold red")
    sys.exit(code)
