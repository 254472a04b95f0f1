"""Tables of times of an invented device, for which every ratio is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hskd.analysis.figures.timing import payback_figure, speedup_figure
from hskd.analysis.report.timing import markdown, write_timing_report
from hskd.analysis.stats.timing import Spread, Timings, bars, speedups, with_extraction
from hskd.errors import CorruptionError, HskdError

NOISE = np.array([1.0, 2.0, 4.0])
"""Slow-down of all cases of a round on a busy machine."""
TRAINING = {
    "fine-tuning": 0.1,
    "fine-tuning-cls": 0.09,
    "offline": 0.1,
    "online": 0.45,
    "prediction": 0.1,
    "stock": 0.12,
    "teacher": 0.4,
}


def case(suite: str, group: str, name: str, seconds: float, **known: Any) -> dict[str, Any]:
    extra = {"device_name": "Device", "threads": 2, "torch": "2", "waited_seconds": 10.0, "waited_cpu_seconds": 0.1}
    extra |= {"suite": suite, "group": group, "case": name, "what": name, "student": "tinybert4", "dtype": "fp32"}
    extra |= {"examples_per_second": 1.0, "peak_rss_bytes": 2**20, "lengths": "cola", **known}
    return {"extra_info": extra, "stats": {"data": list(seconds * NOISE)}}


def lengths(offline: float) -> list[dict[str, Any]]:
    fixed = {"online-pad64-fp32": 1.8, "teacher-pad64-fp32": 1.5, "fine-tuning-pad64-fp32": 0.5}
    times = fixed | {"offline-cola-fp32": 0.1, "fine-tuning-cola-fp32": 0.1}
    times |= {"offline-cola-bf16": offline, "fine-tuning-cola-bf16": 0.05}
    return [case("lengths", "tinybert4", name, seconds, what=name.rsplit("-", 2)[0]) for name, seconds in times.items()]


def write(folder: Path, *cases: dict[str, Any], name: str = "made-up") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"benchmarks": list(cases)}))
    return folder


def training(group: str = "tinybert4-pad64-fp32", **known: Any) -> list[dict[str, Any]]:
    return [
        case("training", group, name, seconds, **{"lengths": "pad64", **known}) for name, seconds in TRAINING.items()
    ]


def table(folder: Path, *cases: dict[str, Any]) -> pd.DataFrame:
    return bars(Timings.read(write(folder, *cases)))


def test_ratios_are_of_the_same_round(tmp_path: Path) -> None:
    found = table(tmp_path, *training()).set_index("quantity")
    share = found.loc["offline / online, share of the ceiling"]
    assert share["measured"] == pytest.approx((0.45 / 0.1) / ((0.4 + 0.1) / 0.1))
    assert (share["low"], share["high"], share["rounds"]) == (share["measured"], share["measured"], 3)
    assert not share["met"]
    assert found.loc["offline / fine-tuning", "met"]
    assert found.loc["offline / stock fine-tuning", "measured"] == pytest.approx(1.2)


def test_a_bar_is_missed_by_a_little(tmp_path: Path) -> None:
    slower = [*training()[:2], case("training", "tinybert4-pad64-fp32", "offline", 0.1 / 0.969, lengths="pad64")]
    found = table(tmp_path, *slower, *training()[3:]).set_index("quantity").loc["offline / fine-tuning"]
    assert found["measured"] == pytest.approx(0.969)
    assert not found["met"]


def test_stock_counts_at_the_papers_padding_only(tmp_path: Path) -> None:
    found = table(tmp_path, *training("tinybert4-cola-fp32", lengths="cola"))
    assert set(found["quantity"]) == {"offline / fine-tuning", "offline / online, share of the ceiling"}


@pytest.mark.parametrize(("bf16", "best"), [(0.05, 1.8 / 0.05 / 40), (0.2, 1.8 / 0.1 / 20)])
def test_the_best_precision_is_the_faster_one(tmp_path: Path, bf16: float, best: float) -> None:
    found = table(tmp_path, *lengths(bf16)).set_index("quantity")["measured"]
    assert found["offline on CoLA's lengths, fp32 / online at 64, fp32, share of the ceiling"] == pytest.approx(0.9)
    chosen = found["offline on CoLA's lengths, best precision / online at 64, fp32, share of the ceiling"]
    assert chosen == pytest.approx(best)


def test_stores(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        case("extraction", "cola-fp32", "extraction", 0.5),
        case("extraction", "cola-fp32", "extraction-full", 0.6),
        case("extraction", "cola-fp32", "forward", 0.48),
        case("size", "disk", "superset", 1, store_bytes=104, floor_bytes=100),
        case("size", "disk", "derived", 1, store_bytes=106, floor_bytes=100),
        case("store", "reading", "read", 0.001),
        case("store", "reading", "offline", 0.06),
        case("memory", "training", "4096-MiB", 1, mebibytes=4096, anonymous_bytes=[500 * 2**20] * 3),
        case("memory", "training", "40-MiB", 1, mebibytes=40, anonymous_bytes=[350 * 2**20] * 3),
        case("scale", "examples", "1000", 0.1, examples=1000, anonymous_bytes=[2**20] * 3),
        case("scale", "examples", "1000000", 0.11, examples=1_000_000, anonymous_bytes=[2**20] * 3),
    )
    assert found["measured"].tolist() == pytest.approx([0.96, 0.8, 1.04, 1.06, 60, 150, 1.1])
    assert found["met"].tolist() == [True, False, True, False, True, True, False]


def test_memory_that_the_system_does_not_tell_has_no_bar(tmp_path: Path) -> None:
    small, large = (
        case("memory", "training", str(size), 1, mebibytes=size, anonymous_bytes=[None] * 3) for size in (40, 80)
    )
    assert table(tmp_path, small, large).empty


def test_speedups_and_when_a_store_has_paid_for_itself(tmp_path: Path) -> None:
    times = [*training("tinybert4-cola-fp32", lengths="cola"), *training()]
    times += [case("extraction", "cola-fp32", name, 0.7) for name in ("extraction", "extraction-full")]
    times += [case("extraction", "cola-fp32", "forward", 0.4)]
    found = speedups(Timings.read(write(tmp_path, *times)))
    assert found["speedup"].tolist() == pytest.approx([4.5, 4.5])
    assert found["ceiling"].tolist() == pytest.approx([5, 5])
    assert found["online_ms"].tolist() == pytest.approx([900, 900])  # the median round is twice as slow
    assert found["extraction_ms"].tolist() == pytest.approx([1400, 800])  # without an own time: the teacher's
    assert found["pays_off"].tolist() == pytest.approx([1400 / 700, 800 / 700])
    row = found.iloc[0]
    assert with_extraction(row, np.array([row["pays_off"]])) == pytest.approx([1])
    assert with_extraction(row, np.array([1e9])) == pytest.approx([4.5])


def test_the_report(tmp_path: Path) -> None:
    grid = case("grid", "trials", "3", 0.5, examples=3, overhead_seconds=[0.2, 0.2])
    text = write_timing_report(write(tmp_path, *training(), *lengths(0.05), grid))
    assert text == (tmp_path / "timing.md").read_text()
    assert "| offline / fine-tuning | tinybert4 pad64 fp32 | 1 (1 to 1) | at least 0.97 | yes |" in text
    assert "| grid of 3 trials | of which not training | 0.200 |" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "made-up.json", "timing.md", "bars.csv", "speedups.csv", "others.csv", "speedup.png", "payback.png",
    }  # fmt: skip
    assert len(pd.read_csv(tmp_path / "bars.csv")) == 5


def test_one_suite_alone_has_a_report(tmp_path: Path) -> None:
    text = write_timing_report(
        write(tmp_path, case("store", "reading", "read", 1), case("store", "reading", "offline", 2))
    )
    assert "reading / what training consumes" in text
    assert not (tmp_path / "speedup.png").exists()


def test_figures_show_every_setting(tmp_path: Path) -> None:
    cola = training("rosita6-cola-bf16", lengths="cola", dtype="bf16", student="rosita6")
    found = speedups(Timings.read(write(tmp_path, *training(), *cola)))
    drawn = speedup_figure(found)
    assert [axes.get_title() for axes in drawn.axes] == ["tinybert4", "rosita6"]
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == ["pad64, fp32", "cola, bf16"]
    assert [axes.get_title() for axes in payback_figure(found).axes] == ["rosita6"]


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == (2.0, 1.5, 2.5, 3)


def test_markdown() -> None:
    assert markdown(pd.DataFrame({"a": [1], "b": ["x"]})) == "| a | b |\n| --- | --- |\n| 1 | x |\n"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no timing files"):
        Timings.read(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"benchmarks": [{"extra_info": {}}]}))
    with pytest.raises(CorruptionError, match=r"x\.json: not a timing file"):
        Timings.read(tmp_path)
    write(tmp_path, name="x")
    with pytest.raises(HskdError, match="hold no times"):
        Timings.read(tmp_path)


def test_what_a_killed_run_leaves_is_read_like_a_finished_suite(tmp_path: Path) -> None:
    finished = write(tmp_path / "finished", *training())
    left = tmp_path / "left"
    left.mkdir()
    measured = {
        each["extra_info"]["case"]: {"seconds": each["stats"]["data"], "known": each["extra_info"]}
        for each in training()
    }
    group = {"suite": "training", "name": "tinybert4-pad64-fp32"}
    content = json.dumps({"recipe": {"group": group}, "measured": measured})
    (left / "training-tinybert4-pad64-fp32-0123.json").write_text(content)
    pd.testing.assert_frame_equal(speedups(Timings.read(left)), speedups(Timings.read(finished)))

    (left / "training-tinybert4-pad64-fp32-4567.json").write_text(content)
    with pytest.raises(HskdError, match=r"left: fine-tuning of training tinybert4-pad64-fp32 is in 2 files"):
        Timings.read(left)
