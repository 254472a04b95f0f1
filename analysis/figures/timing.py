"""Figures of timing: the speed-up of offline over online distillation, and when a store has paid for itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hskd.analysis.figures import style
from hskd.analysis.stats.timing import PAPER, with_extraction

_PASSES = np.geomspace(1, 1000, 200)


def speedup_figure(table: pd.DataFrame) -> Figure:
    """Draw the speed-up of offline over online distillation, with quartiles, the ceiling and the paper's range.

    Args:
        table: the table of :func:`hskd.analysis.stats.timing.speedups`.
    """
    students = list(dict.fromkeys(table["student"]))
    settings = list(dict.fromkeys(zip(table["lengths"], table["dtype"], strict=True)))
    with style.canvas((style.FULL, 1.0 + 0.32 * len(settings))) as figure:
        panels = figure.subplots(1, len(students), sharey=True, sharex=True, squeeze=False)[0]
        for axes, student in zip(panels, students, strict=True):
            rows = table[table["student"] == student]
            y = [settings.index(setting) for setting in zip(rows["lengths"], rows["dtype"], strict=True)]
            spread = [
                rows["speedup"] - rows["speedup_low"],
                rows["speedup_high"] - rows["speedup"],
            ]
            axes.axvspan(*PAPER, color="0.9", lw=0, label="reported by the paper")
            axes.errorbar(
                rows["speedup"],
                y,
                xerr=np.array(spread),
                fmt="o",
                color=style.CURVE,
                capsize=2,
                label="measured",
            )
            axes.plot(
                rows["ceiling"],
                y,
                "|",
                color=style.INK,
                ms=9,
                label="ceiling: (teacher + fine-tuning) / fine-tuning",
            )
            axes.set_title(student)
            axes.set_xlabel("online time / offline time, same batches")
            axes.set_xlim(left=1)
        panels[0].set_yticks(range(len(settings)), [f"{lengths}, {dtype}" for lengths, dtype in settings])
        panels[0].set_ylim(len(settings) - 0.5, -0.5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def payback_figure(table: pd.DataFrame) -> Figure:
    """Draw the speed-up, extraction included, against the total epochs of all trials that share a store.

    Args:
        table: the table of :func:`~hskd.analysis.stats.timing.speedups`. Padded rows are left out if there are others.
    """
    real = table[~table["lengths"].str.startswith("pad")]
    rows = real if len(real) else table
    students = list(dict.fromkeys(rows["student"]))
    settings = list(dict.fromkeys(zip(rows["lengths"], rows["dtype"], strict=True)))
    with style.canvas((style.FULL, 3.0)) as figure:
        panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
        for axes, student in zip(panels, students, strict=True):
            axes.axhspan(*PAPER, color="0.9", lw=0, label="reported by the paper")
            axes.axhline(1, color=style.PALE, lw=0.7)
            for row in rows[rows["student"] == student].to_dict("records"):
                at = settings.index((row["lengths"], row["dtype"]))
                label = f"{row['lengths']}, {row['dtype']}"
                colour = style.COLOURS[at % len(style.COLOURS)]
                dashes = "-" if row["dtype"] == "fp32" else "--"
                axes.plot(_PASSES, with_extraction(row, _PASSES), dashes, color=colour, label=label)
            axes.set_xscale("log")
            axes.set_title(student)
            axes.set_xlabel("epochs of the HSK stage, all trials together")
        panels[0].set_ylabel("speed-up over online,\nextraction counted in")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure
