"""Every command resumes to the same bytes after kills, interrupts, concurrent runs and full disks.

The moments are drawn from a seed. The short form disturbs each command a few times; ``make torture`` does so often.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD, GOOD, make_bert
from support.faults import Ended, Job, Lab, difference, digest
from support.mutations import times
from transformers import BertTokenizerFast

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

GRID = """\
name: broken
task: {name: custom, data: data, text_columns: [sentence], label_column: mood}
teacher: {model: body, settings: {epochs: 1, lr: 3.0e-3, batch_size: 16}}
students: [{layers: 2, heads: 2, ffn: 24, importance_examples: 32}]
training: {hsk_epochs: 1, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}
seeds: 1
sweeps: [{n: [1, 2], k: [3], w: [0.25]}]
"""
TASK = ["--task", "custom", "--data", "data", "--text-columns", "sentence", "--label-column", "mood"]
MACHINE = ["--dtype", "fp32", "--threads", "1"]
SUPERSET = ["--layers", "0,1,2,3,4", "--attention-layers", "1,2,3,4", "--precision", "fp32"]


@dataclass(frozen=True)
class Command:
    """A command of the pipeline, and the folders that it makes."""

    arguments: list[str]
    makes: list[str]


COMMANDS = {
    "general": Command(
        ["general", "--model", "body", "--text", "text.txt", "--layers", "2", "--width", "24", "--heads", "3",
         "--ffn", "48", "--chunks", "64", "--epochs", "3", "--batch-size", "8", "--out", "general", *MACHINE],
        ["general"],
    ),
    "teacher": Command(
        ["teacher", "--model", "body", "--epochs", "3", "--batch-size", "8", "--lr", "3e-3", "--out", "teacher",
         *TASK, *MACHINE],
        ["teacher"],
    ),
    "student": Command(
        ["student", "--teacher", "teacher", "--layers", "2", "--heads", "2", "--ffn", "24", "--rank", "8", "--out",
         "student", *TASK, *MACHINE],
        ["student"],
    ),
    "extract": Command(
        ["store", "extract", "--teacher", "teacher", "--train-examples", "40", "--batch-size", "4", "--out", "part",
         *SUPERSET, *TASK, *MACHINE],
        ["part"],
    ),
    "extend": Command(
        ["store", "extract", "--teacher", "teacher", "--extend", "part", "--batch-size", "4", "--out", "superset",
         *SUPERSET, *TASK, *MACHINE],
        ["superset"],
    ),
    "derive": Command(
        ["store", "derive", "superset", "--spec", "2l_4t_0.5w", "--student-layers", "2", "--out",
         "derived"],
        ["derived"],
    ),
    "distill": Command(
        ["distill", "--student", "student", "--store", "derived", "--spec", "2l_4t_0.5w", "--hsk-epochs", "3",
         "--prediction-epochs", "3", "--hsk-lr", "1e-3", "--prediction-lr", "5e-3", "--batch-size", "8", "--out",
         "trial", *TASK, *MACHINE],
        ["trial"],
    ),
    "grid": Command(["grid", "run", "grid.yaml", "--out", "out", "--work", "gridwork", *MACHINE], ["out", "gridwork"]),
    "report": Command(["report", "out"], ["out/report"]),
}  # fmt: skip


class Pipeline:
    """All commands, run once without a fault, with their inputs, results and times."""

    def __init__(self, root: Path, lab: Lab) -> None:
        self.root = root
        self.lab = lab
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}
        for name, command in COMMANDS.items():
            [ended] = lab.run(Job(command.arguments, root))
            assert ended.code == 0, ended.output
            self.seconds[name] = ended.seconds
            self.expected[name] = made(command, root)

    def before(self, name: str, folder: Path) -> Path:
        """Return a copy of everything that ``name`` needs, without the results of it and later commands."""
        later = list(COMMANDS)[list(COMMANDS).index(name) :]
        left_out = {self.root / place for command in later for place in COMMANDS[command].makes}
        left_out |= {place.with_name(place.name + ".lock") for place in left_out}
        shutil.copytree(
            self.root,
            folder,
            ignore=lambda at, names: [entry for entry in names if Path(at, entry) in left_out],
            dirs_exist_ok=True,
        )
        return folder


def made(command: Command, root: Path) -> dict[str, str]:
    return {f"{place}/{file}": value for place in command.makes for file, value in digest(root / place).items()}


def require_same(pipeline: Pipeline, name: str, root: Path) -> None:
    found, expected = made(COMMANDS[name], root), pipeline.expected[name]
    assert found.keys() == expected.keys(), f"{name}: {sorted(found.keys() ^ expected.keys())}"
    different = [file for file in found if found[file] != expected[file]]
    assert not different, [(file, difference(pipeline.root / file, root / file)) for file in different]


def require_resumed(pipeline: Pipeline, name: str, root: Path) -> None:
    """Run the command again, undisturbed: it succeeds with the results of the undisturbed pipeline."""
    [ended] = pipeline.lab.run(Job(COMMANDS[name].arguments, root))
    assert ended.code == 0, ended.output
    require_same(pipeline, name, root)


def require_clear(ended: Ended) -> None:
    """Check for an error of ours: exit code 2, and no traceback."""
    assert ended.code == 2, ended.output
    assert "Traceback" not in ended.output, ended.output
    assert "error: " in ended.output


@pytest.fixture(scope="module")
def pipeline(
    tmp_path_factory: pytest.TempPathFactory, data_folder: Path, tokenizer: BertTokenizerFast
) -> Iterator[Pipeline]:
    root = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(data_folder, root / "data")
    make_bert(num_hidden_layers=4).save_pretrained(root / "body")
    tokenizer.save_pretrained(root / "body")
    (root / "text.txt").write_text("\n".join(f"{words} {i} {i % 7}" for i in range(30) for words in GOOD + BAD))
    (root / "grid.yaml").write_text(GRID)
    lab = Lab()
    yield Pipeline(root, lab)
    lab.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_commands_resume_to_the_same_bytes(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    """kill -9 at random moments of a command, then wrong clocks: the next run ends as if undisturbed."""
    rng = np.random.default_rng(sorted(COMMANDS).index(name))
    command = COMMANDS[name]
    for turn in range(times(1)):
        root = pipeline.before(name, tmp_path / str(turn))
        for moment in rng.uniform(0, pipeline.seconds[name], 2):
            [ended] = pipeline.lab.run(Job(command.arguments, root, float(moment)))
            assert ended.code in (0, -signal.SIGKILL), ended.output
            for path in root.rglob("*"):  # clocks must not matter
                if path.is_file() and rng.random() < 0.3:
                    stamp = float(rng.uniform(0, 4e9))
                    os.utime(path, (stamp, stamp))
        require_resumed(pipeline, name, root)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_one_line_and_resumes(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    """SIGINT (Ctrl-C): exit code 130."""
    rng = np.random.default_rng(100 + sorted(COMMANDS).index(name))
    command = COMMANDS[name]
    for turn in range(times(1)):
        root = pipeline.before(name, tmp_path / str(turn))
        moment = float(rng.uniform(0.1, 0.8)) * pipeline.seconds[name]
        [ended] = pipeline.lab.run(Job(command.arguments, root, moment, signal.SIGINT))
        if ended.code != 0:  # it was not finished before
            assert ended.code == 130, ended.output
            assert "Traceback" not in ended.output, ended.output
            assert ended.output.rstrip().splitlines()[-1].startswith("interrupted")
        require_resumed(pipeline, name, root)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_a_time_end_as_one(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    """Two processes run one command on one folder: each succeeds or says why not, and the result is complete."""
    rng = np.random.default_rng(200 + sorted(COMMANDS).index(name))
    command = COMMANDS[name]
    for turn in range(times(1)):
        root = pipeline.before(name, tmp_path / str(turn))
        moment = None if turn % 2 == 0 else float(rng.uniform(0, pipeline.seconds[name]))
        both = pipeline.lab.run(Job(command.arguments, root, moment), Job(command.arguments, root))
        assert both[1].code == 0 or moment is None, both[1].output
        assert 0 in [ended.code for ended in both], [ended.output for ended in both]
        for ended in both:
            if ended.code not in (0, -signal.SIGKILL):
                require_clear(ended)
        require_same(pipeline, name, root)
        shutil.rmtree(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def mount(*arguments: str | Path) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def resize(disk: Path, kib: int) -> None:
    assert mount("-o", f"remount,rw,size={kib}k", disk) == 0


def used(disk: Path) -> int:
    """Return the used space in KiB."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize // 1024


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_command_goes_on(pipeline: Pipeline, name: str, small_disk: Path) -> None:
    """The disk is full at a random write. With more room, the same command ends as if undisturbed."""
    rng = np.random.default_rng(300 + sorted(COMMANDS).index(name))
    command = COMMANDS[name]
    needed = None
    for turn in range(times(2)):
        resize(small_disk, 64 * 1024)
        root = pipeline.before(name, small_disk / str(turn))
        free = 4 * (turn % 3) if needed is None or turn % 4 == 0 else int(rng.integers(0, needed))
        start = used(small_disk)
        resize(small_disk, start + free)
        [ended] = pipeline.lab.run(Job(command.arguments, root))
        if ended.code != 0:
            require_clear(ended)
        resize(small_disk, 64 * 1024)
        [ended] = pipeline.lab.run(Job(command.arguments, root))
        assert ended.code == 0, ended.output
        needed = used(small_disk) - start
        require_same(pipeline, name, root)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["teacher", "distill", "grid"])
