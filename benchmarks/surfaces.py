"""Surfaces of losses by amounts, fitted to our own grids, on which searches are simulated.

A surface is a power law in layers, tokens and width, fitted to a joint grid of ``results``. It has the grid's residuals
and its spread between seeds. A draw varies all of these by about the uncertainty of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize

from hskd.minimum.space import Candidate, Space, axes, candidates
from hskd.minimum.surrogate import features, smoothness
from hskd.results import load
from hskd.spec import HSKSpec, Shape

JOINT_GRIDS = ("mr-joint", "mr-joint-wide", "mr-500", "mr-tinybert-joint", "sst2-joint", "sst2-500")
"""Grids of ``results`` in which all dimensions vary together and full is above none."""
EXAMPLES = 2000
SHAPE = Shape(student_layers=3, teacher_layers=6, teacher_width=384, vocab_size=30522)
OWN = 0.0005
"""Standard deviation of a spec's loss that its neighbours do not share. Precisions of one spec differ by about this."""
LEAST_WIDTH = 0.03
"""The width at which the power law is 1."""


@dataclass(frozen=True)
class Surface:
    """Losses against full HSK, and noise; scores are shares of 1.

    Attributes:
        name: of the grid.
        tokens: mean tokens of an example.
        gap: full - none.
        top: loss of one token of one layer with 3 % of its neurons.
        slopes: of layers, tokens and width, in the power law.
        rest: standard deviation of the residuals of the power law.
        noise: standard deviation of a spec's score between seeds.
        none_noise: the same for none.
        gap_error: standard error of the gap.
    """

    name: str
    tokens: float
    gap: float
    top: float
    slopes: tuple[float, float, float]
    rest: float
    noise: float
    none_noise: float
    gap_error: float

    def losses(self, amounts: np.ndarray) -> np.ndarray:
        """Return the losses of specs, ``(specs,)``; ``amounts`` are layers, tokens and width, ``(specs, 3)``."""
        whole = np.array([[SHAPE.student_layers + 1, self.tokens, 1.0]])
        part, rest = _power(amounts, self.slopes), float(_power(whole, self.slopes)[0])
        return self.top * (part - rest) / (1 - rest)


def _power(amounts: np.ndarray, slopes: Sequence[float]) -> np.ndarray:
    scaled = np.log(amounts / np.array([1.0, 1.0, LEAST_WIDTH]))
    powers: np.ndarray = np.exp(-scaled @ np.array(slopes))
    return powers


def fitted(folder: Path) -> Surface:
    """Return the surface of a finished grid."""
    table = load(folder)
    table = table[table["arm"].isin(["none", "full", "spec"])]
    full, none = (table.loc[table["arm"] == arm, "score"] for arm in ("full", "none"))
    specs = table[table["arm"] == "spec"].groupby("spec")
    means, counts = specs["score"].mean(), specs["score"].count()
    losses = (full.mean() - means).to_numpy()
    per_token = table.loc[table["arm"] == "full", "bytes_per_example"].iloc[0]
    tokens = per_token / (2 * SHAPE.teacher_width * (SHAPE.student_layers + 1))
    amounts = np.array([_amounts(HSKSpec.parse(name), tokens) for name in means.index])
    surface = Surface(folder.name, tokens, float(full.mean() - none.mean()), 0.0, (0, 0, 0), 0.0, 0.0, 0.0, 0.0)

    def off(values: np.ndarray) -> np.ndarray:
        trial = _with(surface, values)
        wrong: np.ndarray = (trial.losses(amounts) - losses) * np.sqrt(counts.to_numpy())
        return wrong

    start = [max(float(losses.max()), 1e-3), 0.3, 0.3, 0.3]
    best = optimize.least_squares(off, start, bounds=([0, 0.02, 0.02, 0.02], [0.5, 3, 3, 3]))
    surface = _with(surface, best.x)
    noise = math.sqrt(float((specs["score"].var() * (counts - 1)).sum() / (counts - 1).sum()))
    left = float(np.mean((surface.losses(amounts) - losses) ** 2))
    rest = math.sqrt(max(left - noise**2 * float((1 / counts).mean()), 0.0))
    error = math.sqrt(full.var() / len(full) + none.var() / len(none))
    values = {"rest": rest, "noise": noise, "none_noise": float(none.std()), "gap_error": error}
    return Surface(**{**surface.__dict__, **values})


def _with(surface: Surface, values: np.ndarray) -> Surface:
    top, *slopes = (float(value) for value in values)
    return Surface(**{**surface.__dict__, "top": top, "slopes": tuple(slopes)})


def _amounts(spec: HSKSpec, tokens: float) -> tuple[float, float, float]:
    """Return the layers, tokens and share of the width that a spec keeps."""
    layers = len(spec.layers(SHAPE))
    k, w = getattr(spec.length, "k", 1), getattr(spec.width, "w", 1.0)
    return layers, tokens if k == "all" else min(k, tokens), 1.0 if w == "all" else max(w, 1 / SHAPE.teacher_width)


