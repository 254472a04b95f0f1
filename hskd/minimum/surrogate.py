"""Estimates of every candidate's loss after screening: a Gaussian process over the space, given a few noisy trials.

A candidate's loss against full HSK is modelled as a smooth function of its amounts, plus a small part of its own. The
prior mean falls from the loss of *none* to that of full as bytes rise. The posterior is exact (a few hundred
candidates, a few dozen trials), and no hyperparameter is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hskd.minimum.space import Axis, Candidate

SMOOTH, OWN, STEEPNESS = 0.35, 0.1, 2.0
"""Standard deviations of the smooth part and of a candidate's own part, as shares of the gap; and the exponent of the
prior loss. With the exponent 2, half of the way in log bytes closes three quarters of the gap."""
ORDERED_SCALE, OTHER_SCALE = 0.7, 1.2
"""Length scales of the smooth part: along an axis of amounts, which has length 1, and between two selectors."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """Estimated losses of all candidates after screening.

    Attributes:
        mean: ``(candidates,)``.
        spread: standard deviations, ``(candidates,)``.
    """

    mean: np.ndarray
    spread: np.ndarray

    def chance_below(self, limit: float) -> np.ndarray:
        """Return the probability that each candidate's loss is below ``limit``."""
        from scipy import special

        chances: np.ndarray = special.ndtr((limit - self.mean) / self.spread)
        return chances


def features(chosen: Sequence[Candidate], axes: Sequence[Axis]) -> np.ndarray:
    """Return candidates as points, ``(candidates, columns)``, scaled by the length scales of the smooth part."""
    return columns([tuple(axis.place(one.fields) for axis in axes) for one in chosen], axes)


def columns(places: Sequence[tuple[int, ...]], axes: Sequence[Axis]) -> np.ndarray:
    """Return places on axes as points, ``(places, columns)``."""
    parts = []
    for axis, along in zip(axes, zip(*places, strict=True), strict=True):
        values = np.array(along, float)
        if axis.ordered:
            parts.append(values / (len(axis.values) - 1) / ORDERED_SCALE)
        else:
            parts += [(values == place) / math.sqrt(2) / OTHER_SCALE for place in range(len(axis.values))]
    return np.stack(parts, axis=1) if parts else np.zeros((len(places), 1))


def prior(chosen: Sequence[Candidate], gap: float, full_bytes: float) -> np.ndarray:
    """Return the prior mean of the candidates' losses, ``(candidates,)``."""
    sizes = np.log(np.array([one.bytes_per_example for one in chosen]))
    low, high = sizes.min(), max(math.log(full_bytes), float(sizes.max()))
    place = (sizes - low) / (high - low) if high > low else np.ones(len(sizes))
    loss: np.ndarray = max(gap, 0.0) * (1 - place) ** STEEPNESS
    return loss


def smoothness(points: np.ndarray) -> np.ndarray:
    """Return the correlation of the smooth parts, ``(candidates, candidates)``, from :func:`features`."""
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
    """Return the estimated losses of all candidates after some trials.

    Args:
        alike: correlations, from :func:`smoothness`.
        before: prior means, from :func:`prior`.
        losses: for each candidate, the mean score of full minus the score of each of its trials.
        gap: the gap from *none* to full.
        noise: standard deviation of a trial's score.
        common: standard deviation of the mean score of full, which all losses share.
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
