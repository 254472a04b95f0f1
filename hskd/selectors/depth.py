"""Depth: which student layers learn, and from which teacher layer each."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import All, Registry, Selector

Pairs = tuple[tuple[int, int], ...]


class DepthSelector(Selector):
    """Base of the selectors along depth."""

    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Every mapped pair (student layer, teacher layer), ascending; layer 0 is the embedding output."""
        raise NotImplementedError

    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """The pairs that are distilled, ascending."""
        raise NotImplementedError

    def all_layers(self) -> DepthSelector:
        """The same mapping with every mapped layer kept."""
        raise NotImplementedError


DEPTH: Registry[DepthSelector] = Registry("depth")


def uniform_mapping(student_layers: int, top: int) -> Pairs:
    """``g(l) = round_half_even(l * L_top / L_S)`` for ``l = 0..L_S`` (arXiv 2106.05691)."""
    return tuple((layer, round(Fraction(layer * top, student_layers))) for layer in range(student_layers + 1))


@DEPTH.register
class TopN(DepthSelector):
    """The top ``n`` student layers, mapped evenly onto teacher layers 0 to ``l_top``."""

    selector: Literal["top_n"] = "top_n"
    n: Annotated[int, Field(ge=1)] | All = "all"
    l_top: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | Pairs = 1.0
    """Teacher layer that the top student layer learns from: a number, a share of ``L_T``, or explicit pairs."""

    @override
    def all_layers(self) -> TopN:
        return TopN(l_top=self.l_top)

    @override
    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Every mapped pair (student layer, teacher layer), ascending.

        Raises:
            HskdError: a layer of ``l_top`` is not one of the student's or the teacher's.
        """
        if isinstance(self.l_top, tuple):
            for student, teacher in self.l_top:
                if not (0 <= student <= student_layers and 0 <= teacher <= teacher_layers):
                    raise HskdError(
                        f"depth: l_top pair ({student}, {teacher}) is out of range: student layers are "
                        f"0..{student_layers}, teacher layers 0..{teacher_layers}."
                    )
            students = [student for student, _ in self.l_top]
            if not students or len(set(students)) < len(students):
                raise HskdError(
                    f"depth: l_top pairs {list(self.l_top)} must name one or more student layers, each once."
                )
            return tuple(sorted(self.l_top))
        top = round(Fraction(str(self.l_top)) * teacher_layers) if isinstance(self.l_top, float) else self.l_top
        if not 1 <= top <= teacher_layers:
            raise HskdError(f"depth: l_top = {self.l_top} is out of range: the teacher has layers 1..{teacher_layers}.")
        return uniform_mapping(student_layers, top)

    @override
    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """The top ``n`` pairs, ascending.

        Raises:
            HskdError: ``n`` is more than the mapped layers.
        """
        pairs = self.mapping(student_layers, teacher_layers)
        n = len(pairs) if self.n == "all" else self.n
        if n > len(pairs):
            raise HskdError(
                f"depth: n = {n} is out of range: {len(pairs)} student layers are mapped (embedding included)."
            )
        return pairs[-n:]


@DEPTH.register
class Reverse(TopN):
    """The layers of ``top_n``, in reverse: the top student layer learns from the lowest of the kept teacher layers.

    A control: what is kept is what ``top_n`` keeps, so a difference is one of order (arXiv 2502.04499).
    """

    selector: Literal["reverse"] = "reverse"  # type: ignore[assignment]

    @override
    def all_layers(self) -> Reverse:
        return Reverse(l_top=self.l_top)

    @override
    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        return _reversed(super().mapping(student_layers, teacher_layers))

    @override
    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        return _reversed(TopN(n=self.n, l_top=self.l_top).kept(student_layers, teacher_layers))


@DEPTH.register
class Same(TopN):
    """The top ``n`` student layers, which all learn from the teacher layer that ``l_top`` says.

    A control: whether layers need different teachers (arXiv 2502.04499). A store holds that layer once for each of
    the ``n``, because tokens are chosen for each student layer.
    """

    selector: Literal["same"] = "same"  # type: ignore[assignment]

    @field_validator("l_top")
    @classmethod
    def _is_one_layer(cls, value: object) -> object:
        if isinstance(value, tuple):
            raise ValueError("expected one teacher layer: its number, or a share of the teacher's layers")
        return value

    @override
    def all_layers(self) -> Same:
        return Same(l_top=self.l_top)

    @override
    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        pairs = super().mapping(student_layers, teacher_layers)
        return tuple((student, pairs[-1][1]) for student, _ in pairs)


def _reversed(pairs: Pairs) -> Pairs:
    students, teachers = zip(*pairs, strict=True)
    return tuple(zip(students, reversed(teachers), strict=True))
