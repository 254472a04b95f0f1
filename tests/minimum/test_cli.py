"""``hskd find``: its output and its error messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.command_line import Cli, command_line

from hskd.analysis.cli.find import parse_time
from hskd.cli.find_display import known_rows
from hskd.errors import HskdError
from hskd.minimum.search import Batch, Confirmation, Known, Search, SearchSettings, Trial
from hskd.minimum.sequential import Judgement
from hskd.minimum.space import Candidate
from hskd.spec import HSKSpec


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run ``hskd find`` with these arguments in a folder of its own: exit code, output, messages."""
    return command_line(monkeypatch, capfd, tmp_path, "find")


def test_it_prints_the_answer_and_a_page(
    cli: Cli,
    grid_file: Path,
    space_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = ("--tolerance", 30, "--budget-trials", 32, "--space", space_file, "--dtype", "fp32", "--out", "out")
    code, out, err = cli(grid_file, *options)
    assert code == 0, err
    assert re.search(r"\d+ trials", out)
    assert (tmp_path / "out" / "find-report" / "index.html").is_file()
    assert "report: out/find-report/index.html" in out
    lines = [line for line in err.splitlines() if line.startswith("stage: ")]
    assert "none and full on search seeds" in lines[0] and "trials: 0 of 32" in lines[0]

    code, again, err = cli(grid_file, *options)
    assert code == 0 and again == out, "the same answer"
    assert "stage: " not in err, "nothing is run again"

    report = command_line(monkeypatch, capfd, tmp_path, "report")
    code, out, err = report("out", "--out", "again")
    assert code == 0 and "report: again/index.html" in out, err
    assert (tmp_path / "again/index.html").read_text() == (tmp_path / "out/find-report/index.html").read_text()
    code, _, err = report("out", "--margin", 1)
    assert code == 2 and "--margin: out holds a search, which fixed" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mr", "--tolerance", 1, "--margin-share", 0.1), "--tolerance or --margin-share, not both"),
        (("mr", "--workers", 2, "--ray"), "--workers or --ray, not both"),
        (("mr", "--teacher", "a", "--finished-teacher", "b"), "--teacher or --finished-teacher, not both"),
        (("mr", "--budget", "soon"), "--budget soon: expected a time"),
        (("mr", "--most-bytes", "few"), "--most-bytes 'few': expected a size"),
        (("no-such-task",), "expected a task"),
        (("mr", "--students", "nobody"), "--students nobody"),
        (("mr", "--tolerance", 0), "tolerance"),
    ],
)
def test_contradictions_and_nonsense_are_refused(cli: Cli, arguments: tuple[object, ...], message: str) -> None:
    code, _, err = cli(*arguments)
    assert code == 2
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90min", 5400), ("1.5 h", 5400), ("30s", 30), ("5m", 300)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "2", "h", "-1h", "2 days"])
def test_no_times(text: str) -> None:
    with pytest.raises(HskdError, match="--budget"):
        parse_time(text)


def test_the_live_view_says_what_is_known_what_runs_next_and_why() -> None:
    spec = HSKSpec.parse("1l_3t_0.1w")
    search = Search([Candidate(spec, 450.0, {})], 80_000.0, SearchSettings())
    test = Confirmation(0, Judgement("below", 6, -0.004, -0.006, -0.002), 0.001)
    search.known = Known(trials=22, gap=Judgement("below", 4, -0.014, -0.02, -0.008), tests=(test,))
    batch = Batch("confirmation", "is 1l_1t_0.1w enough?", (Trial("spec", 0, 0, None), Trial("full", None, 0, None)))
    rows = dict(known_rows(search, batch, waiting=1, time_left="at most 9 min"))
    assert rows["stage"] == "confirmation"
    assert rows["next"] == "is 1l_1t_0.1w enough?: 2 trials (1 done already)"
    assert rows["gap"] == "1.40 points (shown, 4 seeds)"
    assert rows["1l_3t_0.1w"] == "450 bytes, loses 0.10: enough (6 seeds)"
    assert rows["trials"] == "22 of 60, at most 9 min"
