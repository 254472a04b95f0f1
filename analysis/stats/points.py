"""Identify the points of a table: name, strategy, the *full* point for comparison, and the parts of the spec.

The *strategy* of a spec is how it selects, regardless of how much. :func:`with_names` names a table's strategies by the
settings in which its specs differ. :func:`taken_apart` returns the strategy and the amount along each dimension. Both
read a selector's settings from the spec that the label names.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from hskd.errors import HskdError
from hskd.selectors import LENGTH, WIDTH, LengthSelector, PrecisionSelector, Selector
from hskd.selectors.basis import BasisWidth
from hskd.selectors.codebook import CodebookWidth
from hskd.selectors.depth import TopN
from hskd.selectors.length import Pool
from hskd.spec import DIMENSIONS, HSKSpec

AMOUNT_FIELDS = {"depth": "n", "length": "k", "width": "w", "examples": "e"}
"""Field of the selector that holds a dimension's amount. The amount of precision is its bits per value."""
DISTILLED = ("spec", "full", "shuffled")
"""Arms that have a layer mapping."""


class Part(NamedTuple):
    """One dimension of a spec: how it selects, and how much (infinity for all; bits per value for precision)."""

    strategy: str
    amount: float


Parts = dict[str, Part]
"""The dimensions of a spec, by name. The parts of a point also include its loss of the HSK stage."""
LOSS = "hsk_loss"
"""Column of the loss of the HSK stage. It is empty or missing where the loss is the squared error."""
COMPARED = (*DIMENSIONS, LOSS)
"""Everything in which points may differ."""


def taken_apart_by_name(trials: pd.DataFrame) -> dict[str, Parts]:
    """Return the parts of every point of the arms *spec* and *full*, by name.

    Points whose label is not a spec (explicit layer pairs, selectors that are not registered here) are left out,
    because they cannot be compared part by part.
    """
    rows = trials[trials["arm"].isin(["spec", "full"])].drop_duplicates("name")
    losses = rows[LOSS] if LOSS in rows else [""] * len(rows)
    parts_by_name = {
        str(name): (taken_apart(str(label)), Part(str(loss or "mse"), 0.0))
        for name, label, loss in zip(rows["name"], rows["spec"], losses, strict=True)
    }
    return {name: {**parts, LOSS: loss} for name, (parts, loss) in parts_by_name.items() if parts is not None}


@cache
def _parsed(label: str) -> HSKSpec | None:
    try:
        return HSKSpec.parse(label)
    except HskdError:
        return None


@cache
def taken_apart(label: str) -> Parts | None:
    """Return the parts of the spec that ``label`` names, or None if it is not a spec."""
    spec = _parsed(label)
    if spec is None:
        return None
    return {dimension: _part(dimension, getattr(spec, dimension)) for dimension in DIMENSIONS}


def as_kept(parts: Parts) -> Parts:
    """Return ``parts`` in a normal form: points with equal normal forms keep the same values.

    Where all tokens or neurons are kept, the selector makes no difference. ``cls`` equals the first token.
    """
    length, width = parts["length"], parts["width"]
    if length.strategy == "cls":
        length = Part("left", 1)
    elif math.isinf(length.amount) and _takes_any_token(length):
        length = Part("", math.inf)
    if (
        math.isinf(width.amount)
        and width.strategy
        and not issubclass(WIDTH[_selector(width)], (BasisWidth, CodebookWidth))
    ):
        width = Part("", math.inf)
    examples = parts["examples"]
    if math.isinf(examples.amount):
        examples = Part("", math.inf)
    return {**parts, "length": length, "width": width, "examples": examples}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settings(dimension: str, selector: Selector) -> list[str]:
    """Return the selector's settings that differ from the defaults, without its amount, such as ``att_map=top``."""
    return [
        f"{name}={_text(getattr(selector, name))}"
        for name, declared in type(selector).model_fields.items()
        if name not in ("selector", AMOUNT_FIELDS.get(dimension))
        and repr(getattr(selector, name)) != repr(declared.default)
    ]


