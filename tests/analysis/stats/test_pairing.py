from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import simulated
from support.legible import require_apart, require_legible
from typer.testing import CliRunner

from hskd.analysis.figures.pairing import pairing_figure
from hskd.analysis.stats.pairing import grid_differences, pair
from hskd.analysis.table import Study
from hskd.cli.app import app
from hskd.errors import HskdError


def lifted(table: pd.DataFrame, by: float, noise: float = 0.0) -> pd.DataFrame:
    """Return ``table`` with ``by`` added to all scores except those of none."""
    drawn = np.random.default_rng(0).normal(0, noise, len(table))
    return table.assign(score=table["score"] + (by + drawn) * (table["arm"] != "none"))


def test_the_difference_is_the_paired_t_test_of_each_point() -> None:
    first, second = simulated.simulate(seeds=6), lifted(simulated.simulate(seeds=6), 0.01, noise=0.004)
    pairs = pair(Study.of(first), Study.of(second)).set_index("name")
    assert set(pairs.index) == set(Study.of(first).points.index)
    for name in ("full", "1l_3t_0.1w"):
        ours, theirs = Study.of(first).scores[name], Study.of(second).scores[name]
        expected = stats.ttest_rel(theirs, ours)
        assert pairs.loc[name, "p"] == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        assert tuple(pairs.loc[name, ["low", "high"]]) == pytest.approx((low, high))
        assert pairs.loc[name, "difference"] == pytest.approx((theirs - ours).mean())
    assert (pairs["p_holm"] >= pairs["p"]).all()
    assert pairs.loc["full", "verdict"] == "second higher"
    assert pairs.loc["none", "verdict"] == "undetermined"


def test_only_shared_seeds_and_points_count() -> None:
    first, second = simulated.simulate(seeds=5), simulated.simulate(seeds=3)
    pairs = pair(Study.of(first), Study.of(second[second["spec"] != "2l_8t_0.1w"]))
    assert (pairs["n"] == 3).all()
    assert "2l_8t_0.1w" not in set(pairs["name"])
    assert (pairs["verdict"] == "undetermined").all()


def test_above_none_drops_what_both_arms_share() -> None:
    first = simulated.simulate(seeds=5)
    second = first.assign(score=first["score"] + 0.02)  # for example a better teacher, which also lifts none
    assert pair(Study.of(first), Study.of(second))["difference"].to_numpy() == pytest.approx(0.02)
    above = pair(Study.of(first), Study.of(second), above_none=True)
    assert "none" not in set(above["name"])
    assert above["difference"].to_numpy() == pytest.approx(0.0, abs=1e-12)


def test_what_cannot_be_paired_is_refused() -> None:
    table = simulated.simulate(seeds=3)
    with pytest.raises(HskdError, match="task: mr and rte cannot be paired"):
        pair(Study.of(table), Study.of(table.assign(task="rte")))
    with pytest.raises(HskdError, match="share no point"):
        pair(Study.of(table), Study.of(table.assign(seed=table["seed"] + 10)))
    bare = table[table["arm"] != "none"]
    with pytest.raises(HskdError, match="no trials of the arm none"):
        pair(Study.of(table), Study.of(bare), above_none=True)


def test_the_figure_can_be_read() -> None:
    pairs = pair(Study.of(simulated.simulate(seeds=3)), Study.of(lifted(simulated.simulate(seeds=3), 0.01, 0.003)))
    figure = pairing_figure(pairs, "mr-width", "mr-zero-dropped")
    require_legible(figure)
    require_apart(figure)


def test_the_command_writes_both_and_says_what_sets_them_apart(tmp_path: Path) -> None:
    plain = simulated.write(tmp_path / "plain", simulated.simulate(seeds=3))
    other = simulated.write(tmp_path / "other", lifted(simulated.simulate(seeds=3), -0.02, noise=0.001))
    for folder, compat in ((plain, {}), (other, {"compat": ["zero_dropped"]})):
        students = [{"layers": 3, "heads": 2 if compat else 4}]
        training = {"tau": 1.0 if compat else 0, "arm": "spec"} | compat
        content = {"name": folder.name, "seeds": 3, "training": training, "students": students, "trials": ["x"]}
        (folder / "grid.yaml").write_text(json.dumps(content))
    sets_apart = [
        "students.0.heads 4, then 2",
        "training.compat off, then ['zero_dropped']",
        "training.tau 0, then 1.0",
    ]
    assert grid_differences(plain, other) == sets_apart
    assert grid_differences(plain, tmp_path) == []
    result = CliRunner().invoke(app, ["compare", str(plain), str(other)])
    assert result.exit_code == 0, result.output
    assert all(text in result.output for text in sets_apart)
    assert ") *" in result.output
    table = pd.read_csv(other / "comparisons" / "plain-other.csv")
    assert table.set_index("name").loc["full", "difference"] == pytest.approx(-0.02, abs=0.002)
    assert (other / "comparisons" / "plain-other.png").stat().st_size > 5000


def test_a_table_of_several_studies_is_refused(tmp_path: Path) -> None:
    one = simulated.simulate(seeds=2)
    folder = simulated.write(tmp_path / "two", one, one.assign(student="rosita-6l-2h-768ffn"))
    result = CliRunner().invoke(app, ["compare", str(folder), str(folder)])
    assert isinstance(result.exception, HskdError)
    assert "holds 2 studies" in str(result.exception)
