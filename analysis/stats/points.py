"""What each point of a table is: its name, its strategy, the full HSK it is compared with, and its spec taken apart.

The *strategy* of a spec is how it chooses, apart from how much. :func:`with_names` names a table's strategies by the
settings in which its specs differ; :func:`taken_apart` has the strategy and the amount along each dimension. Both take
the settings of a selector from the spec that the label names.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from hskd.errors import HskdError
from hskd.selectors import LengthSelector, PrecisionSelector, Selector
from hskd.selectors.depth import TopN
from hskd.spec import DIMENSIONS, HSKSpec

AMOUNT_FIELDS = {"depth": "n", "length": "k", "width": "w"}
"""The selector's field that holds a dimension's amount; the amount of precision is its bits per value."""
_DISTILLED = ("spec", "full", "shuffled")
"""The arms that have a mapping."""


class Part(NamedTuple):
    """One dimension of a spec: how it selects, and how much (infinity for all; bits per value for precision)."""

    strategy: str
    amount: float


Parts = dict[str, Part]
"""The four dimensions of a spec, by name."""


def taken_apart_by_name(trials: pd.DataFrame) -> dict[str, Parts]:
    """Every point of the arms *spec* and *full* that is some HSK, by name, taken apart.

    Points whose label is not a spec (explicit layer pairs, selectors that are not registered here) are left out: it
    cannot be said what they share with others.
    """
    rows = trials[trials["arm"].isin(["spec", "full"])].drop_duplicates("name")
    parts_by_name = {str(name): taken_apart(str(label)) for name, label in zip(rows["name"], rows["spec"], strict=True)}
    return {name: parts for name, parts in parts_by_name.items() if parts is not None}


@cache
def _parsed(label: str) -> HSKSpec | None:
    try:
        return HSKSpec.parse(label)
    except HskdError:
        return None


@cache
def taken_apart(label: str) -> Parts | None:
    """The parts of the spec that ``label`` names; None where it names none."""
    spec = _parsed(label)
    if spec is None:
        return None
    return {dimension: _part(dimension, getattr(spec, dimension)) for dimension in DIMENSIONS}


def as_kept(parts: Parts) -> Parts:
    """``parts`` without what decides nothing: points with equal results keep the same values.

    Where all tokens or neurons are kept there is nothing to choose, and the first token is ``[CLS]``.
    """
    length, width = parts["length"], parts["width"]
    if length.strategy == "cls":
        length = Part("left", 1)
    elif math.isinf(length.amount) and _takes_any_token(length.strategy):
        length = Part("", math.inf)
    if math.isinf(width.amount):
        width = Part("", math.inf)
    return {**parts, "length": length, "width": width}


def _settings(dimension: str, selector: Selector) -> list[str]:
    """The selector's settings beside its amount that are not the defaults, such as ``att_map=top``."""
    return [
        f"{name}={getattr(selector, name)}"
        for name, declared in type(selector).model_fields.items()
        if name not in ("selector", AMOUNT_FIELDS.get(dimension))
        and repr(getattr(selector, name)) != repr(declared.default)
    ]


def _further_settings(label: str) -> list[str]:
    """The settings that the label gives to the selectors of tokens, neurons and numbers."""
    spec = _parsed(label)
    if spec is None:
        return []
    dimensions = ("length", "width", "precision")
    return [text for dimension in dimensions for text in _settings(dimension, getattr(spec, dimension))]


def _part(dimension: str, selector: Selector) -> Part:
    field = AMOUNT_FIELDS.get(dimension, "")
    words = [selector.selector, *_settings(dimension, selector)]
    if type(selector) is TopN:  # what tells these apart is the mapping alone
        words = [f"l_top={selector.l_top}"]
    if isinstance(selector, PrecisionSelector):
        layout = selector.layout(1024).values()
        return Part(", ".join(words), sum(8 * dtype.itemsize * count for dtype, count in layout) / 1024)
    amount = getattr(selector, field, "all")
    everything = amount == "all" or (dimension == "width" and amount == 1)
    return Part(", ".join(words), math.inf if everything else float(amount))


def _takes_any_token(strategy: str) -> bool:
    return not strategy or DIMENSIONS["length"][strategy.split(",")[0]].eligible is LengthSelector.eligible


def with_names(trials: pd.DataFrame) -> pd.DataFrame:
    """``trials`` with the columns name, strategy and reference (see :class:`~hskd.analysis.table.Study`)."""
    keys = ["arm", "spec", "l_top", "precision"]
    rows: list[dict[Hashable, Any]] = trials.drop_duplicates(keys).to_dict("records")
    names = [_name(row, rows) for row in rows]
    fulls = {_mapping(row): name for row, name in zip(rows, names, strict=True) if row["arm"] == "full"}
    only = next(iter(fulls.values())) if len(fulls) == 1 else ""
    references = [fulls.get(_mapping(row), "") if row["arm"] in _DISTILLED else only for row in rows]
    specs = [row for row in rows if row["arm"] == "spec"]
    strategies = dict(zip([row["spec"] for row in specs], _strategies(specs), strict=True))
    by_keys = {
        tuple(row[key] for key in keys): (name, strategies[row["spec"]] if row["arm"] == "spec" else "", reference)
        for row, name, reference in zip(rows, names, references, strict=True)
    }
    columns = zip(*(by_keys[key] for key in zip(*(trials[key] for key in keys), strict=True)), strict=True)
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
    return [", ".join(_strategy_words(choice, varying, both)) for choice in settled]


def _choice(row: dict[Hashable, Any]) -> tuple[str | None, ...]:
    """Mapping, tokens, neurons, further settings; None for a dimension that is kept whole, so that none is chosen."""
    all_tokens = row["k"] == "all" and row["length"] == "left"
    all_neurons = row["w"] == 1 and row["width"] == "uniform"
    return (
        row["l_top"],
        None if all_tokens else row["length"],
        None if all_neurons else row["width"],
        ", ".join(_further_settings(str(row["spec"]))),
    )


def _strategy_words(choice: tuple[str | None, ...], varying: list[bool], both: bool) -> list[str]:
    l_top, length, width, settings = choice
    words = [f"l_top={l_top}"] if varying[0] else []
    if varying[1]:
        words.append("all tokens" if length is None else f"length={length}" if both else length)
    if varying[2]:
        words.append("all neurons" if width is None else f"width={width}" if both else width)
    return [*words, settings] if varying[3] and settings else words