def _further_settings(label: str) -> list[str]:
    """Return the label's settings of how tokens, neurons, precision and examples are selected, without amounts."""
    spec = _parsed(label)
    if spec is None:
        return []
    dimensions = ("length", "width", "precision")
    words = [text for dimension in dimensions for text in _settings(dimension, getattr(spec, dimension))]
    if spec.examples.selector != "random":
        words.append(f"examples={spec.examples.selector}")
    return [*words, *_settings("examples", spec.examples)]


def _part(dimension: str, selector: Selector) -> Part:
    field = AMOUNT_FIELDS.get(dimension, "")
    words = [selector.selector, *_settings(dimension, selector)]
    if type(selector) is TopN:  # these differ only in the mapping
        words = [f"l_top={selector.l_top}"]
    if isinstance(selector, PrecisionSelector):
        layout = selector.layout(1024).values()
        return Part(", ".join(words), sum(8 * dtype.itemsize * count for dtype, count in layout) / 1024)
    amount = getattr(selector, field, "all")
    everything = amount == "all" or (dimension in ("width", "examples") and amount == 1)
    return Part(", ".join(words), math.inf if everything else float(amount))


def _selector(part: Part) -> str:
    """Return the name of a part's selector."""
    return part.strategy.split(",")[0]


def _keeps_neurons(part: Part) -> bool:
    """Return whether the width part keeps neurons, rather than coordinates along a basis or codes."""
    return not part.strategy or not issubclass(WIDTH[_selector(part)], (BasisWidth, CodebookWidth))


def _takes_any_token(part: Part) -> bool:
    return not part.strategy or LENGTH[_selector(part)].eligible is LengthSelector.eligible


def with_names(trials: pd.DataFrame) -> pd.DataFrame:
    """Return ``trials`` with the columns name, strategy and reference (see :class:`~hskd.analysis.table.Study`)."""
    trials = trials.assign(hsk_loss=trials["hsk_loss"] if LOSS in trials else "")
    keys = ["arm", "spec", "l_top", "precision", LOSS]
    rows: list[dict[Hashable, Any]] = trials.drop_duplicates(keys).to_dict("records")
    names = [_name(row, rows) for row in rows]
    # Of several precisions, the one of most bytes is the reference, so that all are compared with the same point. At
    # equal bytes it is fp16.
    by_bytes = sorted(
        (row["bytes_per_example"], row["precision"] == "fp16", _mapping(row), name)
        for row, name in zip(rows, names, strict=True)
        if row["arm"] == "full"
    )
    fulls = {mapping: name for *_, mapping, name in by_bytes}
    only = next(iter(fulls.values())) if len(fulls) == 1 else ""
    references = [fulls.get(_mapping(row), "") if row["arm"] in DISTILLED else only for row in rows]
    specs = [row for row in rows if row["arm"] == "spec"]
    strategies = {
        tuple(row[key] for key in keys): strategy for row, strategy in zip(specs, _strategies(specs), strict=True)
    }
    by_keys = {}
    for row, name, reference in zip(rows, names, references, strict=True):
        key = tuple(row[key] for key in keys)
        by_keys[key] = name, strategies.get(key, ""), reference
    columns = zip(*(by_keys[key] for key in zip(*(trials[key] for key in keys), strict=True)), strict=True)
    return trials.assign(**dict(zip(("name", "strategy", "reference"), columns, strict=True)))


_Mapping = tuple[str, str]
"""How layers are paired, and the loss of the HSK stage. Each such combination has its own *full* point."""


def _mapping(row: dict[Hashable, Any]) -> _Mapping:
    return _depth(row), row[LOSS]


def _depth(row: dict[Hashable, Any]) -> str:
    """Return how the layers of a trial are paired: ``l_top=1.0``, or the depth selector where it is not ``top_n``."""
    spec = _parsed(str(row["spec"]))
    return f"l_top={row['l_top']}" if spec is None else _part("depth", spec.depth).strategy


