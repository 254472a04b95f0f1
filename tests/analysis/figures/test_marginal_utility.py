from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from support import simulated
from support.legible import require_apart, require_legible

from hskd.analysis.figures.axes import looks
from hskd.analysis.figures.hover import marks
from hskd.analysis.figures.marginal_utility import TITLE, caption, marginal_utility_figure
from hskd.analysis.stats.curves import marginal_utility, points
from hskd.analysis.stats.sufficiency import minimum_sufficient
from hskd.analysis.table import Study
from hskd.errors import HskdError


def study(grid: str = "demo", seeds: int = 5, without: str = "") -> Study:
    table = simulated.simulate(grid, seeds=seeds)
    return Study.of(table[table["arm"] != without])


def bars(axes: Axes) -> list[np.ndarray]:
    """Return the ends of the error bars, lowest amount first."""
    collections = [one for one in axes.collections if isinstance(one, LineCollection)]
    segments = [segment for one in collections for segment in one.get_segments() if segment[0, 0] == segment[1, 0]]
    return sorted(segments, key=lambda segment: float(segment[0, 0]))


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


@pytest.mark.parametrize(("relative", "seeds"), [(False, 1), (False, 5), (True, 5)])
def test_what_is_drawn_is_what_the_table_says(relative: bool, seeds: int) -> None:
    trials = study(seeds=seeds)
    axes = marginal_utility_figure(trials, relative=relative).axes[0]
    table = points(trials)
    curve = table[table["arm"].isin(("spec", "full"))]
    column = "relative" if relative else "mean"
    lines = {line.get_label(): line for line in axes.get_lines()}
    drawn_points = curve[["bytes_per_example"]].assign(height=100 * curve[column])
    np.testing.assert_allclose(lines["mean per spec"].get_xydata(), drawn_points)

    low, high = (f"{column}_low", f"{column}_high") if relative else ("low", "high")
    ends = 100 * curve[[low, high]].dropna().to_numpy()
    assert len(ends) == (0 if seeds == 1 else 6)
    np.testing.assert_allclose(np.reshape([segment[:, 1] for segment in bars(axes)], (-1, 2)), ends)

    dots = [one for one in axes.collections if isinstance(one, PathCollection)]
    drawn = sorted(y for one in dots for y in one.get_offsets()[:, 1])
    own = trials.trials[trials.trials["arm"].isin(("spec", "full"))]
    np.testing.assert_allclose(drawn, [] if relative else sorted(100 * own["score"]))


def test_markers_are_where_they_are_drawn() -> None:
    trials = study()
    figure = marginal_utility_figure(trials)
    axes = figure.axes[0]
    table = points(trials)
    curve = table[table["arm"].isin(("spec", "full"))]
    width, height = figure.bbox.width, figure.bbox.height
    places = {mark.key.name: mark for mark in marks(figure)[::-1] if mark.key.kind == "point"}
    for name, stored, mean in zip(curve["name"], curve["bytes_per_example"], 100 * curve["mean"], strict=True):
        x, y = axes.transData.transform((stored, mean))
        assert (places[name].left, places[name].top) == pytest.approx((x / width, 1 - y / height))
    gains = [int(mark.key.name) for mark in marks(figure) if mark.key.kind == "gain"]
    assert sorted(gains) == list(marginal_utility(trials).index)
    assert places["none"].left > max(places[name].left for name in curve["name"])


def test_arms_are_horizontal_lines_with_their_names_and_scores() -> None:
    trials = study("joint")
    axes = marginal_utility_figure(trials).axes[0]
    means = points(trials).set_index("name")["mean"]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for arm in ("none", "full", "gold", "paper_none", "shuffled"):
        np.testing.assert_allclose(lines[arm].get_ydata(), 100 * means[arm])
        assert f"{arm} {100 * means[arm]:.1f}" in [text.get_text() for text in axes.texts]
    np.testing.assert_allclose(lines["teacher"].get_ydata(), 81.7)
    assert len({str(lines[arm].get_linestyle()) for arm in ("none", "gold")}) == 1  # they differ only in dashes:
    patterns = {str(lines[arm]._unscaled_dash_pattern) for arm in ("teacher", "none", "full", "gold", "shuffled")}
    assert len(patterns) == 5


def test_the_lower_panel_is_the_gain_per_doubling() -> None:
    trials = study()
    figure = marginal_utility_figure(trials)
    steps = marginal_utility(trials)
    [zero, gains, *_] = figure.axes[1].get_lines()
    np.testing.assert_allclose(zero.get_ydata(), 0)
    np.testing.assert_allclose(gains.get_xydata(), steps[["at"]].assign(height=100 * steps["gain"]))
    np.testing.assert_allclose([bar[:, 1] for bar in bars(figure.axes[1])], 100 * steps[["low", "high"]])
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


@pytest.mark.parametrize("x", ["kept_per_example", "fraction"])
def test_other_amounts_lie_along_x(x: str) -> None:
    trials = study()
    figure = marginal_utility_figure(trials, x)
    curve = points(trials).query("arm in ('spec', 'full')").sort_values(x)
    curve[x] *= 100 if x == "fraction" else 1
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["mean per spec"].get_xdata(), curve[x])
    ends = curve[x].to_numpy()
    np.testing.assert_allclose(figure.axes[1].get_lines()[1].get_xdata(), np.sqrt(ends[1:] * ends[:-1]), rtol=1e-6)


