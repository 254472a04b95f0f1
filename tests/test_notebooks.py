"""The committed notebooks ran in order, without errors and without traces of this machine. nbmake runs them anew."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from hskd.store.examples import store_examples
from hskd.store.reader import Store

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINES = 14
"""Maximum lines of a cell, imports and formatting included: about ten lines of substance."""
OF_A_MACHINE = re.compile(r"/(home|root|tmp|work|Users|private|var|opt)/|site-packages|\x1b\[")


def test_the_server_listens_on_the_loopback_address_alone() -> None:
    """Anyone who reaches a notebook server can run code on the machine."""
    makefile = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    started = [line for line in makefile.splitlines() if "/jupyter lab" in line]
    assert started and all("--ServerApp.ip=127.0.0.1" in line for line in started)


def test_there_are_seven() -> None:
    assert [path.stem[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_", "06_", "07_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert notebook.metadata.kernelspec.name == "python3"  # the kernel of any environment
    assert "widgets" not in notebook.metadata and "widget-view" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_say_nothing_of_the_machine_and_hold_no_errors(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.metadata, "timings or an editor's settings"
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            text = output.get("text", "") + "".join(
                str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
            )
            assert not OF_A_MACHINE.search(text), text
            assert "Warning" not in text, text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_there_is_prose_between_them(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(len(cell.source.splitlines()) <= LINES for cell in cells if cell.cell_type == "code")
    assert cells[0].cell_type == "markdown"
    assert sum(cell.cell_type == "markdown" for cell in cells) >= len(cells) / 3
    assert path.stat().st_size < 2**20


def test_the_committed_store_is_whole_and_small() -> None:
    store = Store.open(FOLDER / "data" / "mr-8-sentences")
    store.verify()
    assert len(store) == 8 and store.manifest.kind == "superset" and store.manifest.precision == "fp16"
    assert store.manifest.layers == tuple(range(7)) and store.manifest.attention_layers == tuple(range(1, 7))
    assert store_examples(store).fingerprint == store.manifest.origin.data  # of these eight, not of all twelve
    assert store.manifest.bytes < 1.5 * 10**6