def _name(row: dict[Hashable, Any], rows: list[dict[Hashable, Any]]) -> str:
    alike = [other for other in rows if other["arm"] == row["arm"]]
    loss = [f"{LOSS}={row[LOSS]}"] if row[LOSS] and len({other[LOSS] for other in alike}) > 1 else []
    if row["arm"] == "spec":
        return ",".join([str(row["spec"]), *loss])
    depth = _depth(row)
    changes = [] if depth in ("l_top=", "l_top=1.0") else [depth if depth.startswith("l_top=") else f"depth={depth}"]
    changes += [f"precision={row['precision']}"] if row["precision"] not in ("", "fp16") else []
    changes = [change.replace(", ", ",") for change in changes]
    several = len({(_mapping(other), other["precision"]) for other in alike}) > 1
    return ",".join([row["arm"], *changes, *loss]) if several else str(row["arm"])


_MAPPING, _LENGTH, _WIDTH, _PRECISION, _LOSS, _SETTINGS = range(6)
"""Indices into a choice (see :func:`_choice`)."""


def _strategies(specs: list[dict[Hashable, Any]]) -> list[str]:
    """Return the name of each spec's strategy: the settings in which the specs differ."""
    choices = [_choice(row) for row in specs]
    for i in range(6):
        values = {choice[i] for choice in choices} - {None}
        # At most one strategy exists along this dimension, so specs that keep it whole belong to that strategy.
        if len(values) < 2 and all(_ends_in_all(i, value) for value in values):
            choices = [(*choice[:i], next(iter(values), ""), *choice[i + 1 :]) for choice in choices]
    concrete = {choice for choice in choices if None not in choice}
    settled = []
    for choice in choices:
        fitting = [other for other in concrete if _fits(choice, other)]
        settled.append(fitting[0] if len(fitting) == 1 else choice)
    # Where all specs select in the same way, precision is an amount, as depth is. Otherwise it is part of the strategy.
    if len({(*choice[:_PRECISION], *choice[_LOSS:]) for choice in settled}) < 2:
        settled = [(*choice[:_PRECISION], "", *choice[_LOSS:]) for choice in settled]
    varying = [len({choice[i] for choice in settled}) > 1 for i in range(6)]
    return [", ".join(_strategy_words(choice, varying)) for choice in settled]


_Choice = tuple[str | None, ...]


def _choice(row: dict[Hashable, Any]) -> _Choice:
    """Return mapping, tokens, neurons, precision, loss and further settings; None for a dimension kept whole."""
    all_tokens = row["k"] == "all" and row["length"] == "left"
    all_neurons = row["w"] == 1 and row["width"] == "uniform"
    return (
        _depth(row),
        None if all_tokens else row["length"],
        None if all_neurons else row["width"],
        row["precision"],
        row[LOSS],
        ", ".join(_further_settings(str(row["spec"]))),
    )


def _ends_in_all(i: int, value: Any) -> bool:
    """Return whether a selector's largest amount is to keep all tokens or neurons. It is not for pooling or codes."""
    if i == _LENGTH and value in LENGTH:
        return not issubclass(LENGTH[value], Pool)
    return i != _WIDTH or value not in WIDTH or not issubclass(WIDTH[value], CodebookWidth)


def _fits(choice: _Choice, other: _Choice) -> bool:
    """Return whether a spec that keeps dimensions whole fits a strategy that selects tokens or neurons there."""
    for i, (own, its) in enumerate(zip(choice, other, strict=True)):
        if own == its:
            continue
        if own is not None or not _ends_in_all(i, its):
            return False
        if i == _WIDTH and its in WIDTH and issubclass(WIDTH[str(its)], BasisWidth):
            return False  # coordinates along a basis are not neurons
    return True


def _strategy_words(choice: _Choice, varying: list[bool]) -> list[str]:
    mapping, length, width, precision, loss, settings = choice
    # The name alone tells length from width, unless both dimensions have a selector of that name.
    both = varying[_LENGTH] and varying[_WIDTH]
    words = [str(mapping)] if varying[_MAPPING] else []
    if varying[_LENGTH]:
        words.append("all tokens" if length is None else f"length={length}" if both and length in WIDTH else length)
    if varying[_WIDTH]:
        words.append("all neurons" if width is None else f"width={width}" if both and width in LENGTH else width)
    words += [settings] if varying[_SETTINGS] and settings else []
    words += [str(precision)] if varying[_PRECISION] and precision != "fp16" else []
    return words + ([f"{LOSS}={loss or 'mse'}"] if varying[_LOSS] else [])
