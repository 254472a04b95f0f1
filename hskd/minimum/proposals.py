"""Proposals for screening: an optimiser proposes candidates, given those tried so far."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from hskd.minimum.space import Axis, Candidate
from hskd.minimum.surrogate import columns

Sampler = Literal["tpe", "random"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "random")
FIRST = 4
"""Number of candidates that are spread over the space before the optimiser starts."""


def propose(
    sampler: Sampler,
    chosen: Sequence[Candidate],
    axes: Sequence[Axis],
    points: np.ndarray,
    values: Mapping[int, float],
    count: int,
    seed: int,
) -> list[int]:
    """Return untried candidates to try next.

    Args:
        sampler: ``tpe`` (tree-structured Parzen estimators, of Optuna) or ``random``.
        chosen: the candidates.
        axes: the fields in which they differ.
        points: their coordinates, from :func:`~hskd.minimum.surrogate.features`.
        values: for each tried candidate, the value to minimise.
        count: number of candidates; fewer are returned if no more are left.
        seed: seed of the proposals, which also depend on all other arguments.
    """
    untried = [index for index in range(len(chosen)) if index not in values]
    count = min(count, len(untried))
    if count <= 0:
        return []
    rng = np.random.default_rng(seed)
    if sampler == "random":
        return [int(index) for index in rng.choice(untried, count, replace=False)]
    if len(values) < FIRST:
        return _spread(chosen, points, list(values), count)
    return _by_tpe(chosen, axes, points, values, count, seed)


def _spread(chosen: Sequence[Candidate], points: np.ndarray, tried: list[int], count: int) -> list[int]:
    """Return candidates at even steps in size: at each step, the nearby candidate farthest from all others."""
    picked: list[int] = []
    for step in range(count):
        middle = (step + 1) / (count + 1) * (len(chosen) - 1)
        reach = max(1, len(chosen) // (2 * (count + 1)))
        near = [i for i in range(len(chosen)) if abs(i - middle) <= reach and i not in tried and i not in picked]
        near = near or [i for i in range(len(chosen)) if i not in tried and i not in picked]
        others = points[[*tried, *picked]]
        if len(others):
            distance = ((points[near][:, None, :] - others[None, :, :]) ** 2).sum(-1).min(1)
            picked.append(near[int(np.argmax(distance))])
        else:
            picked.append(near[int(np.argmin([abs(i - middle) for i in near]))])
    return picked


def _by_tpe(
    chosen: Sequence[Candidate],
    axes: Sequence[Axis],
    points: np.ndarray,
    values: Mapping[int, float],
    count: int,
    seed: int,
) -> list[int]:
    """Return proposals of Optuna, each replaced by the nearest untried candidate, as not every combination exists.

    The Optuna study is rebuilt from the known results each time, so that only results need to be kept.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    places = [tuple(axis.place(one.fields) for axis in axes) for one in chosen]
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        axis.name: optuna.distributions.IntDistribution(0, len(axis.values) - 1)
        if axis.ordered
        else optuna.distributions.CategoricalDistribution(tuple(range(len(axis.values))))
        for axis in axes
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # of options that have been there for years
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for index, value in sorted(values.items()):
        params = dict(zip(distributions, places[index], strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    picked: list[int] = []
    for _ in range(count):
        trial = study.ask(distributions)
        proposed = columns([tuple(trial.params[axis.name] for axis in axes)], axes)
        distance = ((points - proposed) ** 2).sum(1)
        distance[[*values, *picked]] = np.inf
        picked.append(int(np.argmin(distance)))
    return picked
