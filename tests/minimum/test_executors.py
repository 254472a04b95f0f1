"""``hskd find`` with worker processes and on Ray: the trials, files and answer of a search with one trial at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.command_line import Cli, command_line
from support.deaths import deadly_selector, named, on_ray
from support.find_lab import GRID
from support.grid_lab import Recorder, machine, same_predictions, same_scores
from support.mutations import times

from hskd.analysis.minimum import FindResult, find
from hskd.grid.executors import Workers
from hskd.grid.spec import load_grid
from hskd.minimum.live import RATES_FOLDER, Runner, Trials
from hskd.minimum.search import Batch, Search, SearchSettings, Sent, Trial
from hskd.minimum.space import Candidate
from hskd.results import ResultsFolder, load
from hskd.spec import HSKSpec

BUDGET = 36
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def one_at_a_time(grid_file: Path, space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> FindResult:
    """The result of a search that runs its trials one after the other."""
    root = tmp_path_factory.mktemp("one-at-a-time")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return find(
            str(grid_file),
            tolerance=30.0,
            budget_trials=BUDGET,
            space=str(space_file),
            out=root / "out",
            work=root / "work",
            machine=machine(),
        )


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    grid_file: Path,
    space_file: Path,
) -> Command:
    """Run the same search as a command, with further options."""
    cli: Cli = command_line(monkeypatch, capfd, tmp_path, "find")
    options = ("--tolerance", 30, "--budget-trials", BUDGET, "--space", space_file)
    places = ("--dtype", "fp32", "--threads", 1, "--out", "out", "--work", "work")
    return lambda *more: cli(grid_file, *options, *places, *more)


def same_search(printed: str, out: Path, expected: FindResult) -> None:
    """Check that a search printed the expected answer and kept the expected files, with equal scores and outputs."""
    assert " ".join(expected.sentence.split()) in " ".join(printed.split())
    assert files(out) == files(expected.folder)
    assert ResultsFolder(out).planned() == ResultsFolder(expected.folder).planned()
    same_scores(load(out), load(expected.folder))
    same_predictions(out, expected.folder)


def files(out: Path) -> set[str]:
    """Return the files of a search, without its report."""
    paths = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if path.parts[0] != "find-report"}


class Watched:
    """Worker processes of this process, watched by a thread that kills one of them once enough trials are done."""

    def __init__(self, out: Path, enough: int) -> None:
        self.seen: set[int] = set()
        self.killed: list[int] = []
        self._out, self._enough = out, enough
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.3):
            workers = named("spawn_main", recursive=False)
            self.seen.update(process.pid for process in workers)
            done = len(list(self._out.glob("trials/*.json")))
            if not self.killed and workers and done >= self._enough:
                self.killed.append(workers[0].pid)
                workers[0].kill()


@pytest.mark.timeout(900)
def test_workers_give_the_same_answer_and_one_may_die(
    one_at_a_time: FindResult, command: Command, tmp_path: Path
) -> None:
    with Watched(tmp_path / "out", enough=3) as watched:
        code, printed, err = command("--workers", 2)
    assert code == 0, err
    assert len(watched.killed) == 1
    assert "its process died by signal 9; it is run again" in " ".join(err.split())
    assert len(watched.seen) == 3, "two processes run all batches, and a third replaces the one that died"
    assert not named("spawn_main")
    same_search(printed, tmp_path / "out", one_at_a_time)


@pytest.mark.torture
@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="needs hskd[cluster]")
@pytest.mark.skipif(times(1) == 1, reason="takes minutes: make torture runs it")
@pytest.mark.timeout(900)
def test_a_local_ray_gives_the_same_answer(
    one_at_a_time: FindResult, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    code, printed, err = on_ray(lambda: command("--ray", "--num-cpus", 1))
    assert code == 0, err
    assert not named("raylet/raylet")
    same_search(printed, tmp_path / "out", one_at_a_time)


FULL, DEADLY_SPEC = Trial("full", None, 0, None), Trial("spec", 0, 0, None)


class TwoBatches(Search):
    """A search that requests full HSK for its rates, then again with a spec that kills its process."""

    sent: list[Sent]

    def run(self) -> Generator[Batch, Sent, None]:  # type: ignore[override]
        self.sent = [(yield Batch("rates", "which rates?", (FULL,)))]
        self.sent.append((yield Batch("screening", "does it go on?", (FULL, DEADLY_SPEC))))


@pytest.mark.timeout(600)
def test_a_trial_that_kills_its_process_twice_is_a_failed_one(
    data_folder: Path, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "deadly.yaml"
    told, out = Recorder(), tmp_path / "out"
    told.next_batch = lambda batch, search, waiting: None  # type: ignore[attr-defined]
    with deadly_selector(tmp_path) as module:
        file.write_text(GRID.format(data=data_folder, model=grid_file.parent / "body") + f"plugins: [{module}]\n")
        trials = Trials(load_grid(str(file)), machine(), tmp_path / "work")
        chosen = [Candidate(HSKSpec.parse("1l_1t_0.25w,length=deadly"), 450.0, {})]
        search = TwoBatches(chosen, 80_000.0, SearchSettings())
        Runner(trials, chosen, out, Workers(1), told).run(search)  # type: ignore[arg-type]
        full, deadly = (trials.config(trial, chosen).id for trial in (FULL, DEADLY_SPEC))
    [[of_rates], [of_full, of_deadly]] = search.sent
    assert of_rates is not None and of_rates == of_full and of_deadly is None
    assert ResultsFolder(out).done() == ResultsFolder(out / RATES_FOLDER).done() == {full}
    assert [path.name for path in out.glob("trials/*.error.json")] == [f"{deadly}.error.json"]
    assert any("failed: its process died 2 times, the last by signal 9" in news[3] for news in told.news)
    assert not named("spawn_main")