def test_a_read_only_folder_is_one_line(pipeline: Pipeline, name: str, small_disk: Path) -> None:
    root = pipeline.before(name, small_disk / "root")
    assert mount("-o", "remount,ro", small_disk) == 0
    [ended] = pipeline.lab.run(Job(COMMANDS[name].arguments, root))
    require_clear(ended)
    resize(small_disk, 64 * 1024)
    require_resumed(pipeline, name, root)


@pytest.mark.parametrize("name", ["extract", "distill", "grid"])
def test_a_folder_that_vanishes_is_one_line(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    """An input of a command is removed before it starts. Once restored, the command ends as if undisturbed."""
    root = pipeline.before(name, tmp_path / "root")
    place = {"extract": "teacher", "distill": "derived", "grid": "body"}[name]
    (root / place).rename(tmp_path / "away")
    [ended] = pipeline.lab.run(Job(COMMANDS[name].arguments, root))
    require_clear(ended)
    assert place in ended.output
    (tmp_path / "away").rename(root / place)
    require_resumed(pipeline, name, root)


@pytest.mark.parametrize(("name", "damaged"), [("extend", "part"), ("derive", "superset"), ("distill", "derived")])
def test_a_damaged_store_is_refused_by_name(pipeline: Pipeline, name: str, damaged: str, tmp_path: Path) -> None:
    root = pipeline.before(name, tmp_path / "root")
    shard = next((root / damaged).glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 | 1] ^= 0x80  # the sign of a number
    shard.write_bytes(content)
    [ended] = pipeline.lab.run(Job(COMMANDS[name].arguments, root))
    require_clear(ended)
    assert f"{damaged}/{shard.name}: its SHA-256" in ended.output
    assert not any((root / place).exists() for place in COMMANDS[name].makes)
