"""The order of imports in the documentation is the contract that `make lint` checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_documentation_prints_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = contract["contracts"][0]["layers"]
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = text[text.index("```\n__main__") :].split("```")[1].strip().splitlines()
    assert [line if " | " in line else line.split()[0] for line in block] == layers
