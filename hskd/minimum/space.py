"""Which specs a search may choose: products of selectors and amounts, less what a constraint refuses.

A spec is an amount along every dimension that is registered, so a dimension or a field that a plug-in adds is one more
key of a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hskd import safe_yaml
from hskd.errors import HskdError, brief, cut
from hskd.grid.spec import MOST_SPECS, Sweep
from hskd.io import with_home
from hskd.spec import HSKSpec, Shape

PAPER = "paper"
"""The name of the paper's own space."""
NEURONS = ("magnitude", "random", "uniform")
"""Selectors along width that keep neurons as they are; they share their learning rates."""


class Space(BaseModel):
    """The specs to choose from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweeps: Annotated[
        tuple[Sweep, ...], Field(min_length=1, max_length=MOST_SPECS, description="Products of amounts and selectors.")
    ]
    most_bytes: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Bytes an example that a store may take.")
    ] = None
    most_layers: Annotated[int | None, Field(ge=1, description="Layers that a spec may keep.")] = None
    attention: Annotated[bool, Field(description="Whether tokens may be ranked by the teacher's attention.")] = True

    def specs(self) -> list[HSKSpec]:
        """Every spec that the sweeps and ``attention`` allow, once; full HSK in fp16 is left out.

        What is kept whole is written one way, whichever selector the sweep names for the amounts below it.

        Raises:
            HskdError: more than ``MOST_SPECS``.
        """
        size = sum(sweep.size for sweep in self.sweeps)
        if size > MOST_SPECS:
            raise HskdError(f"sweeps: {size:,} specs; a space has at most {MOST_SPECS:,}, so list fewer values.")
        specs = {}
        for sweep in self.sweeps:
            for written in sweep.specs():
                spec = _plainly(written)
                if (self.attention or not spec.length.needs_attention) and spec != HSKSpec():
                    specs[spec.canonical] = spec
        return list(specs.values())


def _plainly(spec: HSKSpec) -> HSKSpec:
    """The spec with what it keeps whole written as the short form writes it."""
    whole: dict[str, Any] = {}
    if getattr(spec.length, "k", None) == "all":
        whole["length"] = HSKSpec().length
    if spec.width.selector in NEURONS and getattr(spec.width, "w", None) in ("all", 1, 1.0):
        whole["width"] = HSKSpec().width
    return spec.model_copy(update=whole) if whole else spec


@dataclass(frozen=True, eq=False)
class Candidate:
    """A spec that may be the answer.

    Attributes:
        spec: the spec.
        bytes_per_example: what its store takes.
        fields: every field of its selectors, as ``dimension.field``.
    """

    spec: HSKSpec
    bytes_per_example: float
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The spec's label."""
        return self.spec.label

    @property
    def family(self) -> str:
        """What shares its learning rates: neurons, or a codec such as ``pca``."""
        return "neurons" if self.spec.width.selector in NEURONS else self.spec.width.selector


def candidates(space: Space, shape: Shape, size_of: Callable[[HSKSpec], float]) -> list[Candidate]:
    """The specs of a space that fit its constraints, the cheapest first.

    Args:
        space: the space.
        shape: sizes of teacher and student.
        size_of: bytes an example of a spec's store.

    Raises:
        HskdError: a spec names a layer that student or teacher lack, or nothing is left.
    """
    kept = []
    for spec in space.specs():
        if space.most_layers is not None and len(spec.layers(shape)) > space.most_layers:
            continue
        size = size_of(spec)
        if space.most_bytes is None or size <= space.most_bytes:
            kept.append(Candidate(spec, size, _fields(spec)))
    if not kept:
        raise HskdError(
            "space: no spec is left under its constraints (most_bytes, most_layers, attention); loosen one, or list "
            "smaller amounts."
        )
    return sorted(kept, key=lambda one: (one.bytes_per_example, one.spec.canonical))


def _fields(spec: HSKSpec) -> dict[str, Any]:
    return {
        f"{dimension}.{field}": tuple(map(tuple, value)) if isinstance(value, list) else value
        for dimension, selector in spec.model_dump(mode="json").items()
        for field, value in selector.items()
    }


