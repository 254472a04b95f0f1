"""Error rates and coverage of the statistics, over thousands of simulated studies with known truth.

Every claim is made with 95 % confidence, so it may be wrong in 5 % of the simulations, give or take three standard
errors of that share. Scores are like a grid's: a seed shifts all points equally, because they see the same batches, and
each trial adds its own noise. The mean of five scores has the tails of a t-distribution. The last test measures the
coverage of an interval that ignores these tails, the percentile bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import special
from support.trial_tables import LADDER, rescored, study

from hskd.analysis.stats.curves import contrast, marginal_utility, points
from hskd.analysis.stats.examples import Answers
from hskd.analysis.stats.sufficiency import Sufficiency, minimum_sufficient
from hskd.analysis.table import Study
from hskd.heads import SequenceClassification

RUNS = 500
NAMES = ["none", *LADDER, "full"]
NONE, FULL = 0.75, 0.78
NOISE = 0.004
"""Deviation of a trial, a share of 1: smaller than the gap, larger than half the margin."""
MARGIN = 0.005


def error(share: float, runs: int = RUNS) -> float:
    """Return three standard errors of a share of the runs."""
    return 3 * math.sqrt(share * (1 - share) / runs)


BASE = study({name: [0.7] for name in NAMES})
COLUMNS = BASE.points.index.tolist()
"""The points from none to full, by their names in the study."""


def simulate(truth: np.ndarray, seeds: int, noise: float = NOISE, shared: float = 0.01, runs: int = RUNS) -> np.ndarray:
    """Return scores of many studies, ``(runs, seeds, points)``; a seed shifts all its points by ``shared``."""
    rng = np.random.default_rng([seeds, len(truth), round(1e6 * noise)])
    return (
        truth + shared * rng.standard_normal((runs, seeds, 1)) + noise * rng.standard_normal((runs, seeds, len(truth)))
    )


def repeated(truth: np.ndarray, seeds: int, noise: float = NOISE, runs: int = RUNS) -> Iterator[Study]:
    for scores in simulate(truth, seeds, noise, runs=runs):
        yield rescored(BASE, scores, COLUMNS)


def at(*losses: float, gap: float = FULL - NONE) -> np.ndarray:
    """Return the true means of none, the ladder and full."""
    return np.array([FULL - gap, *(FULL - loss for loss in losses), FULL])


def covered(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the share of runs whose interval holds the truth, for each point."""
    return ((low <= truth) & (truth <= high)).mean(axis=0)


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_intervals_of_points_cover_their_truth(seeds: int) -> None:
    truth = at(0.02, 0.01, 0.004, 0.0)
    found = [points(made).set_index("name").loc[COLUMNS] for made in repeated(truth, seeds)]
    expected = {
        "": truth,
        "above_none_": (truth - NONE)[1:],  # the ends are 0 and 1 for any scores
        "relative_": ((truth - NONE) / (FULL - NONE))[1:-1],
    }
    for kind, value in expected.items():
        inner = {"": slice(None), "above_none_": slice(1, None), "relative_": slice(1, -1)}[kind]
        low, high = (np.array([table[f"{kind}{end}"].to_numpy()[inner] for table in found]) for end in ("low", "high"))
        assert not np.isnan(low).any()
        np.testing.assert_allclose(covered(low, high, value), 0.95, atol=error(0.95))


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_intervals_of_marginal_utility_cover_their_truth(seeds: int) -> None:
    truth = at(0.02, 0.01, 0.004, 0.0)
    steps = marginal_utility(BASE)
    doublings = np.log2(steps["high_x"] / steps["low_x"]).to_numpy()
    found = [marginal_utility(made) for made in repeated(truth, seeds)]
    low, high = (np.array([table[end].to_numpy() for table in found]) for end in ("low", "high"))
    np.testing.assert_allclose(covered(low, high, np.diff(truth[1:]) / doublings), 0.95, atol=error(0.95))


def asked(truth: np.ndarray, seeds: int, noise: float = NOISE, share: float | None = None) -> list[Sufficiency]:
    return [minimum_sufficient(made, MARGIN, share)[0] for made in repeated(truth, seeds, noise)]


TRUTHS = {
    "a knee": at(0.02, 0.008, 0.0, 0.0),
    "all at the margin": at(MARGIN, MARGIN, MARGIN, MARGIN),
    "from the margin on": at(0.02, 0.01, MARGIN, MARGIN),
    "the last alone is enough": at(0.02, MARGIN, MARGIN, 0.0),
    "a slow rise": at(0.012, 0.009, 0.006, 0.003),
    "each is enough": at(0.002, 0.001, 0.0, 0.0),
    "none is enough": at(0.025, 0.02, 0.015, 0.01),
}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize(("seeds", "noise"), [(5, NOISE), (10, NOISE / 4)])
def test_what_is_called_enough_or_too_little_seldom_is_not(name: str, seeds: int, noise: float) -> None:
    truth = TRUTHS[name]
    loss = dict(zip(COLUMNS, FULL - truth, strict=True))
    answers = asked(truth, seeds, noise)
    # A loss equal to the margin is neither less nor more. (Of 0.78 - 0.775 the last bits are lost.)
    too_small = [answer.verdict == "sufficient" and loss[answer.name] > MARGIN - 1e-9 for answer in answers]
    too_large = [answer.above != "" and loss[answer.above] < MARGIN + 1e-9 for answer in answers]
    nothing = [answer.verdict == "all" and loss[COLUMNS[-2]] < MARGIN + 1e-9 for answer in answers]
    for wrong in (too_small, too_large, nothing):
        assert np.mean(wrong) <= 0.05 + error(0.05)


