"""Plan of a grid: exact disk space, time from a short calibration, seeds from the spread of finished trials."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig

from hskd.grid.run import GridStatus
from hskd.grid.spec import GridSpec
from hskd.progress import Progress
from hskd.results import load
from hskd.runtime import autocast, set_threads
from hskd.spec import HSKSpec, Shape
from hskd.statistics import CONFIDENCE, POWER, seeds_needed
from hskd.store.amount import HSKAmount, measure
from hskd.store_format.layout import total_bytes
from hskd.tasks import TokenizedSplit, bucketed_batches, head_inputs, model_inputs
from hskd.teachers.loading import load_config
from hskd.trials.config import TrialConfig
from hskd.trials.workspace import Workspace

CALIBRATION_STEPS = 6


@dataclass(frozen=True)
class GridPlan:
    """The output of ``hskd grid plan``.

    Attributes:
        rows: a row for each arm and spec: arm, spec, bytes per example, their share of full HSK's bytes in fp16, the
            share of its values, trials done.
        store_bytes: superset and derived stores together.
        free_bytes: free space on the disk of the work folder.
        time: time for the pending trials, in words.
        seeds: number of seeds needed to detect the requested difference, in words.
    """

    rows: list[tuple[str, ...]]
    store_bytes: int
    free_bytes: int
    time: str
    seeds: str


def estimate(
    grid: GridSpec,
    trials: Sequence[TrialConfig],
    status: GridStatus,
    out: Path,
    work: Path,
    difference: float,
    progress: Progress,
) -> GridPlan:
    """Plan a grid without running it; ``difference`` is a fraction, 0.01 for one point.

    Raises:
        HskdError: task or model cannot be read, or a spec names a layer that does not exist.
    """
    workspace = Workspace(work, trials)
    encoder = load_config(workspace.shared.teacher_plan.model)
    done = {config.id for config in status.done}

    def full_bytes(config: TrialConfig) -> float:
        return amount_of(HSKSpec(), config, workspace, workspace.train, encoder).bytes_per_example

    rows: list[tuple[str, ...]] = []
    for config in trials:
        spec = config.spec
        amount = amount_of(spec, config, workspace, workspace.train, encoder) if spec else None
        if config.settings.seed == grid.seed_list[0]:
            same = [
                other.id
                for other in trials
                if (other.spec, other.settings.arm, other.student) == (spec, config.settings.arm, config.student)
            ]
            rows.append(
                (
                    config.settings.arm,
                    spec.label if spec else "",
                    f"{amount.bytes_per_example:,.0f}" if amount else "0",
                    f"{100 * amount.bytes_per_example / full_bytes(config):.3g} %" if amount else "0",
                    f"{100 * amount.fraction:.3g} %" if amount else "0",
                    f"{len(done.intersection(same))}/{len(same)}",
                )
            )
    existing = work
    while not existing.exists():
        existing = existing.parent if existing != existing.parent else Path()
    return GridPlan(
        rows=rows,
        store_bytes=_store_bytes(workspace, encoder),
        free_bytes=shutil.disk_usage(existing).free,
        time=_time(workspace, status, encoder, progress),
        seeds=_seeds(out, difference) if status.done else "unknown: no pilot yet; run the grid with --seeds 3 first",
    )


def amount_of(
    spec: HSKSpec, trial: TrialConfig, workspace: Workspace, examples: TokenizedSplit, encoder: PretrainedConfig
) -> HSKAmount:
    """Return how much HSK a spec keeps of ``examples`` for a trial's student; ``encoder`` is the teacher's config."""
    shape = Shape.of(encoder, trial.student.layers)
    target, every = workspace.task.head.target(), None if examples.aligned is None else len(examples.input_ids)
    return measure(spec, examples.with_targets, shape, examples.max_length, target, aligned_tokens=every)


def _store_bytes(workspace: Workspace, encoder: PretrainedConfig) -> int:
    """Return the bytes of all stores of training and held-out examples: supersets, and the stores derived from them."""
    total = 0.0
    shape = Shape.of(encoder, workspace.trials[0].student.layers)
    stored = [(workspace.held_out_examples, [trial.spec and trial.spec.full() for trial in workspace.trials])]
    if not workspace.shared.online:
        stored.append((workspace.train, [trial.spec for trial in workspace.trials]))
    for examples, specs in stored:
        superset = workspace.union(specs, encoder)
        tokens = int(examples.offsets[-1])
        target, aligned = workspace.task.head.target(), examples.aligned is not None
        arrays = superset.arrays(shape, target, examples.max_length, aligned)
        derived = {
            (spec.canonical, trial.student.layers): amount_of(
                spec, trial, workspace, examples, encoder
            ).bytes_per_example
            for spec, trial in zip(specs, workspace.trials, strict=True)
            if spec is not None
        }
        kept = len(examples.with_targets.input_ids)
        total += total_bytes(arrays, len(examples), tokens, kept) + len(examples) * sum(derived.values())
    return round(total)


def _time(workspace: Workspace, status: GridStatus, encoder: PretrainedConfig, progress: Progress) -> str:
    if not status.pending:
        return "nothing to do"
    progress.begin("calibration", CALIBRATION_STEPS)
    config = status.pending[0]
    set_threads(config.threads)
    head = workspace.task.head
    student = head.auto_class.from_config(config.student.config(encoder, head), dtype=torch.float32).to(
        workspace.device
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    batches = bucketed_batches(workspace.train.lengths, config.settings.batch_size, 0, 0)
    seconds = []
    for batch in batches[:CALIBRATION_STEPS]:
        inputs = head_inputs(workspace.train.collate(batch), workspace.device)
        start = time.perf_counter()
        with autocast(config.dtype, workspace.device):
            loss = head.rows(student(**model_inputs(inputs)), inputs).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        progress.advance()
    steps = sum(sum(trial.settings.epochs(workspace.task.hsk_epochs)) for trial in status.pending) * len(batches)
    total = steps * float(np.median(seconds))
    return (
        f"about {total / 60:.0f} minutes for {len(status.pending)} trials one after the other, "
        "not counting teacher and store (divide by --workers)"
    )


def _seeds(out: Path, difference: float) -> str:
    table = load(out)
    fulls = table[table["arm"] == "full"].groupby(["student", "seed"])["score"].mean().rename("full")
    specs = table[table["arm"] == "spec"].join(fulls, on=["student", "seed"], how="inner")
    gaps = (specs["score"] - specs["full"]).groupby([specs["student"], specs["spec"]])
    spread = float(gaps.std().mean())  # the spread of a spec with one seed is NaN, which mean() skips
    if not np.isfinite(spread):
        return "unknown: the spread between paired seeds needs two or more; run the grid with --seeds 3 first"
    needed = seeds_needed(spread, difference, sides=2)
    return (
        f"{needed or 'more than 10,000'} to see {100 * difference:.2g} points between a spec and full HSK "
        f"({100 * CONFIDENCE:.0f} % confidence, {100 * POWER:.0f} % power; paired spread {100 * spread:.2f} points, "
        f"from {specs['seed'].nunique()} seeds)"
    )
