"""Variables say what they hold: names without meaning are forbidden."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAY_NOTHING = frozenset({"found", "shown", "held", "mine", "said", "wanted", "theirs"})


def _bound(node: ast.AST) -> Iterator[str]:
    """Return the names that a node binds: variables, parameters, functions, classes, imports and attributes."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(name=name, asname=alias):
            yield alias or name
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name


def _refused(source: str) -> list[tuple[int, str]]:
    """Return line and name wherever a meaningless name is bound."""
    nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "lineno")]
    return sorted((node.lineno, name) for node in nodes for name in _bound(node) if name in SAY_NOTHING)


@pytest.mark.parametrize("package", ["hskd", "analysis", "benchmarks"])
def test_names_say_what_they_hold(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    refused = [
        f"{module.relative_to(ROOT)}:{line}: {name}"
        for module in modules
        for line, name in _refused(module.read_text(encoding="utf-8"))
    ]
    assert not refused, "name these for what they hold:\n" + "\n".join(refused)


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "found: int",
        "a, *held = b",
        "[a for said in b]",
        "a(mine := 1)",
        "with a as shown: pass",
        "lambda wanted: 0",
        "def a(*, theirs): pass",
        "def shown(): pass",
        "from a import b as shown",
        "self.found = 1",
        "match a:\n case [*held]: pass",
        "match a:\n case {**said}: pass",
    ],
)
def test_every_way_to_bind_a_name_is_seen(source: str) -> None:
    assert len(_refused(source)) == 1


def test_names_that_are_only_read_are_not_refused() -> None:
    assert not _refused("print(library.found, library.call(found=1), 'shown')")
