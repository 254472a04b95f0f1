"""Searches on real trials of tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.find_lab import search

from hskd.analysis.minimum import FindResult
from hskd.results import load


@pytest.fixture(scope="module")
def undisturbed(grid_file: Path, space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> FindResult:
    """A search that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return search(grid_file, space_file, tmp_path_factory.mktemp("undisturbed"))


def test_it_ends_with_an_answer_or_a_reason(undisturbed: FindResult) -> None:
    print(undisturbed.sentence)
    print(undisturbed.tests)
    print(undisturbed.screened)
    print(undisturbed.command)
    assert undisturbed.outcome.known.trials <= 44
    table = load(undisturbed.folder)
    assert len(table) == undisturbed.outcome.known.trials
