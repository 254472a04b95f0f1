"""Depth: which student layers learn, and from which teacher layers."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import All, Registry, Selector, mix

Pairs = tuple[tuple[int, int], ...]


class DepthSelector(Selector):
    """Base class of the selectors along depth."""

    draws: ClassVar[bool] = False
    """Whether the layers to learn from are drawn anew for each batch (:meth:`drawn`), out of all :meth:`kept`."""

    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return every mapped pair (student layer, teacher layer), ascending. Layer 0 is the embedding output."""
        raise NotImplementedError

    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the pairs (student layer, teacher layer) that are distilled, ascending.

        If layers are drawn for each batch, the student layer is not known in advance. Both numbers of a pair are then
        the teacher layer.
        """
        raise NotImplementedError

    def drawn(self, student_layers: int, teacher_layers: int, draw: int) -> Pairs:
        """Return the layers that one batch learns from, as pairs (student layer, index into :meth:`kept`), ascending.

        ``draw`` is a pseudo-random number of the batch.
        """
        raise NotImplementedError

    def all_layers(self) -> DepthSelector:
        """Return a selector with the same mapping that keeps every mapped layer."""
        raise NotImplementedError


DEPTH: Registry[DepthSelector] = Registry("depth")


def uniform_mapping(student_layers: int, top: int) -> Pairs:
    """Return the pairs ``(l, g(l))`` with ``g(l) = round_half_even(l * L_top / L_S)``, ``l = 0..L_S``.

    Source: arXiv 2106.05691.
    """
    return tuple((layer, round(Fraction(layer * top, student_layers))) for layer in range(student_layers + 1))


def _one_layer(value: object) -> object:
    """Reject layer pairs for a field that needs one teacher layer."""
    if isinstance(value, tuple):
        raise ValueError("expected one teacher layer: its number, or a share of the teacher's layers")
    return value


@DEPTH.register
class TopN(DepthSelector):
    """Keeps the top ``n`` student layers. The student's layers are mapped evenly to teacher layers 0 to ``l_top``."""

    selector: Literal["top_n"] = "top_n"
    n: Annotated[int, Field(ge=1)] | All = "all"
    l_top: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | Pairs = 1.0
    """The teacher layer of the top student layer, as a number or a share of ``L_T``; or explicit pairs of layers."""

    @override
    def all_layers(self) -> TopN:
        return TopN(l_top=self.l_top)

    @override
    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return every mapped pair (student layer, teacher layer), ascending.

        Raises:
            HskdError: ``l_top`` names a layer that the student or the teacher lacks, names no student layer, or names
                a student layer twice.
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
        """Return the top ``n`` pairs, ascending.

        Raises:
            HskdError: ``n`` is larger than the number of mapped layers.
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
    """Keeps the layers of ``top_n`` in reverse: the top student layer learns from the lowest kept teacher layer.

    This is a control for the order of layers, because the kept layers are those of ``top_n`` (arXiv 2502.04499).
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
    """Keeps the top ``n`` student layers, which all learn from teacher layer ``l_top``.

    This is a control for whether student layers need different teacher layers (arXiv 2502.04499). A store holds the
    teacher layer ``n`` times, because tokens are chosen for each student layer.
    """

    selector: Literal["same"] = "same"  # type: ignore[assignment]

    _one_layer = field_validator("l_top")(_one_layer)

    @override
    def all_layers(self) -> Same:
        return Same(l_top=self.l_top)

    @override
    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        pairs = super().mapping(student_layers, teacher_layers)
        return tuple((student, pairs[-1][1]) for student, _ in pairs)


@DEPTH.register
class RandomLayers(TopN):
    """Draws ``n`` teacher layers from 1 to ``l_top`` for every batch.

    The drawn layers are mapped in order to the top ``n`` student layers. The embedding output is never drawn (RAIL-KD,
    arXiv 2109.10164). The draw depends on ``seed``, the trial's seed and the step, so a resumed run draws the same
    layers. A store holds all layers that may be drawn.
    """

    selector: Literal["random"] = "random"  # type: ignore[assignment]
    seed: Annotated[int, Field(ge=0)] = 0

    draws: ClassVar[bool] = True

    _one_layer = field_validator("l_top")(_one_layer)

    @override
    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return all layers that may be drawn, ascending.

        Raises:
            HskdError: ``n`` is larger than the number of student layers, or of layers that may be drawn.
        """
        top = self.mapping(student_layers, teacher_layers)[-1][1]
        if self._count(student_layers) > min(student_layers, top):
            raise HskdError(
                f"depth=random: n = {self.n} is out of range: the student has {student_layers} layers, and "
                f"{top} teacher layers can be drawn (the embedding output never is)."
            )
        return tuple((layer, layer) for layer in range(1, top + 1))

    @override
    def drawn(self, student_layers: int, teacher_layers: int, draw: int) -> Pairs:
        import numpy as np

        count, candidates = self._count(student_layers), len(self.kept(student_layers, teacher_layers))
        places = np.sort(np.argsort(mix(self.seed, draw, np.arange(candidates)), kind="stable")[:count])
        students = range(student_layers - count + 1, student_layers + 1)
        return tuple(zip(students, places.tolist(), strict=True))

    def _count(self, student_layers: int) -> int:
        return student_layers if self.n == "all" else self.n


def _reversed(pairs: Pairs) -> Pairs:
    students, teachers = zip(*pairs, strict=True)
    return tuple(zip(students, reversed(teachers), strict=True))
