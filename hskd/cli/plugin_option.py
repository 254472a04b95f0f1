"""The option ``--plugins``. This module imports little, so commands without other settings start without pydantic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from hskd.plugins import load_plugins


def plugin_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--plugins``, whose modules are imported before anything else happens."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    option = typer.Option(
        help="Module that registers selectors, student kinds, heads or tasks of your own, such as my_selectors for "
        "my_selectors.py in the current folder. Repeat it, or separate by commas.",
        metavar="MODULE",
        callback=_load_plugins,
        is_eager=True,
    )
    parameters = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    parameters.append(
        inspect.Parameter(
            "plugins",
            inspect.Parameter.KEYWORD_ONLY,
            default=[],
            annotation=Annotated[list[str], option],
        )
    )

    @wraps(command)
    def run(*arguments: Any, plugins: Sequence[str] = (), **given: Any) -> None:
        command(*arguments, **given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _load_plugins(modules: list[str]) -> list[str]:
    names = split_names(modules)
    load_plugins(names)
    return names


def split_names(values: list[str]) -> list[str]:
    """Return the names given to a repeatable option, each of which may hold several, separated by commas."""
    return [name.strip() for given in values for name in given.split(",") if name.strip()]