def candidates_of(space: Space, tokens: float) -> tuple[list[Candidate], float]:
    """Return the candidates of a space with the bytes of their stores, and the bytes of full HSK."""
    size_of = _sizes(tokens)
    return candidates(space, SHAPE, size_of), size_of(HSKSpec())


def _sizes(tokens: float) -> Callable[[HSKSpec], float]:
    import torch

    from hskd.store.amount import amount_of
    from hskd.store_format.layout import ArraySpec

    def size_of(spec: HSKSpec) -> float:
        # The target is that of `mr`: two classes in fp32. Stores of other tasks differ in it.
        k = getattr(spec.length, "k", 1)
        kept = tokens if k == "all" else min(float(k), tokens)
        counts = Counts(EXAMPLES, round(EXAMPLES * tokens), round(EXAMPLES * kept))
        return amount_of(spec, SHAPE, 128, ArraySpec("example", torch.float32, 2), counts).bytes_per_example

    from hskd.store.amount import Counts

    return size_of


@dataclass(frozen=True, eq=False)
class World:
    """One draw: the true loss of each candidate, and the scores of trials.

    Attributes:
        losses: true mean losses against full, ``(candidates,)``.
        gap: true mean of full - none.
        noise: standard deviation between seeds, ``(candidates,)``.
        none_noise: the same for none.
        full_noise: the same for full.
        seed: of the scores.
    """

    losses: np.ndarray
    gap: float
    noise: np.ndarray
    none_noise: float
    full_noise: float
    seed: int

    def score(self, arm: str, candidate: int | None, seed: int) -> float:
        """Return the score of a trial; the same trial always has the same score."""
        place = {"none": 0, "full": 1}.get(arm, 2 + (candidate or 0))
        draw = float(np.random.default_rng((self.seed, place, seed)).normal())
        if arm == "none":
            return 0.8 - self.gap + self.none_noise * draw
        if arm == "full" or candidate is None:
            return 0.8 + self.full_noise * draw
        return 0.8 - float(self.losses[candidate]) + float(self.noise[candidate]) * draw


def drawn(surface: Surface, chosen: Sequence[Candidate], seed: int) -> World:
    """Return a world like a surface, with gap and slopes varied by their errors and each spec by the residuals.

    A codec counts as 1 to 3 times its width in neurons (drawn once). int4 and int2 add a loss of up to 0.1 points.
    """
    rng = np.random.default_rng((seed, 1))
    gap = max(surface.gap + surface.gap_error * float(rng.normal()), 0.2 * surface.gap)
    slopes = np.array(surface.slopes) * np.exp(0.2 * rng.normal(size=3))
    moved = _with(surface, np.array([surface.top * gap / surface.gap, *slopes]))
    codec, coarse = float(np.exp(rng.uniform(0, math.log(3)))), float(rng.uniform(0, 0.001))
    amounts = np.array([_amounts(one.spec, surface.tokens) for one in chosen])
    is_codec = np.array([one.family != "neurons" for one in chosen])
    amounts[:, 2] = np.where(is_codec, np.minimum(amounts[:, 2] * codec, 1.0), amounts[:, 2])
    alike = smoothness(features(chosen, axes(chosen)) * 2)  # residuals vary twice as fast over the amounts
    rest = np.linalg.cholesky(alike + 1e-6 * np.eye(len(chosen))) @ rng.normal(size=len(chosen))
    losses = moved.losses(amounts) + surface.rest * rest + OWN * rng.normal(size=len(chosen))
    losses += np.array([coarse if one.spec.precision.selector in ("int4", "int2") else 0.0 for one in chosen])
    noise = surface.noise * np.exp(0.15 * rng.normal(size=len(chosen)))
    return World(losses, gap, noise, surface.none_noise, surface.noise, seed)


def flat(surface: Surface, chosen: Sequence[Candidate], seed: int) -> World:
    """Return a world in which HSK has no effect: none, full and every spec have the same mean."""
    still = np.zeros(len(chosen))
    return World(still, 0.0, still + surface.noise, surface.none_noise, surface.noise, seed)


def joint_surfaces(results: Path) -> list[Surface]:
    """Return the surfaces of all joint grids."""
    return [fitted(results / name) for name in JOINT_GRIDS]


def table_of_surfaces(surfaces: Sequence[Surface]) -> pd.DataFrame:
    """Return the parameters of the surfaces, with losses and spreads in points."""
    return pd.DataFrame(
        {
            "grid": one.name,
            "tokens": round(one.tokens, 1),
            "gap": 100 * one.gap,
            "loss of the least": 100 * one.top,
            "layers": one.slopes[0],
            "tokens' slope": one.slopes[1],
            "width": one.slopes[2],
            "rest": 100 * one.rest,
            "noise": 100 * one.noise,
        }
        for one in surfaces
    )
