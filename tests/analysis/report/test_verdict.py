"""The verdict at the top of a report: the answers of the tests, in plain words and with the right numbers."""

from __future__ import annotations

import numpy as np
import pytest
from support.trial_tables import LADDER, study

from hskd.analysis.report.verdict import Evidence, Verdict, verdict
from hskd.analysis.stats.curves import points
from hskd.analysis.stats.sufficiency import Sufficiency, minimum_sufficient
from hskd.analysis.table import Study

SEEDS = np.array([0.0, 0.004, -0.003, 0.002, -0.004])
"""What a seed adds to the score of each of its trials."""
NOISE = np.array([0.0004, -0.0003, 0.0002, -0.0005, 0.0003])


def scores(sizes: dict[str, float], noise: float = 1.0) -> dict[str, list[float]]:
    """Scores of five seeds around a mean for each point; each point has its own noise."""
    return {
        name: (mean + SEEDS + noise * np.roll(NOISE, index)).tolist()
        for index, (name, mean) in enumerate(sizes.items())
    }


def judged(made: Study, margin: float = 0.005) -> tuple[Verdict, list[Sufficiency]]:
    these = minimum_sufficient(made, margin)
    return verdict(Evidence(made, these, [], None), points(made), "bytes_per_example"), these


LEVELS = {"none": 0.70, LADDER[0]: 0.73, LADDER[1]: 0.75, LADDER[2]: 0.8, LADDER[3]: 0.801, "full": 0.801}


def test_what_is_enough_is_said_with_its_bytes_scores_and_seeds() -> None:
    made = study(scores(LEVELS))
    text, [answer] = judged(made)
    assert (text.kind, answer.verdict, answer.name) == ("enough", "sufficient", LADDER[2])
    assert text.headline == "Enough: 7.4 % of the bytes of all hidden states, with the spec 2l_8t_0.5w."
    kept, scored, lost = text.sentences
    assert kept == (
        "This keeps 2 layers, 8 tokens and 50 % of the neurons (7.4 % of all values) and takes 5,926 bytes an example "
        "instead of 80,000."
    )
    point = points(made).set_index("name").loc[LADDER[2]]
    assert (
        f"scores {100 * point['mean']:.1f} % (95 % CI {100 * point['low']:.1f} to {100 * point['high']:.1f})" in scored
    )
    means = made.scores.mean()
    assert f"beside {100 * means['none']:.1f} % without hidden states (none)" in scored
    assert f"and {100 * means['full']:.1f} % with all of them (full)." in scored
    high = answer.tests.set_index("name")["high"][LADDER[2]]
    assert f"loses at most {round(100 * high, 2):g} points, where 0.5 points may be lost" in lost
    assert "(5 seeds, 95 % confidence); this is shown for these test examples." in lost
    assert text.row["spec"] == LADDER[2] and text.row["bytes an example"] == "5,926" and text.row["seeds"] == "5"


def test_where_hidden_states_gain_too_little_there_is_no_gap() -> None:
    text, [answer] = judged(study(scores(dict.fromkeys(LEVELS, 0.75) | {"full": 0.752})))
    assert text.kind == "no gap" and answer.reason.startswith("no gap:")
    assert text.headline == "No gap: hidden states are not shown to gain more than 0.5 points."
    scored, gain, advice = text.sentences
    assert "scores 75.0 % without hidden states (none) and 75.2 % with all of them (full)." in scored
    assert "The gain of full over none is 0.2 points, and at least" in gain and "(5 seeds, 95 % confidence)" in gain
    assert advice.startswith("None is enough here: full gains at most")
    assert text.row["spec"] == ""


def test_what_is_not_resolved_says_what_to_run() -> None:
    text, [answer] = judged(study(scores(LEVELS | {LADDER[2]: 0.76, LADDER[3]: 0.799}, noise=10)))
    assert text.kind == "undetermined" and answer.seeds_needed is not None and answer.seeds_needed > 5
    assert text.headline == "Undetermined: 5 seeds do not show how much is enough."
    reason = text.sentences[-1]
    low, high = (f"{round(100 * answer.tests[end].iloc[-1], 2):g}" for end in ("low", "high"))
    assert f"the largest amount below full (25 % of its bytes), loses between {low} and {high} points" in reason
    assert reason.endswith(f"run the grid with --seeds {answer.seeds_needed}.")
    assert f"{answer.above} is shown not to be enough." in reason


@pytest.mark.parametrize(
    ("without", "seeds", "kind", "says"),
    [
        ("", 1, "undetermined", "Run the grid with --seeds 3 or more."),
        ("full", 5, "undetermined", "There is no full arm"),
        ("none", 5, "undetermined", "There is no none arm"),
        ("specs", 5, "undetermined", "No trial with stored hidden states is done"),
    ],
)
def test_what_is_missing_is_said(without: str, seeds: int, kind: str, says: str) -> None:
    left_out = LADDER if without == "specs" else (without,)
    table = {name: values[:seeds] for name, values in scores(LEVELS).items() if name not in left_out}
    text, _ = judged(study(table))
    assert text.kind == kind and says in " ".join(text.sentences)
    assert "nan" not in " ".join((text.headline, *text.sentences, *text.row.values()))


def test_where_nothing_less_is_enough_the_largest_loss_is_named() -> None:
    text, [answer] = judged(study(scores(LEVELS | {LADDER[2]: 0.76, LADDER[3]: 0.77})))
    assert (text.kind, answer.verdict) == ("nothing less", "all")
    assert "Even 2l_all_0.5w, the largest amount below full" in text.sentences[-1]
    assert f"loses at least {round(100 * answer.tests['low'].iloc[-1], 2):g} points" in text.sentences[-1]


def strategies(second: float, noise: float = 1.0) -> Study:
    """Two strategies of one amount each; the second has that score."""
    sizes = {"none": 0.7, "1l_8t_0.1w": 0.8, "1l_8t_0.1w,width=random": second, "full": 0.801}
    return study(scores(sizes, noise))


def test_the_choice_among_strategies_costs_confidence() -> None:
    text, these = judged(strategies(0.75))
    assert len(these) == 2 and text.kind == "enough" and "with the spec 1l_8t_0.1w." in text.headline
    assert "95 % confidence for the choice among 2 strategies" in text.sentences[-1]


def test_what_is_enough_alone_only_is_not_called_enough() -> None:
    """A bound between those of the two levels: the strategy's own test passes, the choice does not."""
    found = False
    for noise in np.linspace(1, 30, 120):
        text, these = judged(strategies(0.75, float(noise)))
        if text.kind == "undetermined" and any(one.verdict == "sufficient" for one in these):
            assert "Each of these is shown to be enough when it is tested alone: 1l_8t_0.1w" in text.sentences[-1]
            found = True
            break
    assert found


def test_new_test_examples_have_an_answer_of_their_own() -> None:
    made = study(scores(LEVELS))
    these = minimum_sufficient(made)
    for new, says in (
        (minimum_sufficient(made), "this is shown for new test examples like these, too."),
        (minimum_sufficient(made, margin=0.0009), "2l_all_0.5w is shown to be enough."),
        (minimum_sufficient(made, margin=0.0), "this is shown for these test examples, not for new ones."),
    ):
        text = verdict(Evidence(made, these, new, None), points(made), "bytes_per_example")
        assert text.sentences[-1].endswith(says), new[0].sentence
