"""Names that are formulas, markup or code elsewhere are displayed unchanged and never run."""

from __future__ import annotations

import csv
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from support.legible import shown_texts
from support.trial_tables import LADDER, study, table

from hskd.analysis.figures.marginal_utility import marginal_utility_figure
from hskd.analysis.figures.overview import Line, overview_figure
from hskd.analysis.figures.pairing import pairing_figure
from hskd.analysis.report.page import write_report
from hskd.analysis.report.sheets import points_sheet
from hskd.analysis.stats.curves import points
from hskd.analysis.stats.pairing import pair
from hskd.analysis.table import Study, read_trials, studies
from hskd.errors import HskdError
from hskd.results import spreadsheet, write_csv

NAMES = (
    "a$b$c", r"$\frac{$", "x_{^}%&#~", "<script>alert(1)</script>", '=HYPERLINK("http://x","y")', "+1", "-2+3",
    "@SUM(A1)", "\tcmd", "'=1", "'plain", "{{ 7*7 }}", "{% raw %}", "[bold red]x[/]", "..", "a\nb",
    "\\end{tabular}", "\u65e5\u672c\u8a9e \xe9", "\"q\",'",
)  # fmt: skip
SCORES = {
    "none": [0.70, 0.71, 0.69],
    **{name: [0.72 + i / 100, 0.73 + i / 100, 0.715 + i / 100] for i, name in enumerate(LADDER)},
    "full": [0.79, 0.80, 0.785],
}
FEW = {name: SCORES[name] for name in ("none", LADDER[0], "full")}


def hostile(name: str) -> dict[str, str]:
    return {column: f"{name}{i}" if i else name for i, column in enumerate(("task", "teacher", "student"))}


class _Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_names_as_they_are(name: str) -> None:
    made = study(FEW, **hostile(name))
    for figure in (pairing_figure(pair(made, made), name, "second"), overview_figure([Line(made, "")])):
        texts = shown_texts(figure)
        assert not any(text.get_parse_math() for text in texts)
        assert any(name in text.get_text() for text in texts)


def test_the_report_runs_nothing_that_names_say(tmp_path: Path) -> None:
    trials = table({"none": [0.7, 0.71]}, task=NAMES[3], teacher=NAMES[0], student=NAMES[11])
    write_csv(trials.assign(dev_scores=[[0.5]] * len(trials)), tmp_path / "trials.csv")
    page = write_report(tmp_path / "trials.csv", tmp_path / "report").read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(page)
    assert "script" not in parsed.tags and "<script>alert(1)</script>" in "".join(parsed.words)
    assert "{{ 7*7 }}" in "".join(parsed.words)


def test_what_markers_show_is_escaped(tmp_path: Path) -> None:
    trials = table(FEW)
    trials["spec"] = trials["spec"].replace(LADDER[0], NAMES[3])
    trials.to_csv(tmp_path / "trials.csv", index=False)
    page = write_report(tmp_path / "trials.csv", tmp_path / "report").read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(page)
    assert "script" not in parsed.tags
    assert '<span class="tip"><span>&lt;script&gt;alert(1)&lt;/script&gt;</span>' in page


def test_studies_whose_names_differ_in_signs_get_files_of_their_own(tmp_path: Path) -> None:
    tables = [table({"none": [0.7, 0.7]}, task="a$b"), table({"none": [0.6, 0.6]}, task="a&b")]
    pd.concat(tables).to_csv(tmp_path / "trials.csv", index=False)
    page = write_report(tmp_path / "trials.csv", tmp_path / "report").read_text(encoding="utf-8")
    folders = sorted(path.name for path in (tmp_path / "report").iterdir() if path.is_dir())
    assert len(folders) == 2 and all(f'id="{name}"' in page for name in folders)


@pytest.mark.parametrize("name", NAMES)
def test_spreadsheets_are_given_no_formula_and_we_read_the_name_back(name: str, tmp_path: Path) -> None:
    trials = table(SCORES, **hostile(name)).assign(dev_scores=[[0.5]] * 18)
    with write_csv(trials, tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
    assert not [cell for cell in cells if cell.startswith("-") and not cell[1:].replace(".", "").isdigit()]
    read = read_trials(tmp_path / "trials.csv")
    assert read["task"].unique().tolist() == [name]
    assert len(studies(tmp_path / "trials.csv")) == 1
    assert spreadsheet.original(spreadsheet._escaped(name)) == name


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_given_no_command(name: str, tmp_path: Path) -> None:
    sheet = points_sheet(points(study(SCORES), 0.95).assign(name=name, strategy=name))
    text = sheet.latex()
    sheet.write(tmp_path)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + len(SCORES)
    assert text.count("\\end{tabular}") == 1 and text.count("\\begin") == 1
    assert {line.replace("\\&", "").count("&") for line in rows} == {rows[0].count("&")}
    for sign in "%$#_{}&":
        assert sign not in name or f"\\{sign}" in text
    compiler = shutil.which("pdflatex")
    if compiler and name.isascii():
        page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text}\\end{{document}}"
        (tmp_path / "page.tex").write_text(page)
        subprocess.run([compiler, "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name in ("a\0b", "a\ud800", "x" * 501):
        trials = table(SCORES).astype({"task": object})
        trials["task"] = pd.Series([name] * len(trials), dtype=object)
        with pytest.raises(HskdError, match=r"column task .* (is not text|is too long for a name)"):
            Study.of(trials)
    long = "x" * 400
    made = study(SCORES, task=long, teacher=long)
    assert len(made.slug) < 200
    marginal_utility_figure(made)
