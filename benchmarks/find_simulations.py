"""Measure how well `hskd find` searches, on simulated students: ``python -m hskd.benchmarks.find_simulations``.

Each run draws a world from a surface that is fitted to one of our own grids (:mod:`hskd.benchmarks.surfaces`). A method
then searches that world for the least sufficient spec. The table has a row per method: how often its answer loses more
than the tolerance, how often its answer is within a factor of 2 in bytes of the true minimum, and its trials.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy import special

from hskd.benchmarks.surfaces import SHAPE, Surface, World, candidates_of, drawn, flat, joint_surfaces
from hskd.minimum.search import Outcome, Scored, Search, SearchSettings, run
from hskd.minimum.space import Candidate, default_space

TOLERANCES = (0.005, 0.01)
GRID_SEEDS = 10
"""Seeds of a fixed grid: as many as our joint grids have where small differences had to be resolved."""
LADDERS = (16, 64)
"""Sizes of fixed grids, whose specs are at even steps through the space, by bytes."""
DESIGN = (
    *(f"1l_{k}t_{w}w" for k in (1, 3, 8) for w in (0.03, 0.1, 0.3)),
    *(f"2l_{k}t_{w}w" for k in (3, 8) for w in (0.1, 0.3)),
    *("2l_8t_all", "2l_all_0.3w", "3l_all_0.3w"),
)
"""A fixed grid as a person designs it: that of ``mr-joint``, with the amounts of the space."""
FACTOR = 2.0
RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Run:
    """The result of a method in a world.

    Attributes:
        ended: enough, no gap, or something else.
        trials: number of trials that it ran.
        loss: true loss of its answer; NaN where there is no answer.
        is_false: whether that loss is more than the tolerance.
        ratio: bytes of its answer over those of the true minimum; NaN where either is missing.
    """

    ended: str
    trials: int
    loss: float
    is_false: bool
    ratio: float


def found_by_search(world: World, chosen: Sequence[Candidate], full_bytes: float, settings: SearchSettings) -> Run:
    """Run a search like that of ``hskd find``."""
    search = Search(chosen, full_bytes, settings)

    def evaluate(batch: object) -> list[Scored | None]:
        scores = [world.score(one.arm, one.candidate, one.seed) for one in batch.trials]  # type: ignore[attr-defined]
        return [Scored(score, score) for score in scores]

    outcome: Outcome = run(search, evaluate)
    return _run(outcome.verdict, outcome.known.trials, outcome.answer, world, chosen, settings.tolerance)


def found_by_grid(world: World, chosen: Sequence[Candidate], specs: int | tuple[str, ...], tolerance: float) -> Run:
    """Run a fixed grid, judged as in :func:`hskd.analysis.stats.sufficiency.minimum_sufficient`."""
    if isinstance(specs, int):
        indices = sorted({round(i * (len(chosen) - 1) / (specs - 1)) for i in range(specs)})
    else:
        names = {one.name: index for index, one in enumerate(chosen)}
        indices = sorted(names[name] for name in specs if name in names)
    seeds = range(GRID_SEEDS)
    full = np.array([world.score("full", None, seed) for seed in seeds])
    none = np.array([world.score("none", None, seed) for seed in seeds])
    trials = GRID_SEEDS * (len(indices) + 2)
    critical = special.stdtrit(GRID_SEEDS - 1, 0.95)

    def bound(values: np.ndarray) -> float:
        return float(values.mean() + critical * values.std(ddof=1) / math.sqrt(GRID_SEEDS))

    if bound(none - full) > -tolerance:
        return _run("no gap", trials, None, world, chosen, tolerance)
    answer = None
    for index in reversed(indices):
        scores = np.array([world.score("spec", index, seed) for seed in seeds])
        if not bound(full - scores) < tolerance:
            break
        answer = index
    return _run("enough" if answer is not None else "undetermined", trials, answer, world, chosen, tolerance)


def _run(
    ended: str, trials: int, answer: int | None, world: World, chosen: Sequence[Candidate], tolerance: float
) -> Run:
    if answer is None:
        return Run(ended, trials, math.nan, False, math.nan)
    enough = [one.bytes_per_example for one, loss in zip(chosen, world.losses, strict=True) if loss <= tolerance]
    least = min(enough) if enough else math.nan
    loss = float(world.losses[answer])
    return Run(ended, trials, loss, loss > tolerance, chosen[answer].bytes_per_example / least)


Method = SearchSettings | int | tuple[str, ...]
METHODS: dict[str, Method] = {
    "hskd find": SearchSettings(),
    "hskd find --budget-trials 120": SearchSettings(budget=120),
    "random screening": SearchSettings(sampler="random"),
    "grid of 16 specs, as mr-joint": DESIGN,
    **{f"grid of {size} specs, even steps": size for size in LADDERS},
}


@cache
def _surfaces() -> list[Surface]:
    return joint_surfaces(RESULTS)


@cache
def _candidates(tokens: float) -> tuple[list[Candidate], float]:
    return candidates_of(default_space(SHAPE, tokens), tokens)


def simulate(method: Method, make: Callable[..., World], tolerance: float, seed: int) -> Run:
    """Return one run. Successive seeds use the surfaces in turn."""
    surface = _surfaces()[seed % len(_surfaces())]
    chosen, full_bytes = _candidates(surface.tokens)
    world = make(surface, chosen, seed)
    if not isinstance(method, SearchSettings):
        return found_by_grid(world, chosen, method, tolerance)
    return found_by_search(world, chosen, full_bytes, replace(method, seed=seed, tolerance=tolerance))


def simulations(
    method: Method,
    make: Callable[..., World],
    tolerance: float,
    runs: int,
    workers: int = 1,
    first: int = 0,
) -> list[Run]:
    """Return ``runs`` runs, in worker processes if ``workers`` is above 1."""
    call = partial(simulate, method, make, tolerance)
    if workers == 1:
        return [call(seed) for seed in range(first, first + runs)]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(call, range(first, first + runs), chunksize=10))


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Return shares of runs in per cent, and medians."""
    ratios = np.array([one.ratio for one in runs])
    answered = ratios[~np.isnan(ratios)]
    return {
        "false claims, %": 100 * float(np.mean([one.is_false for one in runs])),
        "answered, %": 100 * len(answered) / len(runs),
        "within a factor 2, %": 100 * float(np.mean(ratios <= FACTOR)),
        "median bytes / minimum": float(np.median(answered)) if len(answered) else math.nan,
        "no gap, %": 100 * float(np.mean([one.ended == "no gap" for one in runs])),
        "median trials": float(np.median([one.trials for one in runs])),
    }


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=600, help="Runs of each method (default: 600).")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    for title, make, tolerance in (
        *((f"Worlds like our grids, {100 * one:g} points may be lost", drawn, one) for one in TOLERANCES),
        ("Flat worlds: none, full and every spec have the same mean", flat, TOLERANCES[0]),
    ):
        print(f"\n{title}, {arguments.runs} runs each\n", flush=True)
        for i, (name, method) in enumerate(METHODS.items()):
            values = summary(simulations(method, make, tolerance, arguments.runs, arguments.workers))
            if i == 0:
                print("| method | " + " | ".join(values) + " |\n|---" + "|---" * len(values) + "|")
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
