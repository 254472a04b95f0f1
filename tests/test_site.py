"""The documentation site builds without a warning, and requests nothing from other servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("mkdocs", reason="needs hskd[dev]")
pytest.importorskip("mkdocstrings", reason="needs hskd[dev]")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, or a page outside the navigation, fails."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def page(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    assert "hskd store derive" in page(site, "reference/commands.html")
    assert "prediction_lr" in page(site, "reference/grid-file.html")
    assert "bytes_per_example" in page(site, "reference/columns.html")
    assert "hsk_loss" in page(site, "reference/python.html")


def test_links_to_files_of_the_repository_lead_there(site: Path) -> None:
    assert "https://github.com/hskd/hskd/blob/main/constraints.txt" in page(site, "commands.html")
    assert 'href="results/index.html"' in page(site, "index.html")


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//'
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert not [path.name for path in pages if loaded.search(path.read_text(encoding="utf-8"))]
