"""The search algorithm. It decides what to run next, and why, from the results so far and a seed alone.

A search requests batches of trials and is sent their scores, so it can be replayed: a killed run starts over, is sent
the scores on disk, and continues. Its stages are:

1. *rates*: learning rates for none, full and each family of specs, on search seeds, by the score used for choosing.
2. *gap*: is full above none at all? If that is not shown, the search ends.
3. *screening*: one or two search seeds for some candidates, which an optimiser proposes.
4. *confirmation*: the candidates that look cheap and good enough, on seeds that took no part in choosing them.
5. *bracket*: if trials are left, a cheaper candidate that looks too small, also on fresh seeds.

The candidates to confirm and their order are fixed before the first of them is tested. Each is tested only if the
dearer one before it was shown to be enough, so the level is not divided among them. If the first is not shown to be
enough, dearer ones follow, for which a part of the level is kept. A claim that a spec is enough is therefore wrong at
most as often as the level says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from hskd.errors import HskdError
from hskd.minimum.proposals import SAMPLERS, Sampler, propose
from hskd.minimum.sequential import Judgement, Plan, Spending, judge
from hskd.minimum.space import Candidate, axes
from hskd.minimum.surrogate import Estimates, estimate, features, prior, smoothness

Arm = Literal["none", "full", "spec"]
Stage = Literal["rates", "gap", "screening", "confirmation", "bracket"]
Verdict = Literal["enough", "no gap", "nothing is enough", "undetermined"]
CHAIN = (0.8, 0.6, 0.4, 0.2)
"""Chances of success that define the chain: for each, the cheapest candidate whose test is that likely to succeed."""
STEP = 1.25
"""Each candidate of the chain takes fewer bytes than the one before it, by at least this factor."""
SAFE = 0.95
"""If the first candidate of the chain is this likely to succeed, no safer one is tested before it."""
DEARER, DEARER_SHARE = 4.0, 0.2
"""If the first candidate of the chain is not shown to be enough, candidates of at least ``DEARER`` times its bytes are
tested. They are fixed beforehand too, and ``DEARER_SHARE`` of the level is kept for them."""
TARGET = 0.4
"""Screening looks for losses up to this share of the tolerance, because larger ones can hardly be confirmed."""
GAP_LEVEL = 0.025
"""One-sided level of the test for a gap."""
REFERENCE_SEEDS = 4
"""Number of search seeds of none and full."""
PRIOR_DEGREES = 4.0
"""Degrees of freedom of the prior for the spread between seeds."""
CRITICAL = 2.2
"""Approximate critical value at the last looks, for planning."""
POWER_QUANTILE = 1.28
"""Quantile of the normal distribution for a power of 90 %."""
LOOKS = 5
"""Number of looks of a test. The first is at ``FIRST_LOOK`` seeds or later."""
FIRST_LOOK, FEWEST_SEEDS, MOST_SEEDS = 4, 10, 24
"""Seeds of confirmation: at the first look, and the fewest and the most at the last look."""
GAP_LOOKS = (4, 6, 8, 10, 12)
"""Numbers of seeds at which the test for a gap looks at the data."""


class Rates(NamedTuple):
    """Learning rates of a trial. The arm none has no HSK stage, so it ignores ``hsk``."""

    hsk: float
    prediction: float


PAPER_RATES = Rates(5e-5, 2e-5)


class Trial(NamedTuple):
    """A trial that a search requests."""

    arm: Arm
    candidate: int | None
    seed: int
    rates: Rates | None
    """Learning rates; None for the default ones of the arm."""


class Scored(NamedTuple):
    """The scores of a trial, as fractions."""

    reported: float
    choice: float
    """The score on the examples that rates are chosen by."""


@dataclass(frozen=True)
class Batch:
    """Trials that a search requests, which may run at the same time."""

    stage: Stage
    why: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search: the claim to be tested, and the budget.

    Attributes:
        tolerance: allowed loss of score against full HSK, as a fraction.
        margin_share: allowed loss as a share of the gap from none to full; replaces ``tolerance`` if given.
        budget: total number of trials, including those already on disk.
        level: one-sided level of the claim that a spec is enough.
        most_seeds: the most seeds of confirmation.
        spending: how the level is spent over the looks.
        sampler: proposes the candidates of screening.
        search_rates: whether learning rates are searched too.
        rates: rates of full and specs, or the middle of a search for them.
        none_lr: learning rate of none.
        families: whether each family of specs has rates of its own.
        seed: seed of the proposals.
        first_seed: first seed of confirmation; the others follow.
        first_search_seed: first seed of all trials that choices are based on.
        noise: prior standard deviation of a trial's score.
        least_spread: lower bound for the standard deviation of a difference between paired trials.
        bracket: whether the rest of the budget may be spent on showing that a cheaper candidate is not enough.
    """

    tolerance: float = 0.005
    margin_share: float | None = None
    budget: int = 60
    level: float = 0.05
    most_seeds: int = MOST_SEEDS
    spending: Spending = "pocock"
    sampler: Sampler = "tpe"
    search_rates: bool = False
    rates: Rates = PAPER_RATES
    none_lr: float = 2e-5
    families: bool = True
    seed: int = 0
    first_seed: int = 0
    first_search_seed: int = 100
    noise: float = 0.005
    least_spread: float = 0.0
    bracket: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise HskdError(f"tolerance {self.tolerance}: expected a share of 1 above 0 (0.005 is half a point).")
        if self.margin_share is not None and not 0 < self.margin_share < 1:
            raise HskdError(
                f"margin share {self.margin_share}: expected a share of the gap between 0 and 1, such as 0.1."
            )
        if self.sampler not in SAMPLERS:
            raise HskdError(f"sampler {self.sampler}: expected one of {', '.join(SAMPLERS)}.")
        if self.most_seeds < FEWEST_SEEDS:
            raise HskdError(f"most seeds {self.most_seeds}: expected {FEWEST_SEEDS} or more; fewer show nothing.")
        least = 2 * REFERENCE_SEEDS + 4 + 2 * FEWEST_SEEDS
        if self.budget < least:
            raise HskdError(f"a budget of {self.budget} trials: expected {least} or more; fewer can show nothing.")
        last_seed = self.first_seed + self.most_seeds
        if self.first_seed <= self.first_search_seed < last_seed:
            raise HskdError(
                f"seeds: those of the search (from {self.first_search_seed}) must take no part in confirmation "
                f"({self.first_seed} to {last_seed - 1})."
            )


