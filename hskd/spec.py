"""The HSK spec, which says what is kept of a teacher's hidden states: one selector and amount per dimension."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from hskd.errors import HskdError, brief, cut
from hskd.hashing import canonical_json, fingerprint
from hskd.io import with_home
from hskd.selectors import (
    DEPTH,
    EXAMPLES,
    LENGTH,
    PRECISION,
    WIDTH,
    DepthSelector,
    ExamplesSelector,
    LengthSelector,
    PrecisionSelector,
    Registry,
    Selector,
    WidthSelector,
)
from hskd.selectors.base import describe
from hskd.selectors.depth import TopN, uniform_mapping
from hskd.selectors.examples import RandomExamples
from hskd.selectors.length import Left
from hskd.selectors.precision import FP16
from hskd.selectors.width import UniformNeurons

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DIMENSIONS: dict[str, Registry[Any]] = {
    "depth": DEPTH,
    "length": LENGTH,
    "width": WIDTH,
    "precision": PRECISION,
    "examples": EXAMPLES,
}
_AMOUNT = {"depth": ("n", "l"), "length": ("k", "t"), "width": ("w", "w"), "examples": ("e", "e")}
"""The field with the amount of each dimension, and its unit in the short form."""
_SHORT = re.compile(
    r"(?:(all)l?|(\d+)l)_(?:(all)t?|(\d+)t)_(?:(all)[wh]?|(\d*\.\d+|\d+)[wh])(?:_(?:(all)e?|(\d*\.\d+|\d+)e))?",
    re.ASCII,
)
_LONGEST_SHORT, _LONGEST_JSON = 4_000, 1_000_000
"""Maximum characters of a spec. Python cannot parse integers of more than 4,300 digits."""


@dataclass(frozen=True)
class Shape:
    """The sizes of teacher and student to which a spec is applied.

    Attributes:
        student_layers: ``L_S``, excluding the embedding output.
        teacher_layers: ``L_T``, excluding the embedding output.
        teacher_width: ``d_T``.
        vocab_size: size of the tokenizer's vocabulary.
    """

    student_layers: int
    teacher_layers: int
    teacher_width: int
    vocab_size: int

    @classmethod
    def of(cls, teacher: PretrainedConfig, student_layers: int) -> Shape:
        """Return the sizes for a teacher's configuration and a student with ``student_layers`` layers."""
        return cls(
            student_layers=student_layers,
            teacher_layers=teacher.num_hidden_layers,
            teacher_width=teacher.hidden_size,
            vocab_size=teacher.vocab_size,
        )


class Layer(NamedTuple):
    """One kept layer: the student layer, the teacher layer it learns from, and the layers whose scores rank tokens."""

    student: int
    teacher: int
    attention: int | None
    gradient: int | None = None
    received: int | None = None


