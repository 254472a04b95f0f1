"""The command ``hskd bench``: run the suites on a device, and make tables and figures of the times."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hskd.benchmarks.cases import SUITES
from hskd.benchmarks.shapes import SIZES, chosen_sizes
from hskd.errors import HskdError
from hskd.io import read_json, write_json

if TYPE_CHECKING:
    import torch


def bench(
    device: Annotated[
        Literal["cpu", "cuda", "mps", "all"], typer.Option(help="Device; all: the CPU, then every available one.")
    ] = "cpu",
    quick: Annotated[bool, typer.Option(help="Small batches and few rounds: a first look, in minutes.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Run only this suite; repeatable. One of {', '.join(SUITES)}.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Length setting of the training suite; repeatable. One of {', '.join(SIZES['full'].lengths)} "
            "(default: all)."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Examples in a batch (default: 32, the paper's; 8 with --quick).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results, with a subfolder per device.")] = Path(
        "results/bench"
    ),
    work: Annotated[Path, typer.Option(help="Folder of finished groups, which a second run does not repeat.")] = Path(
        "work"
    ),
    fresh: Annotated[bool, typer.Option(help="Measure finished groups again.")] = False,
    tables: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Measure nothing, and only make tables and figures of the timing files in this folder. They may be "
            "copies of files that an interrupted run on any machine left in work/bench.",
        ),
    ] = None,
) -> None:
    """Time training, extraction and stores on this machine, with random weights in the paper's shapes.

    Close other programs first. An interrupted run resumes if code and settings are the same.
    """
    from hskd.analysis.report.timing import write_timing_report

    if tables is not None:
        print(write_timing_report(tables))
        return
    if find_spec("pytest_benchmark") is None:
        raise HskdError("hskd bench needs pytest-benchmark, which is not installed: pip install 'hskd[bench]'")
    import torch

    unknown = sorted(set(only or ()) - set(SUITES))
    if unknown:
        raise HskdError(f"--only {unknown[0]}: no such suite; there are {', '.join(SUITES)}.")
    sizes = "quick" if quick else "full"
    chosen_sizes(sizes, lengths, batch)  # raises for unknown settings before anything runs
    for name in devices(device):
        folder = out / (slug(torch.device(name)) + ("-quick" if quick else "") + (f"-batch-{batch}" if batch else ""))
        run_suites(only or list(SUITES), name, sizes, folder, work / "bench", fresh, lengths=lengths, batch=batch)
        print(write_timing_report(folder))


def devices(asked: str) -> list[str]:
    """Return the devices that ``asked`` stands for.

    Raises:
        HskdError: this machine has no such device.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "all":
        return [name for name, available in there.items() if available]
    if not there[asked]:
        raise HskdError(f"--device {asked}: this machine, or this build of torch, has none; use --device cpu.")
    return [asked]


def slug(device: torch.device) -> str:
    """Return the name of a device's folder: lower case, words joined by dashes."""
    from hskd.benchmarks.driver import device_name

    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def run_suites(
    suites: Sequence[str],
    device: str,
    sizes: str,
    folder: Path,
    cases: Path,
    fresh: bool,
    *,
    lengths: Sequence[str] | None = None,
    batch: int | None = None,
) -> None:
    """Run suites in a pytest process of their own, and write a pytest-benchmark file for each into ``folder``.

    Args:
        suites: names of the suites.
        device: cpu, cuda or mps.
        sizes: full, quick or tiny.
        folder: folder of the files.
        cases: folder of finished groups.
        fresh: measure finished groups again.
        lengths: length settings of the training suite; None for those of ``sizes``.
        batch: examples in a batch; None for that of ``sizes``.

    Raises:
        HskdError: a benchmark failed. No file is written, and ``cases`` keeps the finished groups.
    """
    tests = [f"{Path(__file__).with_name('bench.py')}::test_{suite}" for suite in suites]
    options = ["--sizes", sizes, "--device", device, "--cases", str(cases.resolve()), *(["--fresh"] if fresh else [])]
    options += [option for setting in lengths or () for option in ("--lengths", setting)]
    options += ["--batch", str(batch)] if batch else []
    quiet = ["-x", "-q", "-s", "--no-header", "--no-summary", "--benchmark-quiet", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as temporary:
        timings = Path(temporary) / "timings.json"
        command = [sys.executable, "-m", "pytest", *tests, *options, *quiet, f"--benchmark-json={timings}"]
        # These options replace the pytest configuration of the folder that this runs in.
        ran = subprocess.run([*command, "-o", "addopts=", "--import-mode=importlib"], check=False, stdout=sys.stderr)
        if ran.returncode:
            raise HskdError("a benchmark failed, see above. Run the same command again: it keeps finished groups.")
        content = read_json(timings)
    for suite in suites:
        suite_timings = [case for case in content["benchmarks"] if case["extra_info"]["suite"] == suite]
        # The files are committed. With one time per line, their thousands of times would take 50 % more space.
        write_json(folder / f"{suite}.json", content | {"benchmarks": suite_timings}, indent=None)