def test_at_the_margin_the_error_is_the_one_allowed() -> None:
    """The error is not smaller either. The first test of the sequence is exact, so too wide a bound would show."""
    answers = asked(at(0.02, 0.02, 0.02, MARGIN), 5, NOISE / 4)
    assert np.mean([answer.verdict == "sufficient" for answer in answers]) == pytest.approx(0.05, abs=error(0.05))
    assert np.mean([answer.verdict == "all" for answer in answers]) == pytest.approx(0.05, abs=error(0.05))


def test_a_share_of_the_gap_keeps_the_same_errors() -> None:
    truth = at(0.02, 0.01, 0.2 * (FULL - NONE), 0.2 * (FULL - NONE))
    answers = asked(truth, 5, share=0.2)
    assert np.mean([answer.verdict == "sufficient" for answer in answers]) <= 0.05 + error(0.05)
    assert np.mean([answer.above in COLUMNS[3:] for answer in answers]) <= 0.05 + error(0.05)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", [NOISE, NOISE / 4])
def test_flat_scores_decide_nothing(seeds: int, noise: float) -> None:
    for flat in (at(0, 0, 0, 0, gap=0), at(MARGIN, MARGIN, MARGIN, MARGIN, gap=MARGIN)):
        decided = [answer.verdict != "undetermined" for answer in asked(flat, seeds, noise)]
        assert np.mean(decided) <= 0.05 + error(0.05)


def test_noise_alone_decides_nothing() -> None:
    """Independent scores, with tails as heavy as those of t with 3 degrees of freedom."""
    rng = np.random.default_rng(0)
    scores = 0.77 + 0.01 * rng.standard_t(3, (RUNS, 5, len(COLUMNS)))
    for share in (None, 0.2):
        answers = [minimum_sufficient(rescored(BASE, one, COLUMNS), MARGIN, share)[0] for one in scores]
        assert np.mean([answer.verdict != "undetermined" for answer in answers]) <= 0.05 + error(0.05)


@pytest.mark.parametrize(("seeds", "noise", "power"), [(5, 0.001, 0.9), (10, 0.002, 0.9)])
def test_a_clear_knee_is_found(seeds: int, noise: float, power: float) -> None:
    answers = asked(at(0.02, 0.01, 0.0, 0.0), seeds, noise)
    assert np.mean([answer.name == COLUMNS[3] and answer.above == COLUMNS[2] for answer in answers]) >= power
    nothing = asked(at(0.025, 0.02, 0.015, 0.01), seeds, noise)
    assert np.mean([answer.verdict == "all" and answer.above == COLUMNS[4] for answer in nothing]) >= power


def right_answers(examples: int, seeds: int, own: float, rng: np.random.Generator) -> np.ndarray:
    """Return whether none and full answer correctly, ``(2, seeds, examples)`` bool.

    Some sentences are harder than others for both, and some gain more than others from full HSK. A seed shifts all
    answers of its trial, and each answer has noise of deviation ``own``.
    """
    ease, gain = rng.normal(1.0, 1.2, examples), rng.normal(0.2, 0.6, examples)
    shift, noise = rng.normal(0, 0.06, (2, seeds, 1)), rng.normal(0, own, (2, seeds, examples))
    return np.stack([ease, ease + gain])[:, None] + shift + noise > 0


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("own", [0.3, 1.0])
def test_the_widened_interval_covers_the_difference_on_all_examples_there_are(seeds: int, own: float) -> None:
    """The interval over seeds alone is about the given examples, so it covers this difference less often."""
    examples, runs, rng = 300, 600, np.random.default_rng(seeds)
    deviation = np.sqrt(1.2**2 + 0.06**2 + own**2 + np.array([0.0, 0.6**2]))
    truth = float(np.diff(special.ndtr(np.array([1.0, 1.2]) / deviation))[0])
    head = SequenceClassification(("0", "1"), ("accuracy",))
    base = study({"none": [0.7], "full": [0.7]})
    here, anew = 0, 0
    for _ in range(runs):
        right = right_answers(examples, seeds, own, rng)
        # Computed as in Answers (which another test checks), but without scoring every trial repeatedly.
        left_out = (right.sum(axis=2, keepdims=True) - right) / (examples - 1)
        kept = {(name, seed): left_out[arm, seed] for arm, name in enumerate(("none", "full")) for seed in range(seeds)}
        answers = Answers(head, np.zeros(examples, int), {}, kept)
        made = rescored(base, right.mean(axis=2).T, ["none", "full"])
        _, low, high, _ = contrast(made, {"full": 1.0, "none": -1.0}).interval()
        here += low <= truth <= high
        _, low, high, _ = contrast(made, {"full": 1.0, "none": -1.0}, answers).interval()
        anew += low <= truth <= high
    assert anew / runs >= 0.95 - error(0.95, runs)
    assert here / runs < 0.95 - error(0.95, runs) / 2


def test_a_bootstrap_over_five_seeds_covers_less() -> None:
    """Resampling five scores misses their tails: a nominal 95 % covers about 83 %."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((RUNS, 5))
    means = scores[:, rng.integers(5, size=(1000, 5))].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert covered(low, high, np.zeros(1)) < 0.95 - 3 * error(0.95)
