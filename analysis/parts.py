"""HSK specs taken apart: strategy and amount along each dimension, so that points which differ in one can be found."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from analysis.table import Study
from hskd.errors import HskdError
from hskd.selectors import LengthSelector, PrecisionSelector, Selector
from hskd.selectors.depth import TopN
from hskd.spec import DIMENSIONS, HSKSpec

AMOUNTS = {"depth": "n", "length": "k", "width": "w"}
"""The field that holds each dimension's amount; the amount of precision is its bits per value."""


class Part(NamedTuple):
    """One dimension of a spec: how it selects, and how much (infinity for all; bits per value for precision)."""

    strategy: str
    amount: float


Parts = dict[str, Part]
"""The four dimensions of a spec, by name."""


def named(study: Study) -> dict[str, Parts]:
    """Every point of the arms *spec* and *full* that is some HSK, by name, taken apart.

    Points whose label is not a spec (explicit layer pairs, selectors that are not registered here) are left out: it
    cannot be said what they share with others.
    """
    rows = study.trials[study.trials["arm"].isin(["spec", "full"])].drop_duplicates("name")
    found = {str(name): taken_apart(str(label)) for name, label in zip(rows["name"], rows["spec"], strict=True)}
    return {name: parts for name, parts in found.items() if parts is not None}


@cache
def taken_apart(label: str) -> Parts | None:
    """The parts of the spec that ``label`` names; None where it names none."""
    try:
        spec = HSKSpec.parse(label)
    except HskdError:
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


def _part(dimension: str, selector: Selector) -> Part:
    field = AMOUNTS.get(dimension, "")
    settings = {
        name: getattr(selector, name)
        for name, declared in type(selector).model_fields.items()
        if name not in ("selector", field) and repr(getattr(selector, name)) != repr(declared.default)
    }
    words = [selector.selector, *(f"{name}={value}" for name, value in settings.items())]
    if isinstance(selector, TopN):  # what tells these apart is the mapping alone
        words = [f"l_top={selector.l_top}"]
    if isinstance(selector, PrecisionSelector):
        layout = selector.layout(1024).values()
        return Part(", ".join(words), sum(8 * dtype.itemsize * count for dtype, count in layout) / 1024)
    amount = getattr(selector, field, "all")
    everything = amount == "all" or (dimension == "width" and amount == 1)
    return Part(", ".join(words), math.inf if everything else float(amount))


def _takes_any_token(strategy: str) -> bool:
    return not strategy or DIMENSIONS["length"][strategy.split(",")[0]].eligible is LengthSelector.eligible
