"""Measure how long the command line takes to start, as ratios to ``import typer`` in one run.

``python -m hskd.benchmarks.startup`` prints a table of medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5
LIMIT = 4.0
"""Longest time of help, completion and usage errors, as a multiple of ``python -c "import typer"``."""

# The same code as in the script that pip installs.
_HSKD = "import sys; sys.argv[0] = 'hskd'; from hskd.cli.app import main; main()"
BASELINE = 'python -c "import typer"'
COMMANDS: dict[str, list[str]] = {
    "hskd --help": ["--help"],
    "hskd grid --help": ["grid", "--help"],
    "hskd grid run --help": ["grid", "run", "--help"],
    "hskd distill --help": ["distill", "--help"],
    "hskd no-such-command": ["no-such-command"],
    "hskd grid run (no grid)": ["grid", "run"],
    "hskd distill (no student)": ["distill"],
    "hskd teacher --no-such-option": ["teacher", "--no-such-option"],
    "hskd store extract (no teacher)": ["store", "extract"],
    "hskd student --kind nonsense": ["student", "--teacher", "t", "--out", "s", "--kind", "nonsense"],
    "hskd teacher --dtype nonsense": ["teacher", "--out", "t", "--dtype", "nonsense"],
}
_COMPLETION = {"_HSKD_COMPLETE": "complete_bash", "COMP_WORDS": "hskd grid r", "COMP_CWORD": "2"}


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Return the wall-clock time of a process. It may cache compiled modules, as an installation does."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, env=variables | (environment or {}), capture_output=True, check=False)
    return time.perf_counter() - start


def ratios(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median time of each command over that of ``import typer``. Commands take turns in every round.

    An extra round at the start compiles the modules and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in (BASELINE, *COMMANDS, "completion")}
    for _ in range(rounds + 1):
        times[BASELINE].append(seconds([sys.executable, "-c", "import typer"]))
        times["completion"].append(seconds([sys.executable, "-c", _HSKD], _COMPLETION))
        for name, arguments in COMMANDS.items():
            times[name].append(seconds([sys.executable, "-c", _HSKD, *arguments]))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{BASELINE}: {medians[BASELINE]:.3f} s, median of {rounds}")
    return {name: median / medians[BASELINE] for name, median in medians.items() if name != BASELINE}


def main() -> None:
    """Print the ratios, and exit with 1 if one is above the limit."""
    measured = ratios()
    for name, ratio in measured.items():
        print(f"{name:35} {ratio:5.1f}x" + ("" if ratio <= LIMIT else f"  above {LIMIT:g}"))
    sys.exit(any(ratio > LIMIT for ratio in measured.values()))


if __name__ == "__main__":
    main()
