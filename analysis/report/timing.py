"""Tables and figures of a device's timing files, for readers of ``hskd bench``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hskd.analysis.figures.style import save
from hskd.analysis.figures.timing import payback_figure, speedup_figure
from hskd.analysis.stats.timing import MIB, Timings, bars, speedups
from hskd.io import atomic_path, write_text


def write_timing_report(folder: Path) -> str:
    """Write ``timing.md``, its tables as CSV and figures beside the timing files, and return the Markdown.

    Raises:
        HskdError: there are no timing files, or the folder cannot be written.
    """
    timings = Timings.read(folder)
    reached, faster = bars(timings), speedups(timings)
    text = f"# Timing: {timings.device}\n\nMedians of paired rounds, with their quartiles.\n\n"
    others = _others(timings)
    display = {"bars": _shown_bars(reached), "speedups": _shown_speedups(faster), "others": others}
    for name, table in (("bars", reached), ("speedups", faster), ("others", others)):
        if not table.empty:
            text += f"{markdown(display[name])}\n"
            with atomic_path(folder / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")
    write_text(folder / "timing.md", text)
    if not faster.empty:
        save(speedup_figure(faster), folder / "speedup.png")
        save(payback_figure(faster), folder / "payback.png")
    return text


def _shown_bars(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "what": table["quantity"],
            "setting": table["setting"],
            "measured": [f"{row.measured:.4g} ({row.low:.4g} to {row.high:.4g})" for row in table.itertuples()],
            "bar": [f"{row.side} {row.bar:g}" for row in table.itertuples()],
            "met": table["met"].map({True: "yes", False: "**no**"}),
        }
    )


def _shown_speedups(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    display = table[["student", "lengths", "dtype"]].copy()
    for name in ("offline", "online", "fine-tuning", "fine-tuning-cls", "prediction", "stock", "teacher"):
        display[f"{name}, ms"] = table[f"{name}_ms"].map(lambda ms: f"{ms:.{0 if ms >= 100 else 1}f}")
    display["speed-up"] = [
        f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})" for row in table.itertuples()
    ]
    display["ceiling"] = table["ceiling"].map("{:.2f}".format)
    display["pays off after, epochs"] = table["pays_off"].map("{:.2f}".format)
    return display


def _others(timings: Timings) -> pd.DataFrame:
    """What has no bar: resident memory by stored examples, seconds a trial by trials, waiting processes."""
    rows = []
    for group, t in timings.groups("scale"):
        for name, row in group.iterrows():
            at = f"{row['examples']:,.0f} stored examples"
            rows.append((at, "ms a step", f"{1000 * np.median(t[str(name)]):.1f}"))
            if None not in row["anonymous_bytes"]:
                rows.append((at, "RssAnon, MiB", f"{np.median(row['anonymous_bytes']) / MIB:.0f}"))
    for group, t in timings.groups("grid"):
        for name, row in group.iterrows():
            at = f"grid of {row['examples']:.0f} trials"
            rows.append((at, "s a trial", f"{np.median(t[str(name)]):.3f}"))
            rows.append((at, "of which not training", f"{np.median(row['overhead_seconds']):.3f}"))
    waiting = timings.cases["waited_cpu_seconds"].sum() / max(timings.cases["waited_seconds"].sum(), 1e-9)
    rows.append(("waiting processes", "share of a core that they use", f"{waiting:.2g}"))
    return pd.DataFrame(rows, columns=["setting", "quantity", "measured"])


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
