"""Real commands under real faults: killed, interrupted, run twice at the same time, out of disk space.

Run as a script, this is the process that forks the commands, because importing the libraries takes longer than any
command.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hskd.artifacts import CHECKSUMS  # after setting the variable that transformers reads on import

VOLATILE = {
    "checksum", "created", "examples_per_second", "first_use", "git_commit", "hsk_seconds", "last_use", "made_by",
    "peak_memory_bytes", "prediction_seconds", "seconds", "seconds_to_fit", "seconds_to_train",
    "tokens_per_second", "work",
}  # fmt: skip
"""Fields of JSON files in which two runs of one command may differ, such as costs and times."""

TEMPORARY = (".lock", ".recipe.json")
"""Endings of files that are not results: locks, and recipes, which every use touches."""


@dataclass(frozen=True)
class Job:
    """A command and the signal that disturbs it.

    Attributes:
        arguments: of ``hskd``.
        folder: the working folder.
        seconds: time until ``signal`` is sent [default: never].
        signal: SIGKILL or SIGINT.
    """

    arguments: list[str]
    folder: Path
    seconds: float | None = None
    signal: int = signal.SIGKILL

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": str(self.folder)}


@dataclass(frozen=True)
class Ended:
    """The end of a command: ``code`` is negative for a signal; ``output`` is stdout and stderr together."""

    code: int
    seconds: float
    output: str


class Lab:
    """Runs jobs in processes of their own; the jobs of one call run at the same time."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def run(self, *jobs: Job) -> list[Ended]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([job.as_json() for job in jobs]) + "\n")
        self._process.stdin.flush()
        return [Ended(**ended) for ended in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def digest(folder: Path) -> dict[str, str]:
    """Return every file of a folder with a hash of the contents on which two runs of a command must agree.

    Hidden files and files in ``.partial`` folders count too, because nothing may be left behind.
    """
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(TEMPORARY)
    }


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.name == CHECKSUMS:  # checksums of JSON files differ as the files do
        files = json.loads(content)
        files = files.get("files", files)  # token caches have their files at the top level
        content = json.dumps({name: None if name.endswith(".json") else files[name] for name in sorted(files)}).encode()
    elif path.suffix == ".json":
        content = json.dumps(_stable(json.loads(content)), sort_keys=True).encode()
    elif path.name == "trials.parquet":
        import pandas as pd

        table = pd.read_parquet(path)
        stable = table.drop(columns=[name for name in table if name in VOLATILE])
        stable["result"] = [json.dumps(_stable(json.loads(result)), sort_keys=True) for result in table["result"]]
        content = stable.to_json().encode()
    return hashlib.sha256(content).hexdigest()


def difference(expected: Path, found: Path) -> str:
    """Return the fields in which two JSON files differ, with both values; empty for other files."""
    if expected.suffix != ".json":
        return ""
    first, second = (_stable(json.loads(path.read_text(encoding="utf-8"))) for path in (expected, found))
    return ", ".join(f"{key}: {first.get(key)} and {second.get(key)}" for key in first if first[key] != second.get(key))


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def _start(arguments: Sequence[str], folder: str, output: str) -> int:
    child = os.fork()
    if child == 0:
        import torch

        from hskd.cli.app import main

        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        os.cpu_count = lambda: 1  # type: ignore[assignment]  # how many build the teacher changes its bits
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.argv = ["hskd", *arguments]
        code: Any = 1
        try:
            os.chdir(folder)
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    return child


def _serve() -> None:
    import tempfile

    import torch  # before the forks
    import transformers.trainer

    from hskd.cli.commands import BUILT_IN, LazyCommand

    for name, listing in BUILT_IN.items():
        LazyCommand(name, listing.target, listing.help).load()
    assert torch and transformers.trainer
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            running = []
            for number, job in enumerate(json.loads(line)):
                output = f"{scratch}/{number}"
                child = _start(job["arguments"], job["folder"], output)
                running.append((child, job, output, time.monotonic()))
            print(json.dumps([_wait(*run) for run in running]), flush=True)


def _wait(child: int, job: dict[str, Any], output: str, started: float) -> dict[str, Any]:
    if job["seconds"] is not None:
        time.sleep(max(0.0, started + job["seconds"] - time.monotonic()))
        os.kill(child, job["signal"])
    _, status = os.waitpid(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "output": Path(output).read_text(errors="replace"),
    }


if __name__ == "__main__":
    _serve()