@dataclass(frozen=True)
class Confirmation:
    """The result of testing one candidate on fresh seeds.

    Attributes:
        candidate: its index; None for *none*.
        judgement: test of the loss against full minus the allowed loss.
        loss: mean loss against full over the seeds used.
        failed: number of its trials that failed.
    """

    candidate: int | None
    judgement: Judgement
    loss: float
    failed: int = 0

    @property
    def is_enough(self) -> bool:
        """Whether the candidate is shown to be enough."""
        return self.judgement.verdict == "below"

    @property
    def is_too_little(self) -> bool:
        """Whether the candidate is shown not to be enough."""
        return self.judgement.verdict == "above"


@dataclass(frozen=True, eq=False)
class Known:
    """The knowledge of a search after some batches.

    Attributes:
        trials: number of trials run so far, out of the budget.
        gap: test of none - full, so a gap is a mean below zero; None before the first test.
        noise: standard deviation of a trial's score.
        estimates: estimated losses of all candidates; None before screening.
        chain: candidates to confirm, in order.
        dearer: candidates to confirm, in order, if the first of ``chain`` is not shown to be enough.
        looks: numbers of seeds at which their tests look at the data.
        tests: tests of candidates, in the order in which they began.
        rates: rates chosen for none, full and each family, by name.
    """

    trials: int = 0
    gap: Judgement | None = None
    noise: float = math.nan
    estimates: Estimates | None = None
    chain: tuple[int, ...] = ()
    dearer: tuple[int, ...] = ()
    looks: tuple[int, ...] = GAP_LOOKS
    tests: tuple[Confirmation, ...] = ()
    rates: dict[str, Rates] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The end of a search.

    Attributes:
        verdict: whether a candidate is shown to be enough, or why not.
        reason: explanation of the verdict in plain words.
        answer: the cheapest candidate that is shown to be enough.
        too_little: the dearest point shown not to be enough: a candidate, or -1 for none.
        known: everything that the search knows.
        history: every batch that was requested.
        scores: scores by seed of each (arm, candidate), at the chosen rates.
    """

    verdict: Verdict
    reason: str
    answer: int | None
    too_little: int | None
    known: Known
    history: tuple[Batch, ...]
    scores: dict[tuple[Arm, int | None], dict[int, Scored]]


Sent = list[Scored | None]
"""Scores of a batch in its order, with None for failed trials. An empty list ends the search."""


class _Ended(Exception):
    """The budget or the time is used up."""


class Search:
    """A search in progress. :meth:`run` generates batches, and :attr:`known` is the knowledge so far.

    Args:
        chosen: the candidates, cheapest first.
        full_bytes: bytes per example of full HSK.
        settings: settings of the search.
    """

    def __init__(self, chosen: Sequence[Candidate], full_bytes: float, settings: SearchSettings) -> None:
        self.chosen = list(chosen)
        self.settings = settings
        self.known = Known()
        self._axes = axes(self.chosen)
        self._points = features(self.chosen, self._axes)
        self._alike = smoothness(self._points)
        self._full_bytes = full_bytes
        self._scores: dict[tuple[Arm, int | None], dict[int, Scored]] = {}
        self._failed: dict[tuple[Arm, int | None], set[int]] = {}
        self._rate_scores: dict[tuple[Arm, int | None], dict[Rates, dict[int, float]]] = {}
        self._history: list[Batch] = []
        self._search_seeds = [settings.first_search_seed + i for i in range(REFERENCE_SEEDS)]
        self._tests: dict[int, Confirmation] = {}

    # ---- requests

    def run(self) -> Generator[Batch, Sent, Outcome]:
        """Request batches until the answer is known, or nothing more may be run."""
        try:
            yield from self._rates()
            has_gap = yield from self._gap()
            if not has_gap:
                return self._outcome()
            yield from self._screening()
            yield from self._confirmation()
        except _Ended:
            pass
        return self._outcome()

    def _ask(self, stage: Stage, why: str, trials: Sequence[Trial]) -> Generator[Batch, Sent, list[Scored | None]]:
        """Request trials, unless they exceed the budget, and return their scores."""
        left = self.settings.budget - self.known.trials
        if not trials:
            return []
        if len(trials) > left:
            raise _Ended
        batch = Batch(stage, why, tuple(trials))
        sent = yield batch
        if not sent:
            raise _Ended
        self._history.append(batch)
        self._know(trials=self.known.trials + len(trials))
        return sent

    def _measure(
        self, stage: Stage, why: str, points: Sequence[tuple[Arm, int | None, int]]
    ) -> Generator[Batch, Sent, None]:
        """Run trials that have no score yet at the chosen rates, and keep their scores."""
        wanting = [
            (arm, candidate, seed)
            for arm, candidate, seed in dict.fromkeys(points)
            if seed not in self._scores.get((arm, candidate), {}) and seed not in self._failed.get((arm, candidate), ())
        ]
        trials = [Trial(arm, candidate, seed, self.rates_of(arm, candidate)) for arm, candidate, seed in wanting]
        sent = yield from self._ask(stage, why, trials)
        for (arm, candidate, seed), scored in zip(wanting, sent, strict=True):
            if scored is None:
                self._failed.setdefault((arm, candidate), set()).add(seed)
            else:
                self._scores.setdefault((arm, candidate), {})[seed] = scored

    # ---- rates

    def rates_of(self, arm: Arm, candidate: int | None) -> Rates | None:
        """Return the learning rates chosen for a point; None if none were searched."""
        rates = self.known.rates
        if arm == "spec" and candidate is not None:
            return rates.get(self.chosen[candidate].family) or rates.get("full")
        return rates.get(arm)

    def _rates(self) -> Generator[Batch, Sent, None]:
        if not self.settings.search_rates:
            return
        base, none = self.settings.rates, self.settings.none_lr
        yield from self._best_rates("none", "none", None, [Rates(base.hsk, none * f) for f in (1.0, 2.0, 0.5)])
        around = [Rates(base.hsk * f, base.prediction) for f in (1.0, 2.0, 0.5)]
        yield from self._best_rates("full", "full", None, around)
        best = self.known.rates["full"]
        others = [best, *(Rates(best.hsk, best.prediction * f) for f in (2.0, 0.5))]
        yield from self._best_rates("full", "full", None, others)
        if self.settings.families:
            for family, middle in self._middles().items():
                start = self.known.rates["full"]
                tried = [Rates(start.hsk * f, start.prediction) for f in (1.0, 2.0, 0.5)]
                yield from self._best_rates(family, "spec", middle, tried)

    def _middles(self) -> dict[str, int]:
        """Return a candidate of each family: the middle one by bytes."""
        by_family: dict[str, list[int]] = {}
        for index, one in enumerate(self.chosen):
            by_family.setdefault(one.family, []).append(index)
        return {family: members[len(members) // 2] for family, members in by_family.items()}

    def _best_rates(
        self, name: str, arm: Arm, candidate: int | None, tried: Sequence[Rates]
    ) -> Generator[Batch, Sent, None]:
        """Try some rates on search seeds and the better two on further ones; keep the rates with the best mean score.

        *None* gets two seeds in each round, and every other arm one. The gap and all shares of it are measured from
        *none*, and its score depends on its rate by more than one seed shows.
        """
        each = 2 if arm == "none" else 1
        scores = self._rate_scores.setdefault((arm, candidate), {})

        def mean(rates: Rates) -> float:
            return float(np.mean(list(scores[rates].values())))

        for seeds in (self._search_seeds[:each], self._search_seeds[each : 2 * each]):
            rates = list(tried)
            if seeds[0] != self._search_seeds[0]:
                rates = sorted((one for one in tried if scores.get(one)), key=lambda one: -mean(one))[:2]
            wanting = [(one, seed) for seed in seeds for one in rates if seed not in scores.get(one, {})]
            numbers = " and ".join(map(str, seeds))
            which = f"learning rates of {name}: {len(rates)} on search seed{'s' * (each > 1)} {numbers}"
            sent = yield from self._ask("rates", which, [Trial(arm, candidate, seed, one) for one, seed in wanting])
            for (one, seed), scored in zip(wanting, sent, strict=True):
                if scored is not None:
                    scores.setdefault(one, {})[seed] = scored.choice
        if known := [one for one in tried if scores.get(one)]:
            best = max(known, key=lambda one: (len(scores[one]), mean(one)))
            self._know(rates=self.known.rates | {name: best})

    # ---- the gap

    def _gap(self) -> Generator[Batch, Sent, bool]:
        settings = self.settings
        points: list[tuple[Arm, int | None, int]] = [
            (arm, None, seed) for seed in self._search_seeds for arm in ("none", "full")
        ]
        yield from self._measure("gap", "none and full on search seeds: is there a gap at all?", points)
        plan = Plan(GAP_LOOKS, GAP_LEVEL, "pocock")
        # If rates were chosen on the search seeds, the scores on these seeds are biased upwards.
        seeds = [] if settings.search_rates else list(self._search_seeds)
        fresh = (settings.first_seed + i for i in range(GAP_LOOKS[-1] - len(seeds)))
        while True:
            judgement = judge(self._below_full("none", None, seeds), plan, settings.least_spread)
            self._know(gap=judgement, noise=self._noise())
            if judgement.verdict != "open":
                return judgement.verdict == "below"
            until = next((look for look in plan.looks if look > len(seeds)), None)
            if until is None:  # some of the trials failed
                return False
            seeds += itertools.islice(fresh, until - len(seeds))
            yield from self._measure(
                "gap",
                f"none and full on {until} seeds: the gap is not shown yet",
                [(arm, None, seed) for seed in seeds for arm in ("none", "full")],
            )

    def _below_full(self, arm: Arm, candidate: int | None, seeds: Sequence[int]) -> list[float]:
        """Return score - full on some seeds, paired. Seeds with a failed trial are left out."""
        own, full = self._scores.get((arm, candidate), {}), self._scores.get(("full", None), {})
        return [own[seed].reported - full[seed].reported for seed in seeds if seed in own and seed in full]

    # ---- screening

    def _screening(self) -> Generator[Batch, Sent, None]:
        self._plan_looks()
        count = self._screening_trials()
        asked = 0
        while asked < count:
            size = min(4, count - asked)
            self._estimate()
            repeated = self._repeats(size) if asked >= count // 2 else []
            fresh = propose(
                self.settings.sampler,
                self.chosen,
                self._axes,
                self._points,
                self._objective(),
                size - len(repeated),
                self.settings.seed + asked,
            )
            points: list[tuple[Arm, int | None, int]] = [("spec", index, self._next_seed(index)) for index in fresh]
            points += [("spec", index, self._next_seed(index)) for index in repeated]
            if not points:
                break
            yield from self._measure("screening", self._why_screening(fresh, repeated), points)
            asked += len(points)
        self._estimate()

    def _plan_looks(self) -> None:
        """Set the number of seeds of confirmation: what their spread requires, within the budget."""
        left, loss = self.settings.budget - self.known.trials, TARGET / 2 * self._limit()
        seeds = FEWEST_SEEDS
        while seeds < min(self.settings.most_seeds, round(0.375 * left)):
            error = math.sqrt(2 / seeds) * self.known.noise
            if (self._limit() - loss) / error >= CRITICAL + POWER_QUANTILE:
                break
            seeds += 1
        looks = np.linspace(max(FIRST_LOOK, 0.3 * seeds), seeds, LOOKS).round().astype(int)
        self._know(looks=tuple(int(look) for look in dict.fromkeys(looks)))

    def _screening_trials(self) -> int:
        """Return the number of trials of screening: what confirmation leaves, limited by the size of the space."""
        left, seeds = self.settings.budget - self.known.trials, self.known.looks[-1]
        return max(4, min(left - 2 * seeds, round(0.4 * left), 2 * len(self.chosen)))

    def _why_screening(self, fresh: Sequence[int], repeated: Sequence[int]) -> str:
        parts = []
        if fresh:
            parts.append(f"{len(fresh)} candidates that may be cheap and good enough")
        if repeated:
            parts.append("another seed for " + ", ".join(self.chosen[index].name for index in repeated))
        return "; ".join(parts)

    def _next_seed(self, index: int) -> int:
        tried = len(self._scores.get(("spec", index), {})) + len(self._failed.get(("spec", index), ()))
        return self.settings.first_search_seed + tried

    def _repeats(self, most: int) -> list[int]:
        """Return candidates with one seed that deserve another: those of the current chain."""
        estimates = self.known.estimates
        assert estimates is not None
        return [index for index in self._chain(estimates) if len(self._scores.get(("spec", index), {})) == 1][
            : most // 2
        ]

    def _objective(self) -> dict[int, float]:
        """Return the value to minimise for each tried candidate: log2 of bytes, plus a penalty for too much loss."""
        estimates, limit = self.known.estimates, self._limit()
        assert estimates is not None
        tried = [index for (arm, index) in self._scores if arm == "spec" and index is not None]
        tried += [index for (arm, index) in self._failed if arm == "spec" and index is not None]
        values = {}
        for index in dict.fromkeys(tried):
            beyond = max(0.0, float(estimates.mean[index]) - TARGET * limit) / limit
            values[index] = math.log2(self.chosen[index].bytes_per_example) + 4 * beyond
            if index in {i for (_, i) in self._failed}:
                values[index] += 20
        return values

    def _limit(self) -> float:
        """Return the allowed loss, as a score."""
        if self.settings.margin_share is None:
            return self.settings.tolerance
        return max(self.settings.margin_share * self._gap_estimate(), 1e-6)

    def _gap_estimate(self) -> float:
        return -float(np.mean(self._below_full("none", None, self._search_seeds) or [0.0]))

    def _noise(self) -> float:
        """Return the standard deviation between search seeds, combined with the prior."""
        squares, degrees = PRIOR_DEGREES * self.settings.noise**2, PRIOR_DEGREES
        for by_seed in self._scores.values():
            values = [scored.reported for seed, scored in by_seed.items() if self._is_search_seed(seed)]
            if len(values) > 1:
                squares += float(np.var(values)) * len(values)
                degrees += len(values) - 1
        return math.sqrt(squares / degrees)

    def _is_search_seed(self, seed: int) -> bool:
        first = self.settings.first_seed
        return not first <= seed < first + self.settings.most_seeds

    def _estimate(self) -> None:
        full = [scored.reported for seed, scored in self._scores[("full", None)].items() if self._is_search_seed(seed)]
        reference, noise, gap = float(np.mean(full)), self._noise(), self._gap_estimate()
        losses = {
            index: [reference - scored.reported for seed, scored in by_seed.items() if self._is_search_seed(seed)]
            for (arm, index), by_seed in self._scores.items()
            if arm == "spec" and index is not None
        }
        before = prior(self.chosen, gap, self._full_bytes)
        estimates = estimate(self._alike, before, losses, gap, noise, noise / math.sqrt(len(full)))
        self._know(estimates=estimates, noise=noise)

    # ---- confirmation

    def _chances(self, estimates: Estimates) -> np.ndarray:
        """Return the probability that each candidate's test shows it to be enough."""
        from scipy import special

        error = math.sqrt(2) * self.known.noise / math.sqrt(self.known.looks[-1])
        room = self._limit() - estimates.mean - CRITICAL * error
        chances: np.ndarray = special.ndtr(room / np.sqrt(error**2 + estimates.spread**2))
        return chances

    def _chain(self, estimates: Estimates, least_bytes: float = 0.0) -> list[int]:
        """Return the candidates to confirm, from dear to cheap: the safest first, then less and less likely ones.

        Args:
            estimates: of all candidates.
            least_bytes: candidates of fewer bytes per example are left out.
        """
        sizes = np.array([one.bytes_per_example for one in self.chosen])
        if sizes.max() < least_bytes:
            return []
        chances = np.where(sizes >= least_bytes, self._chances(estimates), -1.0)
        chain: list[int] = []
        for least in CHAIN:
            limit = sizes[chain[-1]] / STEP if chain else math.inf
            fitting = np.flatnonzero((chances >= least) & (sizes <= limit))
            if len(fitting):
                chain.append(int(fitting[np.argmin(sizes[fitting])]))
        safest = int(np.argmax(chances))
        if chain and (chances[chain[0]] >= SAFE or sizes[safest] <= STEP * sizes[chain[0]]):
            return chain
        return [safest, *(index for index in chain if sizes[index] < sizes[safest] / STEP)]

    def _confirmation(self) -> Generator[Batch, Sent, None]:
        estimates = self.known.estimates
        assert estimates is not None
        chain = self._chain(estimates)
        dearer = self._chain(estimates, DEARER * self.chosen[chain[0]].bytes_per_example)
        self._know(chain=tuple(chain), dearer=tuple(dearer))
        kept = DEARER_SHARE if dearer else 0.0
        is_enough = yield from self._in_order(chain, (1 - kept) * self.settings.level)
        if not is_enough:
            yield from self._in_order(dearer, kept * self.settings.level)
        if self.settings.bracket:
            yield from self._bracket(estimates)

    def _in_order(self, chain: Sequence[int], level: float) -> Generator[Batch, Sent, bool]:
        """Confirm candidates one after the other while they are enough, and return whether the first one is."""
        for place, index in enumerate(chain):
            test = yield from self._confirm(index, self._plan(level), "confirmation")
            if not test.is_enough:
                return place > 0
        return bool(chain)

    def _plan(self, level: float) -> Plan:
        return Plan(self.known.looks, level, self.settings.spending)

    def _confirm(self, index: int, plan: Plan, stage: Stage) -> Generator[Batch, Sent, Confirmation]:
        name, settings = self.chosen[index].name, self.settings
        test = self._tested("spec", index, [], plan)
        previous = 0
        for look in plan.looks:
            seeds = [settings.first_seed + i for i in range(look)]
            points: list[tuple[Arm, int | None, int]] = [("spec", index, seed) for seed in seeds]
            points += [("full", None, seed) for seed in seeds]
            if settings.margin_share is not None:
                points += [("none", None, seed) for seed in seeds]
            size = f"{self.chosen[index].bytes_per_example:,.0f} bytes"
            why = f"is {name} ({size}) enough? fresh seeds {previous + 1} to {look}"
            if stage == "bracket":
                why = f"is {name} ({size}) too little? fresh seeds {previous + 1} to {look}"
            yield from self._measure(stage, why, points)
            previous = look
            test = self._tested("spec", index, seeds, plan, stop_early=stage != "bracket")
            self._tests[index] = test
            self._know(tests=tuple(self._tests.values()))
            if test.judgement.verdict != "open" or test.failed:
                break
        return test

    def _tested(
        self, arm: Arm, index: int | None, seeds: Sequence[int], plan: Plan, stop_early: bool = True
    ) -> Confirmation:
        """Test whether a point's loss against full is below the allowed loss."""
        settings = self.settings
        failed = sum(seed in self._failed.get((arm, index), ()) for seed in seeds)
        below = self._below_full(arm, index, seeds)
        if settings.margin_share is None:
            beyond = [-value - settings.tolerance for value in below]
        else:
            own, full, none = (self._scores.get(key, {}) for key in ((arm, index), ("full", None), ("none", None)))
            share = settings.margin_share
            beyond = [
                (1 - share) * full[seed].reported + share * none[seed].reported - own[seed].reported
                for seed in seeds
                if seed in own and seed in full and seed in none
            ]
        judgement = judge(beyond, plan, settings.least_spread, stop_early)
        if failed and judgement.verdict == "below":  # a spec whose trials fail must not be called enough
            judgement = Judgement("undecided", judgement.n, judgement.mean, judgement.low, judgement.high)
        used = below[: judgement.n]
        return Confirmation(index, judgement, -float(np.mean(used)) if used else math.nan, failed)

    def _bracket(self, estimates: Estimates) -> Generator[Batch, Sent, None]:
        """Spend the rest of the budget on the dearest candidate that looks too small, if there is one."""
        enough = [index for index, test in self._tests.items() if test.is_enough]
        if any(test.is_too_little for test in self._tests.values()) or not enough:
            return
        sizes = np.array([one.bytes_per_example for one in self.chosen])
        small = np.flatnonzero(
            (sizes < min(sizes[index] for index in enough)) & (1 - estimates.chance_below(1.5 * self._limit()) > 0.8)
        )
        small = np.array([index for index in small if index not in self._tests], dtype=int)
        if len(small) and self.settings.budget - self.known.trials >= self.known.looks[0]:
            plan = Plan(self.known.looks[:2], self.settings.level, self.settings.spending)
            yield from self._confirm(int(small[np.argmax(sizes[small])]), plan, "bracket")

    # ---- outcome

    def _know(self, **changes: object) -> None:
        self.known = Known(**{**self.known.__dict__, **changes})  # type: ignore[arg-type]

    def none_test(self) -> Confirmation:
        """Return the test of none itself on all paired seeds of none and full."""
        seeds = [self.settings.first_seed + i for i in range(GAP_LOOKS[-1])]
        if not self.settings.search_rates:
            seeds = [*self._search_seeds, *seeds]
        seeds = [seed for seed in seeds if seed in self._scores.get(("none", None), {})]
        return self._tested("none", None, seeds, Plan(GAP_LOOKS, self.settings.level, "pocock"))

    def _outcome(self) -> Outcome:
        known, none = self.known, self.none_test()
        enough = [test.candidate for test in self._tests.values() if test.is_enough and test.candidate is not None]
        answer = min(enough, key=lambda index: self.chosen[index].bytes_per_example) if enough else None
        little = [test.candidate for test in self._tests.values() if test.is_too_little and test.candidate is not None]
        too_little = max(little, key=lambda index: self.chosen[index].bytes_per_example) if little else None
        if too_little is None and none.is_too_little:
            too_little = -1
        verdict, reason = self._verdict(answer, none)
        return Outcome(verdict, reason, answer, too_little, known, tuple(self._history), self._scores)

    def _verdict(self, answer: int | None, none: Confirmation) -> tuple[Verdict, str]:
        gap = self.known.gap
        spent = f"{self.known.trials} of {self.settings.budget} trials"
        if gap is None or gap.verdict != "below":
            if gap is None or gap.verdict == "open":
                return "undetermined", f"The search ended before it could tell whether there is a gap ({spent})."
            side = "below" if gap.mean > 0 else "above"
            text = (
                f"full scores {_points(abs(gap.mean))} points {side} none ({gap.n} seeds; the gap is at least "
                f"{_points(-gap.high)}). It is not shown to be above none, so nothing can be said about how much HSK "
                "is enough."
            )
            if none.is_enough:
                text += " None itself is enough at this tolerance."
            return "no gap", text
        if answer is not None:
            test = self._tests[answer]
            most = test.judgement.high + test.loss - test.judgement.mean
            return "enough", (
                f"It loses {_points(test.loss)} points against full, and at most {_points(most)} "
                f"({test.judgement.n} fresh seeds)."
            )
        tests = list(self._tests.values())
        if tests and all(test.is_too_little for test in tests):
            return "nothing is enough", "Every candidate that was tested is shown to lose more than allowed."
        if tests:
            losses = ", ".join(
                f"{self.chosen[test.candidate].name} loses {_points(test.loss)} points ({test.judgement.n} seeds)"
                for test in tests
                if test.candidate is not None
            )
            why = ""
            if tests[-1].judgement.verdict == "futile":
                why = f" The search ended after {spent}, because the seeds left would hardly show it to be enough."
            return "undetermined", (
                f"No candidate is shown to be enough: {losses}.{why} A larger --budget-trials may help: it screens "
                "more candidates and plans more seeds."
            )
        return "undetermined", f"The search ended before a candidate was confirmed ({spent})."


def _points(score: float) -> str:
    """Return a score in points (hundredths) as text."""
    return f"{100 * score:.2f}"


def run(search: Search, evaluate: Callable[[Batch], Sent]) -> Outcome:
    """Run a search to its end.

    Args:
        search: the search.
        evaluate: runs a batch and returns the scores of its trials; an empty list ends the search.
    """
    asking = search.run()
    try:
        batch = next(asking)
        while True:
            batch = asking.send(evaluate(batch))
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