class HSKSpec(BaseModel):
    """One selector and amount per dimension. :attr:`canonical` identifies it, and :attr:`label` is its short form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: SerializeAsAny[DepthSelector] = TopN()
    length: SerializeAsAny[LengthSelector] = Left()
    width: SerializeAsAny[WidthSelector] = UniformNeurons()
    precision: SerializeAsAny[PrecisionSelector] = FP16()
    examples: Annotated[
        SerializeAsAny[ExamplesSelector],
        # Absent if all are kept, so that specs keep their identity from versions without this dimension.
        Field(exclude_if=lambda selector: selector.keeps_all),
    ] = RandomExamples()

    @field_validator(*DIMENSIONS, mode="before")
    @classmethod
    def _from_registry(cls, value: Any, info: Any) -> Selector:
        return DIMENSIONS[info.field_name].parse(value)  # type: ignore[no-any-return]

    @field_validator("examples")
    @classmethod
    def _all_are_all(cls, selector: ExamplesSelector) -> ExamplesSelector:
        return RandomExamples() if selector.keeps_all else selector  # If all are kept, the selector has no effect.

    @model_validator(mode="after")
    def _go_together(self) -> HSKSpec:
        self.width.check(self.precision)
        if self.depth.draws and getattr(self.length, "att_map", "same") != "same":
            raise ValueError(
                f"depth={self.depth.selector} draws teacher layers for each batch, so none is mapped to a student "
                "layer in advance; leave length.att_map at same"
            )
        return self

    @classmethod
    def parse(cls, text: str | dict[str, Any] | HSKSpec) -> HSKSpec:
        """Return the spec that ``text`` describes: its short form, JSON, or the path of a JSON file.

        The short form is ``1l_10t_0.1w``: layers, tokens and width. ``all`` keeps everything, and ``h`` may replace
        ``w``, as in the paper. A share of the examples may follow (``1l_10t_0.1w_0.25e``), and then comma-separated
        changes. A change sets a selector (``length=left``, ``width=pca``) or a selector's field (``l_top=5``,
        ``length.seed=3``, ``rotate=true``); docs/selectors.md lists them. Without a change, a numeric amount uses the
        selectors ``top_n``, ``attention_no_sep``, ``magnitude`` and, for examples, ``random``.

        Raises:
            HskdError: the text is none of these, a selector is unknown, or an amount is out of range.
        """
        if isinstance(text, HSKSpec):
            return text
        if isinstance(text, dict):
            return cls._validate(text)
        if not isinstance(text, str):
            raise HskdError(f"spec {brief(text)}: expected a text such as 1l_10t_0.1w, or an object of selectors.")
        if text.endswith(".json"):
            text = _read(text)
        if text.lstrip().startswith("{"):
            if len(text) > _LONGEST_JSON:
                raise HskdError(f"spec: {len(text):,} characters of JSON; expected at most {_LONGEST_JSON:,}.")
            try:
                return cls._validate(json.loads(text))
            except (ValueError, RecursionError) as error:  # not JSON, an integer with too many digits, or too deep
                raise HskdError(f"spec: not valid JSON ({error}).") from None
        short, *changes = text.strip().split(",") if len(text) <= _LONGEST_SHORT else ("",)
        match = _SHORT.fullmatch(short)
        if not match:
            raise HskdError(
                f"spec {brief(text)}: expected layers_tokens_width such as 1l_10t_0.1w or all_all_all, optionally "
                "followed by a share of the examples (1l_10t_0.1w_0.25e) and by changes such as length=left or "
                "l_top=5, separated by commas; or JSON; or the path of a .json file."
            )
        _, n, _, k, _, w, _, e = match.groups()
        fields: dict[str, dict[str, Any]] = {
            "depth": {"selector": "top_n", "n": int(n) if n else "all"},
            "length": {"selector": "attention_no_sep", "k": int(k)} if k else {"selector": "left", "k": "all"},
            "width": {"selector": "magnitude", "w": float(w)} if w else {"selector": "uniform", "w": 1.0},
            "precision": {"selector": "fp16"},
        }
        if e:
            fields["examples"] = {"selector": "random", "e": float(e)}
        for change in changes:
            _apply_change(fields, change.strip(), text)
        return cls._validate(fields)

    @classmethod
    def _validate(cls, fields: Any) -> HSKSpec:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise HskdError(f"spec: {describe(error)}.") from None

    def __eq__(self, other: object) -> bool:
        """Compare :attr:`canonical`. Field by field, ``l_top=1`` (layer 1) would equal ``l_top=1.0`` (all layers)."""
        return isinstance(other, HSKSpec) and self.canonical == other.canonical

    def full(self) -> HSKSpec:
        """Return the spec of full HSK under the same mapping: every mapped layer, token and neuron, same precision."""
        return HSKSpec(depth=self.depth.all_layers(), precision=self.precision)

    @property
    def canonical(self) -> str:
        """JSON of all fields with sorted keys. Two specs are equal if and only if this text is."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the spec."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """The short form. :meth:`parse` reads it back, except for a spec with explicit layer pairs."""
        short = "_".join(
            _amount_text(getattr(getattr(self, dimension), field, "all"), unit)
            for dimension, (field, unit) in _AMOUNT.items()
            if dimension != "examples" or not self.examples.keeps_all
        )
        return ",".join([short, *_changes(HSKSpec.parse(short), self)])

    def layers(self, shape: Shape) -> tuple[Layer, ...]:
        """Return the kept layers, from the lowest up; all that may be drawn, if layers are drawn for each batch.

        Raises:
            HskdError: the student or the teacher lacks a layer that the spec names.
        """
        top = dict(uniform_mapping(shape.student_layers, shape.teacher_layers))
        return tuple(
            Layer(
                student,
                teacher,
                self.length.attention_layer(teacher, teacher if self.depth.draws else top[student]),
                self.length.gradient_layer(teacher),
                self.length.received_layer(teacher),
            )
            for student, teacher in self.depth.kept(shape.student_layers, shape.teacher_layers)
        )