@dataclass(frozen=True)
class Axis:
    """A field in which candidates differ.

    Attributes:
        name: ``dimension.field``.
        values: in ascending order where they are amounts; None stands for a selector that has no such field.
        ordered: whether they are amounts.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool

    def place(self, fields: Mapping[str, Any]) -> int:
        """Where a candidate's value is in ``values``."""
        return self.values.index(fields.get(self.name))


def axes(chosen: Sequence[Candidate]) -> list[Axis]:
    """The fields in which candidates differ, less those that follow from another one, as a codec's own settings may."""
    names = dict.fromkeys(name for one in chosen for name in one.fields)
    every = []
    for name in names:
        values = list(dict.fromkeys(one.fields.get(name) for one in chosen))
        if len(values) > 1:
            ordered = all(_is_amount(value) for value in values)
            every.append(Axis(name, tuple(sorted(values, key=_amount) if ordered else values), ordered))
    kept = list(every)
    for axis in every:
        others = [other for other in kept if other is not axis and len(other.values) >= len(axis.values)]
        if not axis.ordered and any(_follows(axis, other, chosen) for other in others):
            kept.remove(axis)
    return kept


def _follows(axis: Axis, other: Axis, chosen: Sequence[Candidate]) -> bool:
    """Whether a candidate's value on one axis is known from its value on another."""
    pairs = {(one.fields.get(other.name), one.fields.get(axis.name)) for one in chosen}
    return len(pairs) == len(other.values)


def _is_amount(value: Any) -> bool:
    return value == "all" or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _amount(value: Any) -> float:
    return math.inf if value == "all" else float(value)


def default_space(shape: Shape, tokens: float) -> Space:
    """The space of a search where none is given.

    Args:
        shape: sizes of teacher and student.
        tokens: mean number of tokens of an example.
    """
    layers = shape.student_layers + 1
    depths = [n for n in (1, 2, 3, 4, 6, 8, 12) if n < layers]
    lengths = [k for k in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89) if k < 0.75 * tokens]
    shares = [w for w in (0.03, 0.1, 0.3) if w * shape.teacher_width >= 2]
    return Space.model_validate(
        {
            "sweeps": [
                {
                    "n": [*depths, "all"],
                    "k": [*lengths, "all"],
                    "w": [*shares, "all"],
                    "precision": ["fp16", "int4"],
                },
                # All coordinates are all neurons, and take more bytes.
                {
                    "n": [*depths, "all"],
                    "k": [*lengths, "all"],
                    "w": shares,
                    "width": ["pca"],
                    "precision": ["fp16", "int4"],
                },
            ]
        }
    )


def paper_space(shape: Shape) -> Space:
    """What arXiv 2106.05691 compresses jointly: layers, tokens that ``[CLS]`` attends to, and the largest neurons."""
    depths = [n for n in (1, 2, 3, 4, 5) if n < shape.student_layers + 1]
    sweep = {"n": [*depths, "all"], "k": [1, 5, 10, 20, 30, 40, 50, "all"], "w": [0.01, 0.05, 0.1, 0.3, 0.5, "all"]}
    return Space.model_validate({"sweeps": [sweep]})


def load_space(name: str) -> Space:
    """Read the YAML file of a space.

    Raises:
        HskdError: it cannot be read, or says something that a space cannot be; the message names file and key.
    """
    path = Path(with_home(name))
    try:
        content, _ = safe_yaml.parse(safe_yaml.read(path))
    except yaml.YAMLError as error:
        raise HskdError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise HskdError(f"{path}: expected keys such as sweeps and most_bytes; known: {', '.join(Space.model_fields)}.")
    return _validated(content, str(path))


def with_constraints(space: Space, constraints: Mapping[str, Any]) -> Space:
    """A space with constraints from the command line, by field; None leaves one as it is.

    Raises:
        HskdError: a value is out of range.
    """
    given = {field: value for field, value in constraints.items() if value is not None}
    content = space.model_dump(mode="json", exclude_unset=True)
    return _validated(content | given, "space") if given else space


def _validated(content: dict[str, Any], where: str) -> Space:
    try:
        return Space.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a key that is misspelt
        key = ".".join(map(str, (*first["loc"], *([first["ctx"]["key"]] if "key" in first.get("ctx", {}) else ()))))
        message = first["msg"].removeprefix("Value error, ").removesuffix(".")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known: {', '.join(Space.model_fields)}"
        raise HskdError(f"{where}: {cut(key)}: {message} (got {brief(first['input'])}).") from None
