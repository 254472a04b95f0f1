"""Run a distillation on SST-2's 67,349 sentences with the commands of ``hskd``, and measure each command.

    python -m hskd.benchmarks.scale --data ../shared/glue/SST-2 --work work/scale

It fine-tunes a teacher on some sentences (its quality does not matter here), prunes a student, extracts the superset of
all sentences, derives the spec's store, and trains one epoch of the HSK stage and one of the prediction stage. Each
command is a process of its own whose memory is sampled. The extraction is killed with SIGKILL half way, and then
resumed. An interrupted run resumes at its current step, and the figures of a resumed step are marked. The results are a
JSON file and a table (``docs/scaling.md``).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from hskd.benchmarks.commands import slug
from hskd.cli.progress import tables
from hskd.io import format_bytes, read_json, write_json
from hskd.provenance import provenance
from hskd.runtime import resolve_device
from hskd.spec import HSKSpec
from hskd.store.reader import Store
from hskd.store.size import StoreSize, size_of
from hskd.store_format.layout import MANIFEST, SHARD_BYTES
from hskd.store_format.manifest import Manifest
from hskd.tasks import load_task, tokenize
from hskd.teachers.loading import Teacher

SAMPLE_SECONDS = 0.2
INTO_THE_SHARD = 3.0
"""Seconds from the end of a shard until the extraction is killed, so that it is in the middle of the next shard."""
STUDENT_LAYERS = 3


class Steps:
    """The commands. Each is run once, and its measurements are stored in the work folder.

    Args:
        work: folder of the artifacts.
        threads: CPU threads.
    """

    def __init__(self, work: Path, threads: int) -> None:
        self.work = work
        self._threads = str(threads)
        self._file = work / "steps.json"
        self.done: dict[str, dict[str, Any]] = read_json(self._file) if self._file.is_file() else {}

    def run(
        self,
        name: str,
        *arguments: str | int | Path,
        makes: Path,
        kill: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Run ``hskd`` with ``arguments``, unless the step is finished, and return its measurements.

        Args:
            name: of the step.
            arguments: of the command line.
            makes: folder of its artifact. While unfinished, the folder's name ends in ``.partial``.
            kill: called several times a second; the process is killed when it returns True.
        """
        if name in self.done:
            return self.done[name]
        partial = makes.with_name(makes.name + ".partial")
        command = ["hskd", *map(str, arguments)]
        print("$", shlex.join(command), flush=True)
        step: dict[str, Any] = {
            "command": shlex.join(command),
            "went_on": partial.exists() or makes.exists(),
            "load_average_before": os.getloadavg()[0],
        }
        start, peak, cpu, began, killed = time.perf_counter(), 0, 0.0, None, False
        environment = os.environ | {"OMP_NUM_THREADS": self._threads}
        with (self.work / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hskd", *command[1:]], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            while process.poll() is None:
                peak = max(peak, anonymous_bytes_of(process.pid))
                cpu = max(cpu, cpu_seconds_of(process.pid))
                if began is None and not step["went_on"] and (partial.exists() or makes.exists()):
                    began = time.perf_counter() - start
                if kill():
                    killed = True
                    process.kill()
                    process.wait()
                    break
                time.sleep(SAMPLE_SECONDS)
        if process.returncode and not killed:
            raise SystemExit(f"{self.work / f'{name}.log'}: {command[1]} failed with code {process.returncode}")
        step |= {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": cpu,
            "start_up_seconds": began,
            "killed": killed,
            "peak_anonymous_bytes": peak,
            "load_average_after": os.getloadavg()[0],
        }
        self.done[name] = step
        write_json(self._file, self.done)
        print(f"  {step['seconds']:.0f} s, peak {format_bytes(peak)}", flush=True)
        return step


def anonymous_bytes_of(pid: int) -> int:
    """Return the memory of a process without mapped files (``RssAnon``), in bytes; 0 after its end."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds that a process has used; 0 after its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class HalfWay:
    """Tells when an extraction into ``folder`` has written half its shards and is in the middle of the next."""

    def __init__(self, folder: Path, shards: int) -> None:
        self._partial = folder.with_name(folder.name + ".partial")
        self._half = max(shards // 2, 1)
        self._since: float | None = None

    def __call__(self) -> bool:
        """Return whether the extraction has reached that point."""
        if self._since is None and len(list(self._partial.glob("shard-*"))) >= self._half:
            self._since = time.perf_counter()
        return self._since is not None and time.perf_counter() - self._since > INTO_THE_SHARD


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all unfinished steps, and return the figures."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    steps = Steps(work, options.threads)
    spec = HSKSpec.parse(options.spec)
    teacher, student, superset, store, trial = (
        work / name for name in ("teacher", "student", "superset", "store", "trial")
    )
    task = ["--task", "sst2", "--data", options.data, "--work", work]
    some = ["--train-examples", options.teacher_examples]
    machine = ["--threads", options.threads]
    steps.run(
        "teacher", "teacher", *task, *some, *machine, "--epochs", 1, "--lr", "5e-5", "--out", teacher, makes=teacher
    )
    steps.run(
        "student",
        *("student", *task, *some, *machine, "--teacher", teacher, "--layers", STUDENT_LAYERS, "--out", student),
        makes=student,
    )
    predicted = _predict(options, spec, teacher)
    extract = ["store", "extract", *task, *machine, "--teacher", teacher, "--out", superset]
    extract += ["--spec", options.spec, "--student-layers", STUDENT_LAYERS]
    shards = -(-predicted.superset_bytes // SHARD_BYTES)
    killed = steps.run("extract-killed", *extract, makes=superset, kill=HalfWay(superset, shards))
    if killed["killed"] and "whole_shards" not in killed:
        partial = superset.with_name(superset.name + ".partial")
        killed["whole_shards"] = len(list(partial.glob("shard-*")))
        write_json(work / "steps.json", steps.done)
    steps.run("extract-resumed", *extract, makes=superset)
    steps.run(
        "derive",
        *("store", "derive", superset, "--spec", options.spec, "--student-layers", STUDENT_LAYERS, "--out", store),
        makes=store,
    )
    steps.run(
        "distill",
        *("distill", *task, *machine, "--student", student, "--store", store, "--out", trial),
        *("--hsk-epochs", 1, "--prediction-epochs", 1, "--hsk-lr", "8e-4", "--prediction-lr", "2e-4"),
        makes=trial,
    )
    return _figures(options, steps, predicted, superset, store, trial)


def _predict(options: argparse.Namespace, spec: HSKSpec, teacher: Path) -> StoreSize:
    data = load_task("sst2", options.data)
    loaded = Teacher.load(str(teacher), data.task)
    train = tokenize(data, loaded.tokenizer, options.work / "tokens")["train"]
    target = data.task.head.target()
    return size_of(spec, loaded.shape(STUDENT_LAYERS), train.lengths, train.max_length, target)


def _figures(
    options: argparse.Namespace, steps: Steps, predicted: StoreSize, superset: Path, store: Path, trial: Path
) -> dict[str, Any]:
    wide, result = Manifest.read(superset), read_json(trial / "result.json")
    whole = steps.done["extract-killed"].get("whole_shards", 0)
    kept = wide.shards[:whole]
    resumed = steps.done["extract-resumed"]
    left = predicted.tokens - sum(shard.tokens for shard in kept)
    opening = time.perf_counter()
    opened = Store.open(store)
    opening = time.perf_counter() - opening
    return {
        "command": f"python -m hskd.benchmarks.scale --data {options.data} --work {options.work} --spec {options.spec} "
        f"--teacher-examples {options.teacher_examples} --threads {options.threads}",
        "spec": options.spec,
        "examples": predicted.examples,
        "tokens": predicted.tokens,
        "mean_tokens": predicted.tokens / predicted.examples,
        "fraction": predicted.fraction,
        "superset": _on_disk(superset, predicted.superset_bytes),
        "derived": _on_disk(store, predicted.derived_bytes) | {"open_seconds": opening, "opened_examples": len(opened)},
        "kill": {
            "killed_after_seconds": steps.done["extract-killed"]["seconds"],
            "whole_shards": whole,
            "of_shards": len(wide.shards),
            "kept_examples": sum(shard.examples for shard in kept),
            "kept_bytes": sum(shard.bytes for shard in kept),
            "resumed_seconds": resumed["seconds"],
            "resumed_cpu_seconds": resumed["cpu_seconds"],
            "computed_tokens_after": left,
            "extract_tokens_per_second": left / resumed["seconds"],
            "extract_tokens_per_cpu_second": left / resumed["cpu_seconds"],
        },
        "hsk_epoch": result["stages"]["hsk"]
        | {
            "tokens_per_second": predicted.tokens / result["stages"]["hsk"]["seconds"],
            "peak_anonymous_bytes": steps.done["distill"]["peak_anonymous_bytes"],
            "cpu_seconds_of_both_epochs": steps.done["distill"]["cpu_seconds"],
        },
        "prediction_epoch": result["stages"]["prediction"],
        "dev": result["metrics"]["dev"],
        "teacher_dev": read_json(options.work / "teacher" / "metrics.json")["metrics"]["dev"],
        "dtype": result["dtype"],
        "threads": result["threads"],
        "steps": steps.done,
        "made_by": provenance(),
    }


def _on_disk(folder: Path, predicted: int) -> dict[str, Any]:
    manifest = Manifest.read(folder)
    return {
        "predicted_bytes": predicted,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        "manifest_bytes": (folder / MANIFEST).stat().st_size,
        "bytes_per_example": manifest.bytes / manifest.examples,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("what", "figure", title=f"SST-2, {figures['spec']}, {figures['dtype']}, {figures['threads']} thread")
    kill, epoch = figures["kill"], figures["hsk_epoch"]
    rows = {
        "sentences": f"{figures['examples']:,}",
        "real tokens": f"{figures['tokens']:,} ({figures['mean_tokens']:.2f} a sentence)",
        "killed after": f"{kill['killed_after_seconds']:.0f} s: {kill['whole_shards']} of {kill['of_shards']} shards, "
        f"{kill['kept_examples']:,} sentences kept",
        "rest of the extraction": f"{kill['resumed_seconds']:.0f} s; {kill['extract_tokens_per_second']:,.0f} tokens a "
        f"second, {kill['extract_tokens_per_cpu_second']:,.0f} a second of CPU",
        "derive": f"{figures['steps']['derive']['seconds']:.0f} s",
        "HSK epoch": f"{epoch['seconds']:.0f} s, {epoch['tokens_per_second']:,.0f} tokens a second; with the "
        f"prediction epoch and all else {epoch['cpu_seconds_of_both_epochs']:.0f} s of CPU",
        "peak RssAnon, distill": format_bytes(epoch["peak_anonymous_bytes"]),
        "dev accuracy": f"{100 * figures['dev']['score']:.1f} %, teacher {100 * figures['teacher_dev']['score']:.1f} %",
    }
    for kind in ("superset", "derived"):
        size = figures[kind]
        rows[kind] = (
            f"{size['bytes']:,} bytes in {size['shards']} shards ({format_bytes(size['bytes'])}); predicted "
            f"{size['predicted_bytes']:,}; manifest {size['manifest_bytes']:,}"
        )
    for name, text in rows.items():
        table.add_row(name, text)
    tables(width=140).print(table)


def main() -> None:
    """Run the steps, write the JSON file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of SST-2's official files")
    parser.add_argument("--work", type=Path, default=Path("work/scale"))
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    parser.add_argument("--spec", default="1l_10t_0.1w")
    parser.add_argument("--teacher-examples", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    figures = run(options)
    out = options.out / f"{slug(resolve_device())}.json"
    write_json(out, figures)
    show(figures)
    print(out)


if __name__ == "__main__":
    main()
