from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from support import simulated
from typer.testing import CliRunner

from hskd.analysis.report.inline_svg import THEMED
from hskd.analysis.report.page import write_report
from hskd.analysis.report.sheets import BYTES_SHARE, marginal_utility_sheet, points_sheet
from hskd.analysis.report.verdict import MOST_VERDICTS, Evidence, verdict
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.sufficiency import minimum_sufficient
from hskd.analysis.table import studies
from hskd.cli.app import app
from hskd.errors import HskdError

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Text and tags of a page, and whether each tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str, name: str) -> list[str]:
        return [value for its, attribute, value in self.attributes if (its, attribute) == (tag, name)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, *tables: pd.DataFrame) -> Path:
    return simulated.write(folder, *tables)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the simulated joint grid."""
    return write_report(write(tmp_path_factory.mktemp("joint"), simulated.simulate("joint")))


def test_the_page_needs_nothing_but_itself(joint: Path) -> None:
    page = Page(joint)
    assert joint.name == "index.html" and joint.parent.name == "report"
    assert "script" not in {tag for tag, *_ in page.attributes} and "<script" not in joint.read_text()
    assert not {"img", "link", "iframe", "object", "embed"} & {tag for tag, *_ in page.attributes}
    links = [link for _, name, link in page.attributes if name == "href"]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"url\((?!#)|@import|https?:|src=", re.sub(r"base64,[\w+/= \n]+", "", joint.read_text()))
    assert all(page.all("svg", "aria-label"))
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in links if link.startswith("#")} <= set(identifiers)


def outline(svg: str) -> tuple[str, int, int]:
    """What two versions of a picture have in common: the size, and how many paths and glyphs it has."""
    return re.findall(r'viewBox="([^"]+)"', svg)[0], svg.count("<path"), svg.count("<use")


def test_the_pictures_of_the_page_are_the_svg_files(joint: Path) -> None:
    shown = [outline(svg) for svg in re.findall(r"<svg.*?</svg>", joint.read_text(encoding="utf-8"), re.DOTALL)]
    drawn = sorted((joint.parent / "figures").glob("*.svg"))
    assert [path.stem for path in drawn] == [path.stem for path in sorted((joint.parent / "figures").glob("*.png"))]
    assert {path.stem for path in drawn} == {
        *("curve", "curve_values", "curve_relative", "equal_bytes", "next_byte", "pareto", "sufficiency", "surface")
    }
    assert sorted(shown) == sorted(outline(path.read_text(encoding="utf-8")) for path in drawn)


def tips(markup: str) -> dict[str, list[str]]:
    """The lines of each text that a marker shows, by the first of them."""
    texts = re.findall(r'<span class="tip">(.*?)</span></span>', markup)
    lines = [[unescape(line) for line in re.findall("<span>(.*?)(?:</span>|$)", text)] for text in texts]
    return {first: rest for first, *rest in lines}


def test_markers_show_the_values_of_the_table(joint: Path) -> None:
    [study] = studies(joint.parents[1])
    rows = points_sheet(points(study)).text_table.to_dict("records")
    shown = {
        title: tips(markup)
        for markup in re.findall(r"<figure.*?</figure>", joint.read_text(encoding="utf-8"), re.DOTALL)
        for title in re.findall("<strong>(.*?)</strong>", markup)
    }
    for title in ("Score against bytes.", "Share of the gap that is closed.", "Pareto front of score against bytes."):
        for row in (row for row in rows if not row["point"].startswith(("gold", "paper", "shuffled"))):
            lines = shown[title][row["point"]]
            assert f"bytes an example: {row['bytes an example']}" in lines
            assert f"share of full's bytes in fp16: {row[BYTES_SHARE]}" in lines
            assert f"score, % (95 % CI): {row['score, %']}" in lines and f"seeds: {row['seeds']}" in lines
    for row in marginal_utility_sheet(marginal_utility(study)).text_table.to_dict("records"):
        line = f"gain per doubling, points (95 % CI): {row['gain per doubling, points']}"
        assert line in shown["Score against bytes."][f"{row['from']} → {row['to']}"]


def luminance(colour: str) -> float:
    """The relative luminance of a colour (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_themes_have_every_colour_of_the_page(joint: Path) -> None:
    text = joint.read_text(encoding="utf-8")
    css = text.partition("<style>")[2].partition("</style>")[0]
    light, system_dark, chosen_light, chosen_dark = (
        dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", css)
    )
    assert light == chosen_light and system_dark == chosen_dark and light.keys() == chosen_dark.keys()
    assert "prefers-color-scheme: dark" in css
    for theme in (light, chosen_dark):
        for front in ("--ink", "--muted", "--accent"):
            for back in ("--page", "--answer", "--code"):
                bright, dim = sorted((luminance(theme[front]), luminance(theme[back])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (front, back)
    assert set(re.findall(r"var\((--\w+)\)", text)) == light.keys()
    # Colours stand in the variables alone; figures keep only those that both themes can show.
    assert not re.search(
        r"#[0-9a-fA-F]{3,8}\b|\b(white\b(?!-)|black\b|rgba?\()", re.sub(r"--\w+: #[0-9a-f]{6};", "", css)
    )
    figures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", figures)) & set(THEMED)


def test_the_page_opens_with_the_verdict(joint: Path) -> None:
    page = Page(joint)
    [study] = studies(joint.parents[1])
    [answer] = minimum_sufficient(study)
    made = verdict(Evidence(study, [answer], [], None), points(study), "bytes_per_example")
    start = page.text.index(made.headline)
    assert page.text.index("is enough?") < start < page.text.index("On these very test examples")
    assert made.sentences[-1] in page.text and answer.sentence in page.text
    assert (made.kind == "enough") == (answer.verdict == "sufficient")


def test_many_verdicts_are_a_table(tmp_path: Path) -> None:
    tables = [simulated.simulate("demo", seeds=1, task=f"task{number}") for number in range(MOST_VERDICTS + 1)]
    # The specs are left out: figures take long, and the verdicts are the same.
    table = pd.concat(tables).query("arm != 'spec'")
    text = write_report(write(tmp_path, table)).read_text(encoding="utf-8")
    top = text.partition("<section")[0]
    assert top.count("<tr>") == MOST_VERDICTS + 2 and top.count("<td>undetermined</td>") == MOST_VERDICTS + 1
    assert "Undetermined:" not in top


def test_the_page_answers_and_shows_the_tables(joint: Path) -> None:
    page = Page(joint)
    [study] = studies(joint.parents[1])
    assert study.title in page.text
    assert "1l_8t_0.1w (0.73 %) is not enough: it loses more than 0.5 points." in page.text  # ordered by bytes
    assert "the predictions of the trials, or the labels, are not kept" in page.text
    assert "Strategies: only one per dimension, so there is nothing to compare." in page.text
    for name in ("points", "marginal_utility", "minimum", "surface", "pareto", "equal_bytes", "next_byte"):
        assert (joint.parent / "tables" / f"{name}.csv").is_file()
        assert (joint.parent / "tables" / f"{name}.tex").is_file()
    points = pd.read_csv(joint.parent / "tables" / "points.csv")
    assert set(points["name"]) <= set(page.words)
    for caption in ("Means over 5 seeds with 95 % t-intervals", "Pareto front of score against bytes.", "hatched"):
        assert caption in page.text
    assert "hskd report" in page.text and "git commit" in page.text


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "results", simulated.simulate("length", seeds=3))
    first = files(write_report(folder).parent)
    assert {Path(name).suffix for name in first} == {".html", ".png", ".svg", ".csv", ".tex"}
    assert files(write_report(folder).parent) == first


def test_several_studies_have_a_section_each(tmp_path: Path) -> None:
    cola = simulated.simulate("depth", task="cola<b>", random_state=1)
    index = write_report(write(tmp_path, simulated.simulate("demo"), cola), tmp_path / "out", margin=0.01)
    page = Page(index)
    found = studies(tmp_path)
    assert page.all("section", "id") == [study.slug for study in found]
    assert page.all("a", "href") == [f"#{study.slug}" for study in found]
    assert "cola<b>" in page.text  # escaped in the source, because otherwise the parser would see a tag
    for study in found:
        assert (index.parent / study.slug / "figures" / "curve.svg").is_file()
    assert "1 points" in page.text and "Joint: only depth varies in this study." in page.text
    assert "depth: " in page.text and f"--out {tmp_path / 'out'} --margin 1" in page.text


@pytest.mark.parametrize(
    ("without", "seeds", "says"),
    [
        ("", 1, ["too few seeds: full and none share 1 seed", "single trial and carries no interval"]),
        ("none", 3, ["there is no none arm", "Share of the gap that is closed: not drawn."]),
        ("full", 3, ["there is no full arm", "Share of the gap that is closed: not drawn."]),
        ("spec", 3, ["No trial of the arm spec is done", "no trial of the arm spec, so there is no curve"]),
    ],
)
def test_what_cannot_be_said_is_said(tmp_path: Path, without: str, seeds: int, says: list[str]) -> None:
    table = simulated.simulate("demo", seeds=seeds)
    page = Page(write_report(write(tmp_path, table[table["arm"] != without])))
    for text in says:
        assert text in page.text
    assert "nan" not in page.text.split()


def test_kept_predictions_answer_for_new_examples_too(tmp_path: Path) -> None:
    index = write_report(DEMO, tmp_path)
    page = Page(index)
    assert "for new test examples like these.)" in page.text and "on these very test examples.)" in page.text
    assert (tmp_path / "figures" / "sufficiency_new_examples.svg").is_file()
    minimum = pd.read_csv(tmp_path / "tables" / "minimum.csv")
    assert set(minimum["scope"]) == {"these examples", "new examples"}
    assert "hskd grid run demo --seeds 3" in page.text
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert (len(trials), list(trials.columns[:2])) == (24, ["trial", "task"])


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "in", simulated.simulate("demo", seeds=1)) / "trials.csv"
    done = CliRunner().invoke(app, ["report", str(path), "--out", str(tmp_path / "out"), "--margin", "1"])
    assert done.exit_code == 0 and done.output == f"report: {tmp_path / 'out' / 'index.html'}\n"
    assert f"hskd report {path} --out {tmp_path / 'out'} --margin 1" in Page(tmp_path / "out" / "index.html").text
    with pytest.raises(HskdError, match="no such file or folder"):
        CliRunner().invoke(app, ["report", str(tmp_path / "nothing")], catch_exceptions=False)


def test_a_table_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, simulated.simulate().assign(score=79.0))
    with pytest.raises(HskdError, match=r"column score .79.0. is not a share"):
        write_report(folder)
    assert [path.name for path in folder.iterdir()] == ["trials.csv"]
