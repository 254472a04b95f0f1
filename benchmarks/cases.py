"""The measured cases. Cases form groups that are measured together, and groups form suites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hskd.benchmarks.shapes import SPEC, STUDENTS, Sizes


@dataclass(frozen=True)
class Case:
    """One kind of work that is timed, in a process of its own.

    Attributes:
        name: its name in the group.
        what: the function of :mod:`hskd.benchmarks.workers` that does the work.
        lengths: length setting of the examples.
        dtype: fp32, or bf16 for autocast.
        student: kind of the student; empty where there is no student.
        spec: the HSK spec of the HSK stage.
        examples: number of stored examples, or of trials of a grid; None for the setting's default.
        mebibytes: size of the store in MiB, which then decides the number of examples.
        captured: whether a step is one CUDA graph; then a store lies on the device.
    """

    name: str
    what: str
    lengths: str = "cola"
    dtype: str = "fp32"
    student: str = ""
    spec: str = SPEC
    examples: int | None = None
    mebibytes: int | None = None
    captured: bool = False


@dataclass(frozen=True)
class Group:
    """Cases whose times are compared round by round."""

    suite: str
    name: str
    cases: tuple[Case, ...]


TRAINING = ("fine-tuning", "fine-tuning-cls", "offline", "online", "prediction", "stock", "teacher", "matmul")
CAPTURED = ("fine-tuning", "offline", "online", "teacher")


def training(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield groups of every way of training a student, the teacher alone, and the peak of matrix products."""
    for dtype in dtypes:
        for lengths in sizes.lengths:
            for student in STUDENTS:
                cases = tuple(Case(what, what, lengths, dtype, student) for what in TRAINING)
                yield Group("training", f"{student}-{lengths}-{dtype}", cases)


def lengths(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield groups that compare offline training on real lengths with online training at the paper's padding."""
    for student in STUDENTS:
        measured_cases = [(what, "pad64", "fp32") for what in ("online", "teacher", "fine-tuning")]
        measured_cases += [(what, "cola", dtype) for dtype in dtypes for what in ("offline", "fine-tuning")]
        cases = tuple(Case(f"{what}-{at}-{dtype}", what, at, dtype, student) for what, at, dtype in measured_cases)
        yield Group("lengths", student, cases)


def captured(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield groups of training whose steps are captured, with the same offline step launched from Python beside it."""
    at = sizes.lengths[0]
    for dtype in dtypes:
        for student in STUDENTS:
            whole = [Case(what, what, at, dtype, student, captured=True) for what in CAPTURED]
            plain = Case("offline-from-python", "offline", at, dtype, student)
            yield Group("captured", f"{student}-{at}-{dtype}", (*whole, plain))


def extraction(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield groups that compare writing a superset, for one spec and for full HSK, with the bare teacher."""
    for dtype in dtypes:
        for at in sizes.extraction_lengths:
            whole = Case("extraction-full", "extraction", at, dtype, "rosita6", "all_all_all")
            cases = tuple(Case(what, what, at, dtype, "rosita6") for what in ("extraction", "forward"))
            yield Group("extraction", f"{at}-{dtype}", (whole, *cases))


def store(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield a group that compares how fast random batches are read with how fast training consumes them."""
    yield Group(
        "store",
        "reading",
        tuple(
            Case(what, what, "cola", dtypes[-1], "rosita6", examples=sizes.store_examples)
            for what in ("read", "offline")
        ),
    )


def size(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield a group that measures the size of stores on disk."""
    cases = tuple(
        Case(what, what, "cola", student="rosita6", examples=sizes.size_examples) for what in ("superset", "derived")
    )
    yield Group("size", "disk", cases)


def memory(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield a group that measures memory in training from a small and from a large store of full HSK."""
    cases = tuple(
        Case(f"{mebibytes}-MiB", "offline", "cola", dtypes[-1], "rosita6", "all_all_all", mebibytes=mebibytes)
        for mebibytes in sizes.store_mebibytes
    )
    yield Group("memory", "training", cases)


def scale(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield a group of training from stores of more and more examples, all of one length."""
    cases = tuple(
        Case(str(examples), "offline", "short", dtypes[-1], "tinybert4", examples=examples) for examples in sizes.scale
    )
    yield Group("scale", "examples", cases)


def grid(sizes: Sizes, dtypes: tuple[str, ...]) -> Iterator[Group]:
    """Yield a group that measures the overhead of a grid's trials beside training, with tiny models."""
    yield Group("grid", "trials", tuple(Case(str(trials), "grid", examples=trials) for trials in sizes.trials))


SUITES = {
    suite.__name__: suite for suite in (training, lengths, captured, extraction, store, size, memory, scale, grid)
}