def test_a_full_that_strategies_share_is_drawn_once() -> None:
    trials = study("length")
    lines = marginal_utility_figure(trials).axes[0].get_lines()
    full = 100 * points(trials).set_index("name").loc["full", "mean"]
    markers = [line for line in lines if line.get_marker() not in ("None", None, "")]
    amount = trials.points.at["full", "bytes_per_example"]
    at_full = [line for line in markers if np.isclose(np.asarray(line.get_xdata(), dtype=float), amount).any()]
    assert [line.get_label() for line in at_full if line.get_marker() == "o"] == ["full"]  # others are bar ends
    np.testing.assert_allclose(at_full[0].get_ydata(), full)
    assert not set(looks(trials.strategies)) & {line.get_label() for line in at_full}


def test_strategies_differ_in_marker_and_dashes_and_each_has_its_own_full() -> None:
    trials = study("depth")
    figure = marginal_utility_figure(trials)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["l_top=4", "l_top=5", "l_top=6"]
    handles = legend.get_lines()
    assert len({handle.get_marker() for handle in handles}) == 3
    assert len({handle.get_color() for handle in handles}) == 3
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    means = points(trials).set_index("name")["mean"]
    for strategy in trials.strategies:
        np.testing.assert_allclose(lines[strategy].get_ydata()[-1], 100 * means[f"full,{strategy}"])
    assert "full" not in lines  # there are three of them


def test_the_strip_shows_where_the_minimum_lies() -> None:
    trials = study()
    minimum = minimum_sufficient(trials)
    assert (minimum[0].verdict, minimum[0].above, minimum[0].name) == ("sufficient", "2l_3t_0.1w", "2l_8t_0.5w")
    figure = marginal_utility_figure(trials, minimum=minimum)
    above, span, name = figure.axes[1].get_lines()
    amount = trials.points["bytes_per_example"]
    np.testing.assert_allclose(above.get_xdata(), amount["2l_3t_0.1w"])
    np.testing.assert_allclose(name.get_xdata(), amount["2l_8t_0.5w"])
    np.testing.assert_allclose(span.get_xdata(), [amount["2l_3t_0.1w"], amount["2l_8t_0.5w"]])
    assert texts(figure, 1) == ["2l_8t_0.5w"]
    assert above.get_markerfacecolor() == "white" and name.get_markerfacecolor() != "white"


def test_the_strip_says_undetermined() -> None:
    trials = study(seeds=1)
    figure = marginal_utility_figure(trials, minimum=minimum_sufficient(trials))
    assert texts(figure, 1) == ["undetermined"]


def test_one_dimension_names_its_amounts_along_the_top() -> None:
    figure = marginal_utility_figure(study("width"), "fraction")
    [top] = figure.axes[0].child_axes
    figure.draw_without_rendering()
    assert top.get_xlabel() == "neurons kept (%)"
    assert [label.get_text() for label in top.get_xticklabels()] == ["0.3", "1", "3", "10", "30", "100"]
    # At equal amounts, strategies differ in bytes, so no tick would fit all of them.
    assert not marginal_utility_figure(study("width"), "bytes_per_example").axes[0].child_axes


@pytest.mark.parametrize("grid", list(simulated.GRIDS))
@pytest.mark.parametrize("seeds", [1, 5])
def test_everything_is_legible(grid: str, seeds: int) -> None:
    trials = study(grid, seeds)
    figure = marginal_utility_figure(trials, minimum=minimum_sufficient(trials), title=TITLE)
    require_legible(figure)
    require_apart(figure)


def test_points_are_named_where_there_is_room() -> None:
    specs = {name for name in study().points.index if name not in ("none", "full")}
    assert specs <= set(texts(marginal_utility_figure(study())))
    joint = study("joint")
    assert not set(joint.points.index) & set(texts(marginal_utility_figure(joint)))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(HskdError, match="x: 'w' is no column of amounts"):
        marginal_utility_figure(study(), "w")
    with pytest.raises(HskdError, match="no trial of the arm spec"):
        marginal_utility_figure(study(without="spec"))
    with pytest.raises(HskdError, match="none or full is missing"):
        marginal_utility_figure(study(without="none"), relative=True)
    with pytest.raises(HskdError, match="full does not score above none"):
        marginal_utility_figure(Study.of(simulated.simulate(gap=-0.03)), relative=True)
    unknown = Study.of(simulated.simulate(kept_values=np.nan))
    with pytest.raises(HskdError, match="column kept_per_example: missing"):
        marginal_utility_figure(unknown, "kept_per_example")


@pytest.mark.parametrize("without", ["none", "full"])
def test_a_missing_baseline_still_gives_a_curve(without: str) -> None:
    figure = marginal_utility_figure(study(without=without))
    assert not any(text.startswith(without) for text in texts(figure))


def test_a_lone_trial_can_be_drawn() -> None:
    table = simulated.simulate("demo")
    trials = Study.of(table[table["spec"] == "1l_1t_0.1w"].head(1))
    require_legible(marginal_utility_figure(trials, minimum=minimum_sufficient(trials)))


def test_the_caption_follows_the_seeds() -> None:
    assert caption(study(seeds=1)).endswith("1 seed: each point is a single trial and carries no interval.")
    assert "Means over 5 seeds with 95 % t-intervals; pale dots are trials." in caption(study())
    assert "Fieller's 95 % intervals" in caption(study(), relative=True)
    assert "set aside" in caption(study("length")) and "set aside" not in caption(study())
    table = simulated.simulate()
    uneven = Study.of(pd.concat([table[table["arm"] != "none"], table[table["arm"] == "none"].head(1)]))
    assert "Means over 1 to 5 seeds" in caption(uneven)
    assert "Where there is 1 seed there is no interval." in caption(uneven)
    assert "No intervals" in caption(Study.of(simulated.simulate(gap=0.0)), relative=True)
