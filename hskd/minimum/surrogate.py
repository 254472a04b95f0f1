"""What screening says of every candidate: a Gaussian process over the space, after a few noisy trials.

A candidate's loss against full HSK is a smooth function of its amounts, plus a small part of its own. Before any
trial, it falls from that of *none* to that of full as bytes rise. The posterior is exact (a few hundred candidates, a
few dozen trials), and no hyperparameter is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hskd.minimum.space import Axis, Candidate

SMOOTH, OWN, STEEPNESS = 0.35, 0.1, 2.0
"""Standard deviations of the smooth part and of a candidate's own, as shares of the gap; and how fast losses fall at
first: with the power 2, half of the way in bytes, counted in doublings, closes three quarters of the gap."""
ORDERED_SCALE, OTHER_SCALE = 0.7, 1.2
"""Over which distance the smooth part changes: along an axis of amounts, whose length is 1; between two selectors."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """Losses of all candidates, as they look after screening.

    Attributes:
        mean: ``(candidates,)``.
        spread: standard deviations, ``(candidates,)``.
    """

    mean: np.ndarray
    spread: np.ndarray

    def chance_below(self, limit: float) -> np.ndarray:
        """The probability that each candidate's loss is below ``limit``."""
        from scipy import special

        chances: np.ndarray = special.ndtr((limit - self.mean) / self.spread)
        return chances


def features(chosen: Sequence[Candidate], axes: Sequence[Axis]) -> np.ndarray:
    """Candidates as points, ``(candidates, columns)``, scaled so that the smooth part changes over a distance of 1."""
    return columns([tuple(axis.place(one.fields) for axis in axes) for one in chosen], axes)


def columns(places: Sequence[tuple[int, ...]], axes: Sequence[Axis]) -> np.ndarray:
    """Places on axes as points, ``(places, columns)``."""
    parts = []
    for axis, along in zip(axes, zip(*places, strict=True), strict=True):
        values = np.array(along, float)
        if axis.ordered:
            parts.append(values / (len(axis.values) - 1) / ORDERED_SCALE)
        else:
            parts += [(values == place) / math.sqrt(2) / OTHER_SCALE for place in range(len(axis.values))]
    return np.stack(parts, axis=1) if parts else np.zeros((len(places), 1))


def prior(chosen: Sequence[Candidate], gap: float, full_bytes: float) -> np.ndarray:
    """Losses of candidates before any trial, ``(candidates,)``."""
    sizes = np.log(np.array([one.bytes_per_example for one in chosen]))
    low, high = sizes.min(), max(math.log(full_bytes), float(sizes.max()))
    place = (sizes - low) / (high - low) if high > low else np.ones(len(sizes))
    loss: np.ndarray = max(gap, 0.0) * (1 - place) ** STEEPNESS
    return loss


def smoothness(points: np.ndarray) -> np.ndarray:
    """How alike the smooth parts of two candidates are, ``(candidates, candidates)``, of :func:`features`."""
    alike: np.ndarray = np.exp(-0.5 * ((points[:, None, :] - points[None, :, :]) ** 2).sum(-1))
    return alike


def estimate(
    alike: np.ndarray,
    before: np.ndarray,
    losses: Mapping[int, Sequence[float]],
    gap: float,
    noise: float,
    common: float,
) -> Estimates:
    """The losses of all candidates after some trials.

    Args:
        alike: of :func:`smoothness`.
        before: of :func:`prior`.
        losses: candidate -> the mean score of full less the score of each of its trials.
        gap: from *none* to full.
        noise: standard deviation of a trial's score.
        common: that of the mean score of full, which all losses share.
    """
    scale = max(abs(gap), 2 * noise)
    covariance = (SMOOTH * scale) ** 2 * alike + np.eye(len(alike)) * (OWN * scale) ** 2
    tried = sorted(index for index, values in losses.items() if values)
    if not tried:
        return Estimates(before, np.sqrt(np.diag(covariance)))
    means = np.array([np.mean(losses[index]) for index in tried])
    errors = np.array([noise**2 / len(losses[index]) for index in tried])
    observed = covariance[np.ix_(tried, tried)] + np.diag(errors) + common**2
    across = covariance[:, tried]
    solved = np.linalg.solve(observed, across.T)
    mean = before + solved.T @ (means - before[tried])
    variance = np.diag(covariance) - np.einsum("ij,ji->i", across, solved)
    return Estimates(mean, np.sqrt(np.maximum(variance, 1e-18)))
