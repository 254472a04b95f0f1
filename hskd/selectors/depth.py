"""Depth: which student layers learn, and from which teacher layer each."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from hskd.errors import HskdError
from hskd.selectors.base import All, Registry, Selector, mix

Pairs = tuple[tuple[int, int], ...]


class DepthSelector(Selector):
    """Base of the selectors along depth."""

    draws: ClassVar[bool] = False
    """Whether each batch learns from other layers (:meth:`drawn`), of all that are :meth:`kept`."""

    def mapping(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Every mapped pair (student layer, teacher layer), ascending; layer 0 is the embedding output."""
        raise NotImplementedError

    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """The pairs that are distilled, ascending.

        Where layers are drawn for each batch, no student layer is known of a teacher layer: both numbers are its own.
        """
        raise NotImplementedError

    def drawn(self, student_layers: int, teacher_layers: int, draw: int) -> Pairs:
        """What a batch learns from, where layers are drawn: pairs (student layer, place among :meth:`kept`), ascending.

        ``draw`` is a number of the batch, which looks random.
        """
        raise NotImplementedError

    def all_layers(self) -> DepthSelector:
        """The same mapping with every mapped layer kept."""
        raise NotImplementedError


DEPTH: Registry[DepthSelector] = Registry("depth")


def uniform_mapping(student_layers: int, top: int) -> Pairs:
    """``g(l) = round_half_even(l * L_top / L_S)`` for ``l = 0..L_S`` (arXiv 2106.05691)."""
    return tuple((layer, round(Fraction(layer * top, student_layers))) for layer in range(student_layers + 1))


def _one_layer(value: object) -> object:
    """Refuse layer pairs where one teacher layer is asked for."""
    if isinstance(value, tuple):
        raise ValueError("expected one teacher layer: its number, or a share of the teacher's layers")
    return value


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
    """For every batch, ``n`` teacher layers drawn from 1 to ``l_top``, in order, for the top ``n`` student layers.

    The embedding output takes no part (RAIL-KD, arXiv 2109.10164). What is drawn depends on ``seed``, the seed of the
    trial and the step, so that a resumed run draws the same. A store holds all layers that may be drawn.
    """

    selector: Literal["random"] = "random"  # type: ignore[assignment]
    seed: Annotated[int, Field(ge=0)] = 0

    draws: ClassVar[bool] = True

    _one_layer = field_validator("l_top")(_one_layer)

    @override
    def kept(self, student_layers: int, teacher_layers: int) -> Pairs:
        """All layers that may be drawn, ascending.

        Raises:
            HskdError: ``n`` is more than the student's layers, or than there are to draw.
        """
        top = self.mapping(student_layers, teacher_layers)[-1][1]
        if self._count(student_layers) > min(student_layers, top):
            raise HskdError(
                f"depth=random: n = {self.n} is out of range: the student has {student_layers} layers to learn, and "
                f"{top} teacher layers are there to be drawn (the embedding output takes no part)."
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
