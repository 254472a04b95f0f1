"""Tables from the timing files of ``hskd bench``: speed-ups, and bars that measurements must reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hskd.errors import CorruptionError, HskdError
from hskd.io import read_json

PAPER = (2.7, 3.4)
"""Lowest and highest speed-up of offline over online distillation that arXiv 2106.05691 reports."""
MIB = 2**20
Seconds = Mapping[str, np.ndarray]
"""Seconds per batch of each case of a group, one value per round."""


class Spread(NamedTuple):
    """Median and quartiles of a quantity over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: np.ndarray | list[float]) -> Spread:
        """Return the spread of ``values``, one per round."""
        low, median, high = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high), len(values))


@dataclass(frozen=True, eq=False)
class Timings:
    """The contents of a device's timing files.

    Attributes:
        cases: one row per case: suite, group, case, ``seconds`` (tuple: per batch, in each round), and all of
            ``extra_info``.
        device: description for readers: device, threads and version of torch.
    """

    cases: pd.DataFrame
    device: str

    @classmethod
    def read(cls, folder: Path) -> Timings:
        """Read every timing file in ``folder``: one per suite, or one per group, as in ``work/bench``.

        Raises:
            HskdError: there is no timing file, or two hold the same case.
            CorruptionError: a file is not one that ``hskd bench`` wrote.
        """
        files = sorted(folder.glob("*.json"))
        if not files:
            raise HskdError(f"{folder}: no timing files (*.json) there; make them with `hskd bench`.")
        rows: list[dict[str, Any]] = []
        for file in files:
            content = read_json(file)
            try:
                rows += _cases(content)
                [row["suite"] + row["group"] + row["case"] for row in rows]
            except (KeyError, TypeError):
                raise CorruptionError(f"{file}: not a timing file of `hskd bench`; delete it and run that.") from None
        if not rows:
            raise HskdError(f"{folder}: the timing files hold no times; run `hskd bench` again.")
        names = Counter((row["suite"], row["group"], row["case"]) for row in rows)
        (suite, group, case), times = names.most_common(1)[0]
        if times > 1:
            raise HskdError(
                f"{folder}: {case} of {suite} {group} is in {times} files, measured with other code, settings or "
                "devices; give each its own folder."
            )
        first = rows[0]
        threads = f"{first['threads']} thread{'' if first['threads'] == 1 else 's'}"
        return cls(pd.DataFrame(rows), f"{first['device_name']}, {threads}, torch {first['torch']}")

    def groups(self, suite: str) -> Iterator[tuple[pd.DataFrame, Seconds]]:
        """Yield the groups of a suite: their cases as rows indexed by name, and the seconds of each case."""
        for _, group in self.cases[self.cases["suite"] == suite].groupby("group", sort=False):
            group = group.set_index("case")
            rounds = min(len(seconds) for seconds in group["seconds"])
            yield group, {str(name): np.array(seconds[:rounds]) for name, seconds in group["seconds"].items()}