def _read(path: str) -> str:
    """Return the text of a spec's JSON file.

    Raises:
        HskdError: the file is missing or cannot be read.
    """
    try:
        with Path(with_home(path)).open(encoding="utf-8-sig") as file:
            return file.read(_LONGEST_JSON + 1)
    except FileNotFoundError:
        raise HskdError(f"spec: {path}: no such file.") from None
    except (OSError, ValueError) as error:  # a folder, an invalid file name, or bytes that are not UTF-8
        raise HskdError(
            f"spec: {cut(path)}: cannot be read as a JSON file ({getattr(error, 'strerror', None) or error})."
        ) from None


def _amount_text(amount: int | float | str, unit: str) -> str:
    everything = amount == "all" or (unit in ("w", "e") and amount == 1)
    return "all" if everything else f"{Decimal(str(amount)):f}{unit}"


def _settings(dimension: str, selector: str) -> list[str]:
    """Return the names of a selector's fields, without its name and its amount."""
    amount, _ = _AMOUNT.get(dimension, ("", ""))
    return [field for field in DIMENSIONS[dimension][selector].model_fields if field not in ("selector", amount)]


def _apply_change(fields: dict[str, dict[str, Any]], change: str, text: str) -> None:
    """Apply ``dimension=selector`` or ``[dimension.]field=value`` to the fields of a spec."""
    name, equals, value = change.partition("=")
    if not equals:
        raise HskdError(f"spec {brief(text)}: {brief(change)}: expected name=value, such as length=left or l_top=5.")
    if name in fields:
        amount, _ = _AMOUNT.get(name, ("", ""))
        kept = {amount: fields[name][amount]} if amount in DIMENSIONS[name][value].model_fields else {}
        fields[name] = {"selector": value, **kept}
        return
    if name.partition(".")[0] == "examples" and "examples" not in fields:
        raise HskdError(
            f"spec {brief(text)}: {brief(change)}: has no effect if all examples are kept; give their share after the "
            "width, such as 1l_10t_0.1w_0.25e."
        )
    known = [f"{owner}.{field}" for owner in fields for field in _settings(owner, fields[owner]["selector"])]
    matches = [full for full in known if name in (full, full.partition(".")[2])]
    if len(matches) != 1:
        raise HskdError(
            f"spec {brief(text)}: {brief(name)} must name one of: {', '.join(matches or [*fields, *known])}."
        )
    owner, _, field = matches[0].partition(".")
    try:
        fields[owner][field] = json.loads(value)
    except (ValueError, RecursionError):
        fields[owner][field] = value


def _changes(base: HSKSpec, spec: HSKSpec) -> Iterator[str]:
    """Yield the changes that turn the short form of ``base`` into that of ``spec``."""
    for dimension in DIMENSIONS:
        selector: Selector = getattr(spec, dimension)
        base_selector: Selector = getattr(base, dimension)
        if selector.selector != base_selector.selector:
            yield f"{dimension}={selector.selector}"
        for field in _settings(dimension, selector.selector):
            value = getattr(selector, field)
            if repr(value) != repr(type(selector).model_fields[field].default):  # 1 == 1.0, but l_top=1 is a layer
                yield f"{dimension}.{field}={str(value).lower() if isinstance(value, bool) else value}"
