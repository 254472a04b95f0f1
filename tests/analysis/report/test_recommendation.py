from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.trial_tables import LADDER, rescored, study

from hskd.analysis.report.recommendation import recommend
from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import Study, studies
from hskd.errors import HskdError

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
SMALL, MIDDLE, LARGE, LARGEST = LADDER
MEANS = {"none": 0.60, SMALL: 0.65, MIDDLE: 0.698, LARGE: 0.699, LARGEST: 0.7, "full": 0.7}


def noisy(means: dict[str, float], seeds: int = 5, noise: float = 0.0005) -> dict[str, list[float]]:
    random = np.random.default_rng(1)
    return {name: list(mean + noise * random.standard_normal(seeds)) for name, mean in means.items()}


def made(means: dict[str, float] | None = None, seeds: int = 5, noise: float = 0.0005) -> Study:
    return study(noisy(means or MEANS, seeds, noise))


def stored(of: Study, name: str, examples: int = 2000) -> float:
    return float(of.points.at[name, "bytes_per_example"]) * examples


def test_the_cheapest_spec_shown_to_be_enough() -> None:
    found = recommend(made(), tolerance=0.5)
    assert (found.spec, found.is_shown) == (MIDDLE, True)
    assert found.evidence[0] == f"{MIDDLE}: the cheapest spec that is shown to be enough."
    assert "less than 0.5 points" in found.evidence[1] and f"--spec {MIDDLE} " in found.command
    assert recommend(made(), tolerance=0.15).spec == LARGE
    assert recommend(made(), share=0.6).spec == SMALL
    assert recommend(made()).spec == MIDDLE  # half a point is the default
    remarks = found.table.set_index("name")["remark"]
    assert (remarks[SMALL], remarks[MIDDLE], remarks["full"]) == ("insufficient", "sufficient", "full")


def test_all_of_it_where_nothing_less_is_enough() -> None:
    found = recommend(made(MEANS | dict.fromkeys(LADDER[1:], 0.65)), tolerance=0.5)
    assert (found.spec, found.is_shown) == ("all_all_all", True)
    assert found.evidence[0].startswith("All of it: ")


def test_what_is_not_shown_is_called_a_guess() -> None:
    found = recommend(made(seeds=3, noise=0.004), tolerance=0.5)
    assert not found.is_shown
    assert "No spec is shown to be enough." in found.evidence[0] and "guess, not shown" in found.evidence[0]
    assert found.evidence[1].startswith("Undetermined: not resolved")
    assert f"--spec {found.spec} " in found.command


def test_the_guess_does_not_jump_over_a_loss() -> None:
    scores = noisy(MEANS | {MIDDLE: 0.6, SMALL: 0.699}, seeds=2)
    found = recommend(study(scores), tolerance=0.5)
    # SMALL is level by chance, but the larger MIDDLE is far below.
    assert (found.spec, found.is_shown) == (LARGE, False)
    assert "too few seeds" in found.evidence[1]


def test_without_full_or_any_loss_that_small_it_says_what_is_left() -> None:
    scores = noisy(MEANS, seeds=2)
    found = recommend(study({name: values for name, values in scores.items() if name != "full"}), tolerance=0.5)
    assert not found.is_shown and "there is no full to compare" in found.evidence[0]
    assert found.spec == "2l_all_0.5w"  # the best mean
    found = recommend(study(noisy(MEANS | dict.fromkeys(LADDER, 0.61), seeds=2)), tolerance=0.5)
    assert (found.spec, found.is_shown) == ("all_all_all", False)
    assert "Every spec loses more than that on average" in found.evidence[0]


def test_several_strategies_share_the_error_between_them() -> None:
    means = {name: mean for name, mean in MEANS.items() if name != LARGEST}
    left = {f"{name},length=left": means[name] - 0.03 for name in (SMALL, MIDDLE)}
    found = recommend(made(means | left), tolerance=0.5)
    assert found.spec == MIDDLE and found.is_shown
    assert "2 strategies were tried; each is tested at 97.5 %" in found.evidence[-1]
    assert "97.5 % confidence" in found.evidence[1]


def test_every_mapping_is_held_against_the_best_full() -> None:
    # The small spec loses nothing against the full of l_top=5, but four points against the best full.
    lower = {f"{SMALL},l_top=5": 0.66, f"{LARGE},l_top=5": 0.66, "full,l_top=5": 0.66}
    found = recommend(made(MEANS | lower), tolerance=0.5)
    assert (found.spec, found.is_shown) == (MIDDLE, True)
    row = found.table.set_index("name").loc[f"{SMALL},depth.l_top=5"]
    assert row["below_full"] == pytest.approx(0.04, abs=0.002)


