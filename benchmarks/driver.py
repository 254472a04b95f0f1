"""The driver: it runs one process per case, and only one of them works at a time, in rounds."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from hskd.benchmarks.cases import Case, Group
from hskd.benchmarks.shapes import Sizes
from hskd.errors import HskdError
from hskd.hashing import file_sha256, fingerprint
from hskd.io import read_json, write_json

PACKAGES = ("hskd", "benchmarks")
"""Packages whose code decides the measurements."""


@dataclass
class Measured:
    """The measurements of a case: seconds per batch for each round, and other properties by name."""

    seconds: list[float] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)


@dataclass
class Driver:
    """Measures groups on one device.

    Args:
        sizes: how much is run.
        device: the device that is measured.
        threads: CPU threads of a worker.
        cases: folder of finished groups, which are not measured again; None to store nothing.
        fresh: measure finished groups again.
    """

    sizes: Sizes
    device: torch.device
    threads: int
    cases: Path | None = None
    fresh: bool = False

    def measure(self, group: Group) -> dict[str, Measured]:
        """Return the measurements of ``group`` by case name. A finished group is read from its file.

        Raises:
            HskdError: a worker failed.
        """
        recipe = self._recipe(group)
        done = None if self.cases is None else self.cases / f"{group.suite}-{group.name}-{fingerprint(recipe)}.json"
        if done is not None and done.is_file() and not self.fresh:
            return {name: Measured(**fields) for name, fields in read_json(done)["measured"].items()}
        with tempfile.TemporaryDirectory(prefix="hskd-bench-") as folder, self._workers(group, Path(folder)) as workers:
            measured = self._rounds(group, workers)
        if done is not None:
            write_json(done, {"recipe": recipe, "measured": {name: asdict(case) for name, case in measured.items()}})
        return measured

    def _recipe(self, group: Group) -> dict[str, Any]:
        return {
            "group": asdict(group),
            "sizes": asdict(self.sizes),
            "device": [str(self.device), device_name(self.device)],
            "threads": self.threads,
            "versions": [version("torch"), version("transformers")],
            "code": code_fingerprint(),
        }

    @contextmanager
    def _workers(self, group: Group, folder: Path) -> Iterator[dict[str, Connection]]:
        from hskd.benchmarks.job import Job
        from hskd.benchmarks.workers import run

        # Forks of a process that has imported everything and computed nothing start at once. CUDA works in a fork that
        # was made before its first use. Other accelerators were not tried.
        forked = self.device.type in ("cpu", "cuda") and sys.platform == "linux"
        context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
        if forked:
            context.set_forkserver_preload(["hskd.benchmarks.workers"])
        pipes, processes = {}, []
        try:
            for i, case in enumerate(group.cases):
                driver_end, worker_end = context.Pipe()
                case_folder = folder / str(i)
                case_folder.mkdir()
                job = Job(case, self.sizes, self.device, self.threads, case_folder)
                process = context.Process(target=run, args=(worker_end, job), daemon=True)
                process.start()
                worker_end.close()
                pipes[case.name] = driver_end
                processes.append(process)
            for name, pipe in pipes.items():
                self._receive(group, name, pipe)
            yield pipes
        finally:
            for pipe in pipes.values():
                pipe.close()  # workers that still wait for a turn then exit
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()

    def _rounds(self, group: Group, workers: dict[str, Connection]) -> dict[str, Measured]:
        measured = {case.name: Measured(known=self._describe(case)) for case in group.cases}
        names = list(workers)
        steps = self.sizes.turn(group.cases[0].lengths, self.device)
        # The first turn is slow, because it counts operations.
        warmup = 1 + max(0, -(-(self.sizes.warmup_steps - steps) // steps))
        fewest, most = self.sizes.rounds
        rounds, done = most, 0
        start = time.monotonic()
        while done < warmup + rounds:
            # The order rotates, so that no case always follows the same other case.
            for name in names[done % len(names) :] + names[: done % len(names)]:
                workers[name].send("go")
                report = self._receive(group, name, workers[name])
                if done >= warmup:
                    measured[name].seconds.append(report["seconds"])
                    measured[name].known.setdefault("anonymous_bytes", []).append(report["anonymous_bytes"])
            done += 1
            if done == warmup:
                start = time.monotonic()
            elif done == warmup + 1:
                rounds = min(max(fewest, int(self.sizes.seconds / (time.monotonic() - start))), most)
        for name, pipe in workers.items():
            pipe.send("stop")
            known = measured[name].known | self._receive(group, name, pipe)["known"]
            batches = known.pop("batches_per_turn")
            measured[name].known = known | _rates(statistics.median(measured[name].seconds) / batches, known)
            measured[name].seconds = [seconds / batches for seconds in measured[name].seconds]
        return measured

    def _describe(self, case: Case) -> dict[str, Any]:
        return {
            **{name: value for name, value in asdict(case).items() if name != "name" and value not in ("", None)},
            "device": str(self.device),
            "device_name": device_name(self.device),
            "threads": self.threads,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def _receive(self, group: Group, name: str, pipe: Connection) -> dict[str, Any]:
        try:
            message: dict[str, Any] = pipe.recv()
        except (EOFError, ConnectionError):
            raise HskdError(
                f"benchmark {group.suite} {group.name}: the process of {name} died, perhaps out of memory. Run the "
                "same command again; it keeps finished groups."
            ) from None
        if "error" in message:
            raise HskdError(f"benchmark {group.suite} {group.name}: {name} failed:\n{message['error']}")
        return message


def _rates(seconds: float, known: dict[str, Any]) -> dict[str, float]:
    """Return examples, real tokens and floating-point operations per second, at a median of ``seconds`` per batch."""
    per_batch = {
        name: known[f"{name}_per_batch"] for name in ("examples", "tokens", "flops") if f"{name}_per_batch" in known
    }
    return {f"{name}_per_second": amount / seconds for name, amount in per_batch.items()}


def device_name(device: torch.device) -> str:
    """Return the name of the device: the processor with its number of cores, or the accelerator."""
    from hskd.provenance import provenance

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    made_by = provenance()
    return f"{made_by['machine']} {made_by['cores']} cores{' mps' if device.type == 'mps' else ''}"


def code_fingerprint() -> str:
    """Return a fingerprint of the code of the engine and of the benchmarks, 16 hexadecimal digits."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return fingerprint([[str(file.relative_to(root)), file_sha256(file)] for file in files])
