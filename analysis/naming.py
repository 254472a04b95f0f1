"""What a point is called, how it chooses, and which full HSK it is compared with; from the columns of the table."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import pandas as pd

_DISTILLED = ("spec", "full", "shuffled")
"""The arms that have a mapping."""
# What a label says of a selector beyond the columns: length.att_map=top, width.seed=3.
_SETTING = re.compile(r",(?:length|width|precision)\.(\w+=[^,]+)")


def with_names(trials: pd.DataFrame) -> pd.DataFrame:
    """``trials`` with the columns name, strategy and reference (see :class:`~analysis.table.Study`)."""
    keys = ["arm", "spec", "l_top", "precision"]
    rows: list[dict[Hashable, Any]] = trials.drop_duplicates(keys).to_dict("records")
    names = [_name(row, rows) for row in rows]
    fulls = {_mapping(row): name for row, name in zip(rows, names, strict=True) if row["arm"] == "full"}
    only = next(iter(fulls.values())) if len(fulls) == 1 else ""
    references = [fulls.get(_mapping(row), "") if row["arm"] in _DISTILLED else only for row in rows]
    specs = [row for row in rows if row["arm"] == "spec"]
    strategies = dict(zip([row["spec"] for row in specs], _strategies(specs), strict=True))
    found = {
        tuple(row[key] for key in keys): (name, strategies[row["spec"]] if row["arm"] == "spec" else "", reference)
        for row, name, reference in zip(rows, names, references, strict=True)
    }
    columns = zip(*(found[key] for key in zip(*(trials[key] for key in keys), strict=True)), strict=True)
    return trials.assign(**dict(zip(("name", "strategy", "reference"), columns, strict=True)))


def _mapping(row: dict[Hashable, Any]) -> tuple[str, str]:
    return row["l_top"], row["precision"]


def _name(row: dict[Hashable, Any], rows: list[dict[Hashable, Any]]) -> str:
    if row["arm"] == "spec":
        return str(row["spec"])
    several = len({_mapping(other) for other in rows if other["arm"] == row["arm"]}) > 1
    changes = [f"l_top={row['l_top']}"] if row["l_top"] not in ("", "1.0") else []
    changes += [f"precision={row['precision']}"] if row["precision"] not in ("", "fp16") else []
    return ",".join([row["arm"], *changes]) if several else str(row["arm"])


def _strategies(specs: list[dict[Hashable, Any]]) -> list[str]:
    """What each spec's choice is called: the settings in which the specs differ."""
    choices = [_choice(row) for row in specs]
    for i in range(4):
        values = {choice[i] for choice in choices} - {None}
        if len(values) < 2:  # there is one way at most in which anything is chosen along this dimension
            choices = [(*choice[:i], next(iter(values), ""), *choice[i + 1 :]) for choice in choices]
    concrete = {choice for choice in choices if None not in choice}
    settled = []
    for choice in choices:
        fitting = [other for other in concrete if all(a in (None, b) for a, b in zip(choice, other, strict=True))]
        settled.append(fitting[0] if len(fitting) == 1 else choice)
    varying = [len({choice[i] for choice in settled}) > 1 for i in range(4)]
    both = varying[1] and varying[2]  # then which of the two is random must be said
    return [", ".join(_say(choice, varying, both)) for choice in settled]


def _choice(row: dict[Hashable, Any]) -> tuple[str | None, ...]:
    """Mapping, tokens, neurons, further settings; None for a dimension that is kept whole, so that none is chosen."""
    all_tokens = row["k"] == "all" and row["length"] == "left"
    all_neurons = row["w"] == 1 and row["width"] == "uniform"
    return (
        row["l_top"],
        None if all_tokens else row["length"],
        None if all_neurons else row["width"],
        ", ".join(_SETTING.findall(row["spec"])),
    )


def _say(choice: tuple[str | None, ...], varying: list[bool], both: bool) -> list[str]:
    l_top, length, width, settings = choice
    said = [f"l_top={l_top}"] if varying[0] else []
    if varying[1]:
        said.append("all tokens" if length is None else f"length={length}" if both else length)
    if varying[2]:
        said.append("all neurons" if width is None else f"width={width}" if both else width)
    return [*said, settings] if varying[3] and settings else said
