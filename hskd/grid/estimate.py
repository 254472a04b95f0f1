"""What a grid will take: disk exactly, time from a short calibration, seeds from the spread of what is done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from hskd.amount import HSKAmount, measure
from hskd.grid.config import TrialConfig
from hskd.grid.run import Progress
from hskd.grid.spec import GridSpec
from hskd.grid.study import Study
from hskd.results import load
from hskd.runtime import autocast, set_threads
from hskd.spec import HSKSpec, Shape
from hskd.store.layout import total_bytes
from hskd.tasks import TokenizedSplit, bucketed_batches, model_inputs
from hskd.teachers.loading import resolve_model
from hskd.watch import Watcher

CALIBRATION_STEPS = 6
POWER = 0.8
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """What ``hskd grid plan`` says.

    Attributes:
        rows: a line for each arm and spec: arm, spec, share, bytes, done.
        store_bytes: superset and derived stores together.
        free_bytes: on the disk of the work folder.
        time: for what is not done, in words.
        seeds: needed to see the difference asked for, in words.
    """

    rows: list[tuple[str, ...]]
    store_bytes: int
    free_bytes: int
    time: str
    seeds: str


def estimate(
    grid: GridSpec,
    trials: Sequence[TrialConfig],
    progress: Progress,
    out: Path,
    work: Path,
    difference: float,
    watcher: Watcher,
) -> Estimate:
    """Plan a grid without running it; ``difference`` is a share of 1.

    Raises:
        HskdError: task or model cannot be read, or a spec names a layer that there is not.
    """
    study = Study(trials, work, watcher)
    encoder = AutoConfig.from_pretrained(resolve_model(trials[0].teacher.model))
    done = {config.id for config in progress.done}
    rows: list[tuple[str, ...]] = []
    for config in trials:
        spec = config.spec
        amount = _amount(spec, config, study, study.train, encoder) if spec else None
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
                    f"{100 * amount.fraction:.3g} %" if amount else "0",
                    f"{amount.bytes_per_example:,.0f}" if amount else "",
                    f"{len(done.intersection(same))}/{len(same)}",
                )
            )
    existing = work
    while not existing.exists():
        existing = existing.parent if existing != existing.parent else Path()
    return Estimate(
        rows=rows,
        store_bytes=_store_bytes(study, encoder),
        free_bytes=shutil.disk_usage(existing).free,
        time=_time(study, progress, encoder, watcher),
        seeds=_seeds(out, difference) if progress.done else "unknown: no pilot yet; run the grid with --seeds 3 first",
    )


def _amount(
    spec: HSKSpec, trial: TrialConfig, study: Study, examples: TokenizedSplit, encoder: PretrainedConfig
) -> HSKAmount:
    sizes = (trial.student.layers, encoder.num_hidden_layers, encoder.hidden_size)
    shape = Shape(*sizes, study.task.num_labels, encoder.vocab_size)
    return measure(spec, examples.tokens, shape, examples.max_length)


def _store_bytes(study: Study, encoder: PretrainedConfig) -> int:
    """Bytes of all stores, of training and of held-out examples: supersets and what is derived from them."""
    total = 0.0
    stored = [(study.held_out_examples, [trial.spec and trial.spec.full() for trial in study.trials])]
    if not study.trials[0].online:
        stored.append((study.train, [trial.spec for trial in study.trials]))
    for examples, specs in stored:
        superset = study.union(specs, encoder)
        tokens = int(examples.offsets[-1])
        arrays = superset.arrays(encoder.hidden_size, study.task.num_labels, examples.max_length, encoder.vocab_size)
        derived = {
            (spec.canonical, trial.student.layers): _amount(spec, trial, study, examples, encoder).bytes_per_example
            for spec, trial in zip(specs, study.trials, strict=True)
            if spec is not None
        }
        total += total_bytes(arrays, len(examples), tokens, tokens) + len(examples) * sum(derived.values())
    return round(total)


def _time(study: Study, progress: Progress, encoder: PretrainedConfig, watcher: Watcher) -> str:
    if not progress.pending:
        return "nothing to do"
    watcher.begin("calibration", CALIBRATION_STEPS)
    config = progress.pending[0]
    set_threads(config.threads)
    student = AutoModelForSequenceClassification.from_config(
        config.student.config(encoder, study.task.num_labels), dtype=torch.float32
    ).to(study.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    batches = bucketed_batches(study.train.lengths, config.settings.batch_size, 0, 0)
    seconds = []
    for batch in batches[:CALIBRATION_STEPS]:
        inputs = model_inputs(study.train.collate(batch), study.device)
        start = time.perf_counter()
        with autocast(config.dtype, study.device):
            loss = student(**inputs).logits.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        watcher.advance()
    steps = sum(sum(trial.settings.epochs(study.task.hsk_epochs)) for trial in progress.pending) * len(batches)
    total = steps * float(np.median(seconds))
    return (
        f"about {total / 60:.0f} minutes for {len(progress.pending)} trials one after the other, "
        "beside teacher and store (divide by --workers)"
    )


def _seeds(out: Path, difference: float) -> str:
    table = load(out)
    fulls = table[table["arm"] == "full"].groupby(["student", "seed"])["score"].mean().rename("full")
    specs = table[table["arm"] == "spec"].join(fulls, on=["student", "seed"], how="inner")
    gaps = (specs["score"] - specs["full"]).groupby([specs["student"], specs["spec"]])
    spread = float(gaps.std().mean())  # a spec with one seed has none, and is skipped
    if not np.isfinite(spread):
        return "unknown: the spread between paired seeds needs two or more; run the grid with --seeds 3 first"
    return (
        f"{seeds_needed(spread, difference)} to see {100 * difference:.2g} points between a spec and full HSK "
        f"({100 * CONFIDENCE:.0f} % confidence, {100 * POWER:.0f} % power; paired spread {100 * spread:.2f} points, "
        f"from {specs['seed'].nunique()} seeds)"
    )


def seeds_needed(spread: float, difference: float) -> int:
    """Seeds at which a two-sided paired t-test sees ``difference`` with the power wanted.

    Args:
        spread: standard deviation of the difference between paired trials.
        difference: to be seen, in the same unit.
    """
    for n in range(2, 10_000):
        noncentrality = difference / spread * n**0.5 if spread else float("inf")
        critical = stats.t.ppf(1 - (1 - CONFIDENCE) / 2, n - 1)
        if spread == 0 or stats.nct.sf(critical, n - 1, noncentrality) >= POWER:
            return n
    return 10_000