def _cases(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cases of a timing file. It holds a finished suite, or one group of an interrupted run."""
    if "measured" in content:
        group = content["recipe"]["group"]
        names = {"suite": group["suite"], "group": group["name"]}
        for case, measured in content["measured"].items():
            yield {**names, "case": case, **measured["known"], "seconds": tuple(measured["seconds"])}
        return
    for bench in content["benchmarks"]:
        yield {**bench["extra_info"], "seconds": tuple(bench["stats"]["data"])}


def speedups(timings: Timings) -> pd.DataFrame:
    """Return a row per student, length setting and precision of the training suite.

    Columns: student, lengths, dtype; for each way of training its median ``<way>_ms`` per batch; ``speedup``,
    ``speedup_low``, ``speedup_high`` (online / offline time, median and quartiles of paired rounds); ``ceiling``
    ((teacher + fine-tuning) / fine-tuning); ``extraction_ms`` per batch; ``pays_off`` (passes over the data after which
    a store, extraction included, has cost less time than running the teacher on every batch);
    ``share_of_matmul_peak``, ``examples_per_second`` and ``peak_rss_mib`` of offline training; ``rounds``.
    """
    extraction = {
        (first["lengths"], first["dtype"]): float(np.median(seconds["extraction"]))
        for group, seconds in timings.groups("extraction")
        for first in [group.iloc[0]]
    }
    rows = []
    for group, seconds in timings.groups("training"):
        first = group.iloc[0]
        speedup = Spread.of(seconds["online"] / seconds["offline"])
        medians = {name: float(np.median(values)) for name, values in seconds.items() if name != "matmul"}
        # Where extraction over these batches was not timed, the teacher's forward pass is used instead.
        extract = extraction.get((first["lengths"], first["dtype"]), medians["teacher"])
        rows.append(
            {
                "student": first["student"],
                "lengths": first["lengths"],
                "dtype": first["dtype"],
                **{f"{name}_ms": 1000 * value for name, value in medians.items()},
                "speedup": speedup.median,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "ceiling": float(np.median(_ceiling(seconds))),
                "extraction_ms": 1000 * extract,
                "pays_off": extract / max(medians["online"] - medians["offline"], 1e-12),
                "share_of_matmul_peak": group["share_of_matmul_peak"].get("offline", np.nan)
                if "share_of_matmul_peak" in group
                else np.nan,
                "examples_per_second": group["examples_per_second"]["offline"],
                "peak_rss_mib": group["peak_rss_bytes"]["offline"] / MIB,
                "rounds": speedup.rounds,
            }
        )
    return pd.DataFrame(rows)


def with_extraction(row: Mapping[str, Any], passes: np.ndarray) -> np.ndarray:
    """Return the speed-up over online distillation, extraction included.

    Args:
        row: a row of :func:`speedups`.
        passes: total epochs of the HSK stage of all trials that share the store, ``(P,)``.
    """
    online, offline, extraction = (row[f"{name}_ms"] for name in ("online", "offline", "extraction"))
    shared: np.ndarray = passes * online / (extraction + passes * offline)
    return shared


def bars(timings: Timings) -> pd.DataFrame:
    """Return the bars that measurements must reach, a row each.

    Columns: quantity, setting, measured (median), low, high (quartiles), rounds, side (``at least`` or ``at most``),
    bar, met. Quantities that were not measured have no row.
    """
    rows = [*_training_bars(timings), *_captured_bars(timings), *_lengths_bars(timings), *_store_bars(timings)]
    table = pd.DataFrame(
        [
            {
                "quantity": quantity,
                "setting": setting,
                "measured": measured.median,
                "low": measured.low,
                "high": measured.high,
                "rounds": measured.rounds,
                "side": side,
                "bar": bar,
                "met": bool(measured.median >= bar if side == "at least" else measured.median <= bar),
            }
            for quantity, setting, measured, side, bar in rows
        ],
        columns=["quantity", "setting", "measured", "low", "high", "rounds", "side", "bar", "met"],
    )
    return table.sort_values("quantity", key=lambda names: names.map(_order(table)), kind="stable", ignore_index=True)


Bar = tuple[str, str, Spread, str, float]


def _order(table: pd.DataFrame) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(table["quantity"]))}


def _ceiling(seconds: Seconds) -> np.ndarray:
    """Return the speed-up that offline would have if the student cost the same as fine-tuning, per round."""
    ceiling: np.ndarray = (seconds["teacher"] + seconds["fine-tuning"]) / seconds["fine-tuning"]
    return ceiling


def _training_bars(timings: Timings) -> Iterator[Bar]:
    for group, t in timings.groups("training"):
        first = group.iloc[0]
        setting = f"{first['student']} {first['lengths']} {first['dtype']}"
        yield "offline / fine-tuning", setting, Spread.of(t["fine-tuning"] / t["offline"]), "at least", 0.97
        share = t["online"] / t["offline"] / _ceiling(t)
        yield "offline / online, share of the ceiling", setting, Spread.of(share), "at least", 0.95
        if first["lengths"] == "pad64":
            yield "offline / stock fine-tuning", setting, Spread.of(t["stock"] / t["offline"]), "at least", 1.05


def _captured_bars(timings: Timings) -> Iterator[Bar]:
    for group, t in timings.groups("captured"):
        first = group.iloc[0]
        setting = f"{first['student']} {first['lengths']} {first['dtype']}"
        speedup = t["online"] / t["offline"]
        yield "captured: offline / fine-tuning", setting, Spread.of(t["fine-tuning"] / t["offline"]), "at least", 0.97
        share = Spread.of(speedup / _ceiling(t))
        yield "captured: offline / online, share of the ceiling", setting, share, "at least", 0.9
        yield "captured: offline / online", setting, Spread.of(speedup), "at least", 2.7
        faster = Spread.of(t["offline-from-python"] / t["offline"])
        yield "captured: a step / the same step from Python", setting, faster, "at least", 3.0


def _lengths_bars(timings: Timings) -> Iterator[Bar]:
    for group, t in timings.groups("lengths"):
        offline = [str(name) for name, what in group["what"].items() if what == "offline"]
        best = min(offline, key=lambda name: float(np.median(t[name])))
        for what, name in (("fp32", "offline-cola-fp32"), ("best precision", best)):
            student = t[name.replace("offline", "fine-tuning")]
            ceiling = (t["teacher-pad64-fp32"] + t["fine-tuning-pad64-fp32"]) / student
            speedup = t["online-pad64-fp32"] / t[name]
            setting = f"{group['student'].iloc[0]}, {np.median(speedup):.1f}x of {np.median(ceiling):.1f}x"
            quantity = f"offline on CoLA's lengths, {what} / online at 64, fp32, share of the ceiling"
            yield quantity, setting, Spread.of(speedup / ceiling), "at least", 0.9


def _store_bars(timings: Timings) -> Iterator[Bar]:
    for group, t in timings.groups("extraction"):
        first = group.iloc[0]
        for case, what in (("extraction", "for one spec"), ("extraction-full", "for full HSK")):
            setting = f"{first['lengths']} {first['dtype']}, {what}"
            yield "extraction / bare teacher forward", setting, Spread.of(t["forward"] / t[case]), "at least", 0.95
    for group, _ in timings.groups("size"):
        for name, row in group.iterrows():
            yield "store size / floor", str(name), Spread.of([row["store_bytes"] / row["floor_bytes"]]), "at most", 1.05
    for group, t in timings.groups("store"):
        setting = f"rosita6 cola {group['dtype'].iloc[0]}"
        yield "reading / what training consumes", setting, Spread.of(t["offline"] / t["read"]), "at least", 50
    for group, _ in timings.groups("memory"):
        small, large = group.sort_values("mebibytes")["anonymous_bytes"]
        setting = f"{group['mebibytes'].max():.0f} MiB above {group['mebibytes'].min():.0f} MiB, in MiB"
        if None not in (*small, *large):
            more = Spread.of((np.array(large) - np.array(small)) / MIB)
            yield "RssAnon in training from a large store, above a small one", setting, more, "at most", 200
    for group, t in timings.groups("scale"):
        few, many = int(group["examples"].min()), int(group["examples"].max())
        ratio = Spread.of(t[str(many)] / t[str(few)])
        yield "time a step, many stored examples / few", f"{many:,} / {few:,}", ratio, "at most", 1.05