def test_a_false_recommendation_is_as_rare_as_said() -> None:
    """Every spec loses exactly the allowed loss, so any recommendation is wrong; two strategies, 5 seeds."""
    names = ["none", *LADDER[:3], f"{SMALL},length=left", f"{MIDDLE},length=left", "full"]
    base, random, runs = made(dict.fromkeys(names, 0.6)), np.random.default_rng(2), 500
    means = np.array([0.6, *[0.695] * 5, 0.7])
    wrong = 0
    for _ in range(runs):
        drawn = rescored(
            base, means + 0.005 * random.standard_normal((5, 1)) + 0.002 * random.standard_normal((5, 7)), names
        )
        found = recommend(drawn, tolerance=0.5)
        wrong += found.is_shown and found.spec != "all_all_all"
    assert 0 < wrong <= runs * 0.05 + 3 * np.sqrt(runs * 0.05 * 0.95)


def test_a_budget_buys_the_best_mean_that_fits() -> None:
    of = made(MEANS | {LARGE: 0.72})
    assert recommend(of, budget=stored(of, "full")).spec == LARGE
    assert recommend(of, budget=stored(of, LARGE)).spec == LARGE  # exactly its size fits
    found = recommend(of, budget=stored(of, LARGE) - 1)
    assert (found.spec, found.is_shown) == (MIDDLE, True)
    assert "of the 2 specs that fit it scores best" in found.evidence[0]
    assert "flatters" in " ".join(found.evidence)
    remarks = found.table.set_index("name")["remark"]
    assert (remarks[MIDDLE], remarks[SMALL], remarks[LARGE]) == ("best mean that fits", "worse", "")


def test_what_is_cheaper_and_not_shown_to_be_worse_is_named() -> None:
    of = made(MEANS | {MIDDLE: 0.6989}, noise=0.002)
    found = recommend(of, budget=stored(of, LARGE))
    assert found.spec == LARGE
    [cheaper] = [sentence for sentence in found.evidence if sentence.startswith("Cheaper")]
    assert MIDDLE in cheaper and SMALL not in cheaper


def test_the_intervals_of_the_evidence_are_paired() -> None:
    scores = noisy(MEANS)
    table = recommend(study(scores), tolerance=0.5).table.set_index("name")
    interval = stats.ttest_rel(scores["full"], scores[SMALL]).confidence_interval(0.95)
    row = table.loc[SMALL]
    assert [row["below_full_low"], row["below_full_high"]] == pytest.approx([interval.low, interval.high])
    assert list(table.index) == ["none", *(name.split(",")[0] for name in LADDER), "full"]
    assert row["store_bytes"] == pytest.approx(2000 * row["bytes_per_example"])


def test_more_examples_take_more_of_the_budget() -> None:
    of = made()
    budget = stored(of, LARGE)
    assert recommend(of, budget=budget).spec == LARGE
    found = recommend(of, budget=budget, examples=4000)
    assert found.spec == MIDDLE and "--train-examples 4000" in found.command


def test_seeds_that_some_lack_do_not_decide() -> None:
    scores = noisy({"none": 0.6, SMALL: 0.65, MIDDLE: 0.66, "full": 0.7})
    scores[SMALL] = [*scores[SMALL][:3], np.nan, 0.9]
    scores[MIDDLE] = [*scores[MIDDLE][:4], np.nan]
    assert recommend(study(scores), budget=stored(study(scores), MIDDLE)).spec == MIDDLE


def test_arms_that_are_not_there_are_not_mentioned() -> None:
    scores = {name: values for name, values in noisy(MEANS).items() if name not in ("none", "full")}
    found = recommend(study(scores), budget=1e12)
    assert not any(sentence.startswith("Against") for sentence in found.evidence)
    assert found.table["below_full"].isna().all() and found.table["above_none"].isna().all()


def test_one_seed_has_no_intervals() -> None:
    found = recommend(made(seeds=1), budget=1e12)
    assert "one shared seed, so no interval" in " ".join(found.evidence)


def test_new_examples_widen_what_is_claimed() -> None:
    [of] = studies(DEMO)
    answers = Answers.read(DEMO, of)
    these, new = (recommend(of, tolerance=2, answers=given) for given in (None, answers))
    assert "on these very test examples" in " ".join(these.evidence)
    assert "for new test examples like these" in " ".join(new.evidence)
    widths = [made.table.eval("below_full_high - below_full_low").dropna() for made in (these, new)]
    assert (widths[1] >= widths[0] - 1e-12).all() and widths[1].sum() > widths[0].sum()


def test_requests_that_cannot_be_met_are_refused() -> None:
    of = made()
    with pytest.raises(HskdError, match="give one of --tolerance, --margin-share and --budget"):
        recommend(of, tolerance=1, budget=1e6)
    with pytest.raises(HskdError, match=rf"fits a budget of 10 bytes: the smallest, {SMALL}, takes .* for 2,000"):
        recommend(of, budget=10)
    with pytest.raises(HskdError, match="--examples 0"):
        recommend(of, budget=1e9, examples=0)
    with pytest.raises(HskdError, match="--tolerance -1"):
        recommend(of, tolerance=-1)
    with pytest.raises(HskdError, match="--confidence 95"):
        recommend(of, budget=1e9, confidence=95)
    with pytest.raises(HskdError, match="no trial of the arm spec"):
        recommend(made({"none": 0.6, "full": 0.7}), tolerance=1)
