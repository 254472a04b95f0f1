"""In-process, worker and Ray executors give the same bits."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from grid.conftest import Cli, Write
from support.deaths import deadly_selector, named, on_ray
from support.grid_lab import CLI, TRIALS, Ran, Recorder, command, run, same_predictions, same_scores
from support.mutations import times

from hskd.errors import HskdError
from hskd.grid.executors import RayCluster, Workers
from hskd.results import ResultsFolder

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs hskd[cluster]")


class Once(Recorder):
    """Runs a function after the first trial."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def trials(self, done: int, failed: int, total: int, news: str, running: int = 0) -> None:
        super().trials(done, failed, total, news)
        if len(self.news) == 2:
            self._act()


@pytest.mark.timeout(600)
def test_workers_give_the_same_bits_and_one_may_die(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    def kill_a_worker() -> None:
        workers = named("spawn_main", recursive=False)
        assert len(workers) == 2
        workers[0].kill()

    told = Once(kill_a_worker)
    ran = run(grid_file, tmp_path, Workers(2), told)
    assert not named("spawn_main")
    assert not ran.progress.failed and not ran.progress.pending
    assert [news[0] for news in told.news] == list(range(TRIALS + 1)), "each is counted once"
    [said] = [message for message in told.said if "died" in message]
    assert re.fullmatch(r".*, seed [01]: its process died by signal 9; it is run again", said)
    assert not list((tmp_path / "out").glob("trials/*"))
    same_scores(ran.table, undisturbed.table)
    same_predictions(ran.out, undisturbed.out)


INTERRUPTIBLE = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {CLI}"
"""The command line with SIGINT enabled: shells start background processes with Ctrl-C ignored."""


@pytest.mark.timeout(600)
def test_ctrl_c_reaches_workers_and_the_grid_goes_on(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    """A terminal sends it to the command and its workers: one line, exit code 130, and no process is left."""
    words = [sys.executable, "-c", INTERRUPTIBLE, *command(grid_file, tmp_path, "--workers", "2")]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    give_up = time.monotonic() + 300
    while not list((tmp_path / "out").glob("trials/*.json")):
        assert process.poll() is None and time.monotonic() < give_up, (tmp_path / "output").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    text = (tmp_path / "output").read_text()
    assert "Traceback" not in text and text.count("interrupted") == 1
    assert " ".join(text.split()).endswith("interrupted. Nothing is lost: run the same command again to resume.")
    assert not named("spawn_main")
    before = ResultsFolder(tmp_path / "out").done()
    assert 0 < len(before) < TRIALS
    told = Recorder()
    ran = run(grid_file, tmp_path, Workers(2), told)
    assert told.news[0][0] == len(before)
    same_scores(ran.table, undisturbed.table)
    same_predictions(ran.out, undisturbed.out)


@pytest.mark.timeout(600)
def test_a_trial_that_kills_its_process_twice_is_reported(
    undisturbed: Ran, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(undisturbed.root, tmp_path / "root")
    with deadly_selector(tmp_path) as module:
        file = write(f"plugins: [{module}]", 'include: ["1l_1t_0.25w,length=deadly"]', "seeds: 1")
        ran = run(file, root, Workers(1))
    [(trial, error)] = ran.progress.failed.items()
    assert error.startswith("its process died 2 times, the last by signal 9")
    assert (ran.out / "trials" / f"{trial}.error.json").is_file()
    assert len(ran.table) == TRIALS // 2 and not named("spawn_main")


@pytest.mark.ray
@needs_ray
@pytest.mark.timeout(600)
def test_a_local_ray_gives_the_same_bits(
    undisturbed: Ran, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    killed: list[psutil.Process] = []

    def look_and_kill() -> None:
        import ray  # not before the executor, which configures Ray through the environment

        nodes = ray.nodes()
        assert [node["NodeManagerAddress"] for node in nodes] == ["127.0.0.1"]
        for process in named("raylet/raylet") + named("gcs_server"):
            listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} <= {"127.0.0.1", "::1"}, process.name()
        busy = named("ray::_publish_on_node")
        killed.extend(busy[:1])
        for process in killed:
            process.kill()  # its trial is retried

    ran = on_ray(lambda: run(grid_file, tmp_path, RayCluster(), Once(look_and_kill)))
    assert not named("raylet/raylet")
    assert ran.progress.failed == {}
    same_scores(ran.table, undisturbed.table)
    same_predictions(ran.out, undisturbed.out)


@pytest.mark.torture
@pytest.mark.ray
@needs_ray
@pytest.mark.skipif(times(1) == 1, reason="takes minutes: make torture runs it")
@pytest.mark.timeout(900)
def test_a_node_that_is_lost_costs_its_trial_another_run(
    undisturbed: Ran, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes have one CPU each. The node without the driver is lost after the first trial."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    shutil.copytree(undisturbed.work, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "trials")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost: list[object] = []
    try:
        node = cluster.add_node(num_cpus=1)

        def lose() -> None:
            cluster.remove_node(node, allow_graceful=False)
            lost.append(node)

        ran = run(grid_file, tmp_path, RayCluster(cluster.address), Once(lose))
    finally:
        cluster.shutdown()
    assert lost
    assert ran.progress.failed == {}
    same_scores(ran.table, undisturbed.table)
    same_predictions(ran.out, undisturbed.out)


def test_workers_or_ray(grid_file: Path, cli: Cli) -> None:
    code, _, err = cli("run", grid_file, "--workers", 2, "--ray")
    assert code == 2
    assert "not both" in err


@pytest.mark.ray
@needs_ray
def test_a_cluster_that_is_not_there(undisturbed: Ran, grid_file: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.work, tmp_path / "work")
    with pytest.raises(HskdError, match=r"--ray-address 127\.0\.0\.1:9: no Ray cluster"):
        run(grid_file, tmp_path, RayCluster("127.0.0.1:9"))
