"""User input is printed literally: no name, path or label is read as markup or as an emoji."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from conftest import make_bert
from rich.markup import escape
from transformers import BertTokenizerFast

from hskd.cli import progress
from hskd.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a[b]c", "[/red]", "$x$", ":smile:", "[bold]")


def test_only_one_module_makes_consoles_and_none_reads_markup() -> None:
    """rich reads markup wherever it is allowed: in printed text, cells, titles and descriptions."""
    found = []
    for file in [*ROOT.glob("hskd/**/*.py"), *ROOT.glob("analysis/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                found += [(file, name.name) for name in node.names if name.name in ("print", "Console", "TextColumn")]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found += [(file, node.func.attr)] if node.func.attr in ("from_markup", "print_exception") else []
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Console", "TextColumn")
            ):
                switches = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert switches.get("markup") is False, (file, node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Option", "typer.Argument"):
                for part in ast.walk(node):
                    text = part.value if isinstance(part, ast.Constant) else None
                    assert not isinstance(text, str) or escape(text) == text, (file, part.lineno, text)
    assert {file.relative_to(ROOT).as_posix() for file, _ in found} == {"hskd/cli/progress.py"}
    assert {name for _, name in found} == {"Console", "TextColumn"}


def test_consoles_print_names_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    progress.console.cache_clear()  # the stream of this test
    for name in NAMES:
        table = Table(name, title=name, caption=name)
        table.add_row(name)
        progress.tables(width=60).print(table)
        out, _ = capfd.readouterr()
        assert out.count(name) == 4
        progress.console().print(f"error: {name}")
        with progress.display() as shown:
            shown.begin(name, 2)
            shown.say(name)
        _, err = capfd.readouterr()
        assert err.splitlines() == [f"error: {name}", f"{name}: 2 steps", name]
    progress.console.cache_clear()


def test_a_bar_on_a_terminal_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, markup=False, emoji=False, width=100)
    monkeypatch.setattr(progress, "console", lambda: console)
    with progress.display() as shown:
        for name in NAMES:
            shown.begin(f"store {name}", 2)
            shown.advance()
            shown.trials(1, 0, 2, name)
    assert all(name in stream.getvalue() for name in NAMES)


def test_commands_in_folders_with_such_names(
    tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a[b]c" / "[/red]" / "$x$"
    (folder / "data[0]").mkdir(parents=True)
    monkeypatch.chdir(folder)
    progress.console.cache_clear()
    make_bert(id2label={0: "[/red] no", 1: "ye[s]"}, label2id={"[/red] no": 0, "ye[s]": 1}).save_pretrained("[/bold]")
    tokenizer.save_pretrained("[/bold]")
    for split in ("train", "dev"):
        rows = [f"the film is moving {i},{('[/red] no', 'ye[s]')[i % 2]}\n" for i in range(8)]
        Path("data[0]", f"{split}.csv").write_text("text,label\n" + "".join(rows))

    def hskd(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hskd", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capfd.readouterr())

    task = ["--task", "custom", "--text-columns", "text", "--label-column", "label", "--work", "w[o]rk"]
    code, out, err = hskd(
        "store", "extract", *task, "--data", "data[0]", "--teacher", "[/bold]", "--out", "[/st]", "--device", "cpu"
    )
    assert (code, out) == (0, "store: [/st]\n"), err
    assert "task custom: classification, 2 classes: [/red] no, ye[s] (column 'label' of train.csv has texts)\n" in err
    assert "warning: task custom: 8 of 8 rows of dev have the texts of rows of train\n" in err
    assert "[/st]: 8 examples" in err
    code, out, err = hskd("store", "inspect", "[/st]")
    assert code == 0 and "[/red] no, ye[s]" in out and out.strip().startswith("[/st]"), err
    assert hskd("store", "verify", "[/st]")[1] == "[/st]: 1 shards, 8 examples: as written\n"
    code, out, err = hskd("cache", "ls", "--work", "w[o]rk")
    assert code == 0 and "w[o]rk: 0 artifacts" in out, err
    assert hskd("store", "inspect", "[/no]")[2] == "error: [/no]: no store (there is no manifest.json).\n"
    for wrong in (["[/red]"], ["store", "[/red]"], ["teacher", "--out", "t", "--[/red]"], ["report", "[/red]"]):
        code, _, err = hskd(*wrong)
        assert code == 2 and "[/red]" in err, err
    code, _, err = hskd("teacher", *task, "--data", "[/no]:smile:", "--out", "t")
    assert (code, err) == (2, "error: [/no]:smile:: no such file or folder.\n")
    progress.console.cache_clear()
