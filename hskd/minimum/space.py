"""The space of a search: products of selectors and amounts, minus the specs that violate a constraint.

A spec has an amount along every registered dimension. A dimension or field that a plug-in adds is therefore one more
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
"""Name of the space that the paper searches."""
NEURONS = ("magnitude", "random", "uniform")
"""Width selectors that keep neurons unchanged. They share their learning rates."""


class Space(BaseModel):
    """The specs to choose from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweeps: Annotated[
        tuple[Sweep, ...], Field(min_length=1, max_length=MOST_SPECS, description="Products of amounts and selectors.")
    ]
    most_bytes: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="The most bytes per example of a store.")
    ] = None
    most_layers: Annotated[int | None, Field(ge=1, description="The most layers that a spec may keep.")] = None
    attention: Annotated[bool, Field(description="Whether tokens may be ranked by the teacher's attention.")] = True

    def specs(self) -> list[HSKSpec]:
        """Return the different specs that the sweeps and ``attention`` allow, without full HSK in fp16.

        A dimension that is kept whole is written in one way, no matter which selector the sweep names.

        Raises:
            HskdError: there are more than ``MOST_SPECS``.
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
    """Return the spec with whole dimensions written as in the short form."""
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
        bytes_per_example: size of its store per example.
        fields: every field of its selectors, as ``dimension.field``.
    """

    spec: HSKSpec
    bytes_per_example: float
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, spec: HSKSpec, bytes_per_example: float) -> Candidate:
        """Return the candidate of a spec."""
        fields = {
            f"{dimension}.{field}": tuple(map(tuple, value)) if isinstance(value, list) else value
            for dimension, selector in spec.model_dump(mode="json").items()
            for field, value in selector.items()
        }
        return cls(spec, bytes_per_example, fields)

    @property
    def name(self) -> str:
        """The spec's label."""
        return self.spec.label

    @property
    def family(self) -> str:
        """The group of specs that share learning rates: neurons, or a codec such as ``pca``."""
        return "neurons" if self.spec.width.selector in NEURONS else self.spec.width.selector


def candidates(space: Space, shape: Shape, size_of: Callable[[HSKSpec], float]) -> list[Candidate]:
    """Return the specs of a space that satisfy its constraints, cheapest first.

    Args:
        space: the space.
        shape: sizes of teacher and student.
        size_of: returns the bytes per example of a spec's store.

    Raises:
        HskdError: a spec names a layer that student or teacher lacks, or no spec is left.
    """
    kept = []
    for spec in space.specs():
        if space.most_layers is not None and len(spec.layers(shape)) > space.most_layers:
            continue
        size = size_of(spec)
        if space.most_bytes is None or size <= space.most_bytes:
            kept.append(Candidate.of(spec, size))
    if not kept:
        raise HskdError(
            "space: no spec is left under its constraints (most_bytes, most_layers, attention); loosen one, or list "
            "smaller amounts."
        )
    return sorted(kept, key=lambda one: (one.bytes_per_example, one.spec.canonical))


@dataclass(frozen=True)
class Axis:
    """A field in which candidates differ.

    Attributes:
        name: ``dimension.field``.
        values: ascending if they are amounts; None stands for a selector without this field.
        ordered: whether they are amounts.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool

    def place(self, fields: Mapping[str, Any]) -> int:
        """Return the index of a candidate's value in ``values``."""
        return self.values.index(fields.get(self.name))


def axes(chosen: Sequence[Candidate]) -> list[Axis]:
    """Return the fields in which candidates differ, without those that another field determines."""
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
    """Return whether a candidate's value on one axis is determined by its value on another."""
    pairs = {(one.fields.get(other.name), one.fields.get(axis.name)) for one in chosen}
    return len(pairs) == len(other.values)


def _is_amount(value: Any) -> bool:
    return value == "all" or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _amount(value: Any) -> float:
    return math.inf if value == "all" else float(value)


def default_space(shape: Shape, tokens: float) -> Space:
    """Return the default space of a search.

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
                # No "all" here: all coordinates are equivalent to all neurons, and take more bytes.
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
    """Return the space of arXiv 2106.05691: layers, tokens that ``[CLS]`` attends to, and the largest neurons."""
    depths = [n for n in (1, 2, 3, 4, 5) if n < shape.student_layers + 1]
    sweep = {"n": [*depths, "all"], "k": [1, 5, 10, 20, 30, 40, 50, "all"], "w": [0.01, 0.05, 0.1, 0.3, 0.5, "all"]}
    return Space.model_validate({"sweeps": [sweep]})


def load_space(name: str) -> Space:
    """Read the YAML file of a space.

    Raises:
        HskdError: it cannot be read, or is not a valid space; the message names file and key.
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
    """Return a space with constraints from the command line, by field; None leaves a constraint unchanged.

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
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # report a misspelt key first
        key = ".".join(map(str, (*first["loc"], *([first["ctx"]["key"]] if "key" in first.get("ctx", {}) else ()))))
        message = first["msg"].removeprefix("Value error, ").removesuffix(".")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known: {', '.join(Space.model_fields)}"
        raise HskdError(f"{where}: {cut(key)}: {message} (got {brief(first['input'])}).") from None
