"""The architecture page prints the order of imports that `make lint` checks, and names every package."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("analysis", "benchmarks")
"""Packages that lie beside ``hskd`` in the repository."""


def contract() -> list[str]:
    """The lines of the contract, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers: list[str] = settings["contracts"][0]["layers"]
    return layers


def test_the_documentation_prints_the_contract() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = text[text.index("```\n__main__") :].split("```")[1].strip().splitlines()
    assert [line if " | " in line else line.split()[0] for line in block] == contract()
    assert all(" | " in line or len(line.split()) > 1 or line == "errors" for line in block), "say what each is for"


def test_the_contract_names_every_package() -> None:
    named = [name for line in contract() for name in line.split(" | ")]
    folders = [path.parent.name for path in (ROOT / "hskd").glob("*/__init__.py") if path.parent.name not in BESIDE]
    modules = [path.stem for path in (ROOT / "hskd").glob("*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted([*folders, *modules, *BESIDE])
