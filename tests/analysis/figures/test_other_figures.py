"""The figures of strategies, of all dimensions together, and of the tests of the minimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from support import simulated, trial_tables
from support.legible import require_apart, require_legible, shown_texts

from hskd.analysis.figures import equal_bytes as rows_of
from hskd.analysis.figures import next_byte, pareto, sufficiency, surface
from hskd.analysis.figures import strategies as forest
from hskd.analysis.figures.axes import legend_columns, looks
from hskd.analysis.figures.hover import marks
from hskd.analysis.figures.minimum import minimum_figure
from hskd.analysis.stats import joint, strategies
from hskd.analysis.stats.equal_bytes import BEHIND, BEST_MEAN, equal_bytes
from hskd.analysis.stats.sufficiency import minimum_sufficient
from hskd.analysis.table import Study
from hskd.errors import HskdError


def study(grid: str, seeds: int = 5, **changes: float) -> Study:
    return Study.of(simulated.simulate(grid, seeds=seeds, **changes))


def rows(axes: Axes) -> dict[str, float]:
    """Return the names on the left, and their heights."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, map(float, axes.get_yticks()), strict=True))


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_forest_plot_has_each_pair_with_its_interval(seeds: int) -> None:
    comparison = strategies.compare_strategies(study("length", seeds))
    figure = forest.strategies_figure(comparison)
    require_legible(figure)
    require_apart(figure)
    [axes] = figure.axes
    names = rows(axes)
    assert "length:" in names
    for row in comparison.to_dict("records"):
        y = names[f"{row['a']} \N{MINUS SIGN} {row['b']}"]
        lines = [line for line in axes.get_lines() if np.allclose(np.asarray(line.get_ydata(), dtype=float), y)]
        ends = [line.get_xdata() for line in lines if len(line.get_xdata()) == 2]
        [mark] = [line for line in lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(mark.get_xdata(), 100 * row["difference"])
        assert (mark.get_markerfacecolor() == "white") == (row["verdict"] == strategies.UNDETERMINED)
        if seeds == 1:
            assert not ends
        else:
            np.testing.assert_allclose(ends, [[100 * row["low"], 100 * row["high"]]])
    shown = (comparison["verdict"] != strategies.UNDETERMINED).sum()
    assert shown == (0 if seeds == 1 else 2)  # otherwise neither mark is tested
    assert ("One seed gives no interval" in forest.caption(comparison, 0.95)) == (seeds == 1)


@pytest.mark.parametrize("seeds", [1, 5])
def test_specs_of_about_equal_bytes_have_a_row_each(seeds: int) -> None:
    trials = study("joint", seeds)
    compared = equal_bytes(trials)
    figure = rows_of.equal_bytes_figure(trials, compared)
    require_legible(figure)
    require_apart(figure)
    [axes] = figure.axes
    names = rows(axes)
    for row in compared.to_dict("records"):
        y = names[str(row["name"])]
        lines = [line for line in axes.get_lines() if np.allclose(np.asarray(line.get_ydata(), dtype=float), y)]
        ends = [line.get_xdata() for line in lines if len(line.get_xdata()) == 2]
        [mark] = [line for line in lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(mark.get_xdata(), 100 * row["mean"])
        assert (mark.get_markerfacecolor() != "white") == (row["verdict"] in (BEHIND, BEST_MEAN))
        np.testing.assert_allclose(ends, [] if seeds == 1 else [[100 * row["low"], 100 * row["high"]]])
    levels = {
        line.get_label(): line.get_xdata()[0] for line in axes.get_lines() if line.get_label() in ("none", "full")
    }
    assert levels == pytest.approx({name: 100 * trials.scores[name].mean() for name in ("none", "full")})
    assert ("One seed gives no interval" in rows_of.caption(compared, 0.95)) == (seeds == 1)
    with pytest.raises(HskdError, match="no two specs"):
        rows_of.equal_bytes_figure(trials, compared.iloc[:0])


def test_one_strategy_is_nothing_to_compare() -> None:
    with pytest.raises(HskdError, match="strategies: only one per dimension"):
        forest.strategies_figure(strategies.compare_strategies(study("joint")))


def cells(axes: Axes) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


def test_heat_maps_have_every_score_in_its_place_and_hatch_what_was_not_run() -> None:
    table = joint.surface(study("joint"))
    figure = surface.surface_figure(table)
    require_legible(figure)
    require_apart(figure)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["1 layer", "2 layers", "all layers"]
    tokens, neurons = ["1", "3", "8", "all"], [0.03, 0.1, 0.3, 0.5, 1.0]
    for title, axes in panels.items():
        rows_of = table[table["n"] == title.split()[0]]
        expected = {
            (neurons.index(w), tokens.index(str(k))): f"{100 * score:.1f}"
            for k, w, score in zip(rows_of["k"], rows_of["w"], rows_of["score"], strict=True)
        }
        assert cells(axes) == expected
        patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert sum(bool(patch.get_hatch()) for patch in patches) == 20 - len(expected)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "10", "30", "50", "all"]
    assert surface.caption(table) == "Mean score at each combination of amounts, over 5 seeds; hatched: not run."


def test_many_heat_maps_go_on_in_a_second_row() -> None:
    table = joint.surface(study("joint"))
    third = table[table["n"] == "2"].assign(n="3")
    more = pd.concat([table.astype({"n": str}), third], ignore_index=True)
    more["n"] = pd.Categorical(more["n"], ["1", "2", "3", "all"], ordered=True)
    figure = surface.surface_figure(more)
    require_legible(figure)
    require_apart(figure)
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["1 layer", "2 layers", "3 layers", "all layers"]
    assert all(label.get_visible() for axes in panels[1:] for label in axes.get_xticklabels())


def test_a_heat_map_shows_one_strategy_and_says_so() -> None:
    table = joint.surface(study("length"))
    shown = surface.chosen(table)
    assert not shown.duplicated(["n", "k", "w"]).any() and len(shown) < len(table)
    assert f"Shows {len(shown)} of {len(table)} points of {shown['strategy'].iloc[-1]}" in surface.caption(table)
    require_legible(surface.surface_figure(table))
    with pytest.raises(HskdError, match="no point whose amounts are numbers"):
        surface.surface_figure(table.head(0))


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_front_is_joined_and_named_and_the_rest_pale(seeds: int) -> None:
    trials = study("joint", seeds)
    table = joint.pareto(trials)
    figure = pareto.pareto_figure(trials, table)
    require_legible(figure)
    require_apart(figure)
    [axes] = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    kept = table[table["arm"].isin(("spec", "full"))].sort_values("bytes_per_example")
    for label, front in (("on the front", True), ("beaten", False)):
        expected = kept.loc[kept["front"] == front, ["bytes_per_example", "mean"]].to_numpy() * [1, 100]
        found = lines[label].get_xydata()
        np.testing.assert_allclose(found[np.argsort(found[:, 0])], expected[np.argsort(expected[:, 0])])
    assert set(kept.loc[kept["front"], "name"]) <= {text.get_text() for text in axes.texts}
    assert ("Bars" in pareto.caption(table, 0.95)) == (seeds > 1)


def test_a_front_of_none_alone_is_not_drawn() -> None:
    table = simulated.simulate("joint", gap=-0.05, noise=0.0)
    trials = Study.of(table)
    with pytest.raises(HskdError, match="nothing that takes bytes beats none"):
        pareto.pareto_figure(trials, joint.pareto(trials))


def test_next_byte_bars_are_gains_per_doubling() -> None:
    trials = study("joint", noise=0.0004)
    steps = joint.next_byte(trials)
    figure = next_byte.next_byte_figure(trials, steps)
    require_legible(figure)
    require_apart(figure)
    [axes] = figure.axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx(list(100 * steps["gain_per_doubling"]))
    assert len({(bar.get_hatch(), bar.get_facecolor()[:3]) for bar in bars}) == steps["dimension"].nunique()
    best = (steps["verdict"] == joint.BEST).sum()
    assert best > 0  # otherwise the mark is not tested
    assert [text.get_text() for text in axes.texts] == [joint.BEST] * best
    assert [f"from {name}:" for name in steps["from_name"].unique()] == [name for name in rows(axes) if ":" in name]
    assert "Dark: shown to be the best buy" in next_byte.caption(steps, 0.95)
    assert "One seed gives no interval" in next_byte.caption(joint.next_byte(study("joint", 1)), 0.95)
    with pytest.raises(HskdError, match="has a neighbour"):
        next_byte.next_byte_figure(trials, steps.head(0))


@pytest.mark.parametrize("grid", ["demo", "length", "selectors"])
def test_the_tests_of_the_minimum_are_drawn_with_bounds_and_margin(grid: str) -> None:
    answers = minimum_sufficient(study(grid))
    figure = sufficiency.sufficiency_figure(answers)
    require_legible(figure)
    require_apart(figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    for axes, answer in zip(panels, answers, strict=True):
        assert axes.get_title(loc="left") == answer.strategy
        lines = axes.get_lines()
        np.testing.assert_allclose(lines[0].get_xdata(), 0)
        np.testing.assert_allclose(lines[1].get_xdata(), 0.5)
        assert list(rows(axes)) == [name.split(",")[0] for name in answer.tests["name"][::-1]]
        marks = [line for line in lines if len(line.get_xdata()) == 1]
        bounds = [line.get_xdata() for line in lines[2:] if len(line.get_xdata()) == 2]
        tests = answer.tests[::-1]
        np.testing.assert_allclose([mark.get_xdata()[0] for mark in marks], 100 * tests["loss"])
        np.testing.assert_allclose(bounds, 100 * tests[["low", "high"]])
        looks = {verdict: mark.get_marker() for verdict, mark in zip(tests["verdict"], marks, strict=True)}
        assert len(set(looks.values())) == len(looks)
    # The last panel of each column has tick labels.
    assert all(label.get_visible() for axes in panels[-3:] for label in axes.get_xticklabels())
    [legend] = figure.legends
    used = {verdict for answer in answers for verdict in answer.tests["verdict"]}
    assert {text.get_text() for text in legend.get_texts()} == used and len(used) > 1
    assert "0.5 points" in sufficiency.caption(answers)
    assert sufficiency.caption(answers).endswith("these very test examples.")


def test_nothing_tested_is_nothing_to_draw() -> None:
    answers = minimum_sufficient(study("demo", seeds=1))
    with pytest.raises(HskdError, match="minimum: no amount could be tested"):
        sufficiency.sufficiency_figure(answers)


def test_amounts_as_text_are_plain() -> None:
    from hskd.analysis.figures.axes import plain

    values = pd.Series([0.003, 0.1, 25, 100, 20000])
    assert [plain(value) for value in values] == ["0.003", "0.1", "25", "100", "20,000"]


def test_strategies_have_colours_and_a_legend_on_the_front() -> None:
    scores = {
        "none": [0.70, 0.71],
        "1l_3t_0.1w": [0.72, 0.73],  # beaten: pca scores more with fewer bytes
        "1l_all_0.01w,width=pca": [0.75, 0.76],
        "2l_all_0.1w,width=pca,rotate=true,precision=int4": [0.76, 0.77],
        "2l_all_0.4w,width=projection": [0.77, 0.78],
        "full": [0.79, 0.80],
    }
    made = trial_tables.study(scores)
    figure = pareto.pareto_figure(made, joint.pareto(made))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*made.strategies, "full"]
    handles = figure.legends[0].get_lines()
    assert len({handle.get_color() for handle in handles}) == len(names) == 5
    short = {text.get_text() for text in figure.axes[0].texts}
    assert {"1l_all_0.01w", "2l_all_0.1w", "2l_all_0.4w", "full"} <= short
    assert "1l_3t_0.1w" not in short


def test_of_many_strategies_no_two_look_alike() -> None:
    names = [f"strategy {number}" for number in range(24)]
    look = looks(names)
    assert len({(seen.colour, seen.marker) for seen in look.values()}) == len(names)
    assert all(seen.faint for seen in look.values()) and not any(seen.faint for seen in looks(names[:6]).values())
    assert legend_columns(names) == 5
    assert legend_columns(["all tokens, pca, rotate=true, int8"] * 14) == 3


@pytest.mark.parametrize("amounts", [[64, 173, 433], [1000 * 1.1**step for step in range(12)], [64], []])
def test_a_search_has_bytes_as_plain_numbers_along_x(amounts: list[float]) -> None:
    names = [f"spec{index}" for index in range(len(amounts))]
    screened = pd.DataFrame(
        {"name": names, "bytes_per_example": amounts, "loss": 0.01, "expected": 0.01, "spread": 0.0}
    )
    tests = screened.assign(low=0.0, high=0.02, verdict="enough")
    figure = minimum_figure(tests[:1], screened[1:], 0.3, 0.1)
    require_legible(figure)
    texts = shown_texts(figure)
    ticks = [label for label in figure.axes[0].get_xticklabels() if label in texts]
    assert ticks and all(label.get_text().replace(",", "").replace(".", "").isdigit() for label in ticks)
    assert not any("$" in text.get_text() for text in texts)
    assert [mark.key.name for mark in marks(figure)] == [*names[1:], *names[:1]]
