"""Every ``hskd`` command in the documentation exists, and takes the options that it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from hskd.cli.commands import BUILT_IN, LazyCommand

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/howto/*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob(".github/**/*.md"),
    ]
)
BLOCK = re.compile(r"^```(?:bash|text)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GLOBAL_OPTIONS = {"--debug", "--no-debug", "--version", "--help", "--install-completion", "--show-completion"}


def commands(page: Path) -> Iterator[str]:
    """The commands in the code blocks of a page, without their comments."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:accelerate launch .*? -m )?(hskd .*)", line.strip())
            if match:
                yield re.split(r"\s#\s", match[1])[0].strip()


@cache
def command(name: str) -> Any:
    listing = BUILT_IN[name]
    return LazyCommand(name, listing.target, listing.help).load()


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command; None where nothing is."""
    if words[1] in GLOBAL_OPTIONS:
        return None
    if words[1] not in BUILT_IN:
        return f"no command {words[1]}"
    chosen, rest = command(words[1]), words[2:]
    if hasattr(chosen, "commands"):
        if rest[:1] and rest[0] not in chosen.commands:
            return f"no command {words[1]} {rest[0]}"
        chosen, rest = chosen.commands[rest[0]], rest[1:]
    parameters = chosen.get_params(typer.Context(chosen))
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if unknown := [option for option in options if option not in known]:
        return f"no option {unknown[0]}"
    if "..." in rest:  # the rest is left to the reader
        return None
    missing = [
        parameter.opts[0]
        for parameter in parameters
        if parameter.param_type_name == "option" and parameter.required and not set(parameter.opts) & set(options)
    ]
    return f"{missing[0]} is missing" if missing and "--help" not in options else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_take_the_options_that_they_are_shown_with(page: Path) -> None:
    wrong = {line: fault for line in commands(page) if (fault := complaint(shlex.split(line)))}
    assert not wrong


def test_a_wrong_command_is_noticed() -> None:
    assert complaint(["hskd", "distil", "--out", "o"]) == "no command distil"
    assert complaint(["hskd", "grid", "ruN"]) == "no command grid ruN"
    assert complaint(["hskd", "distill", "--students", "s"]) == "no option --students"
    assert complaint(["hskd", "distill", "--student", "s"]) == "--out is missing"
    assert sum(1 for page in PAGES for _ in commands(page)) > 100
