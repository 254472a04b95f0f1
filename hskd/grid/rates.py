"""Learning rates by family. A family is the arm *none*, the arm *full*, or the specs with the same selectors.

A search finds them (:mod:`hskd.grid.search`), and a grid reads them from its key ``rates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hskd import safe_yaml
from hskd.errors import HskdError, cut
from hskd.io import with_home
from hskd.spec import DIMENSIONS, HSKSpec
from hskd.students.kinds import AnyStudent
from hskd.trials.settings import DistillSettings

NONE, FULL = "none", "full"
"""The families without specs. *gold* and *paper_none* use the rates of *none*, and *shuffled* those of *full*."""


def spec_of(written: str | dict[str, Any]) -> HSKSpec:
    """Parse a spec; an invalid one raises an error that pydantic can report.

    Raises:
        ValueError: the spec is invalid.
    """
    try:
        return HSKSpec.parse(written)
    except HskdError as error:
        raise ValueError(str(error)) from None


def _label(text: str) -> str:
    spec_of(text)
    return text


Label = Annotated[str, AfterValidator(_label)]
"""The short form of a spec."""


class FamilyRates(BaseModel):
    """The learning rates of a family, or of some of its specs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Annotated[
        str, Field(max_length=500, description="none, full, or selectors such as width=pca,precision=int8.")
    ]
    student: Annotated[
        str | None, Field(description="Name of the student [default: all].", exclude_if=lambda name: name is None)
    ] = None
    specs: Annotated[
        tuple[Label, ...],
        Field(
            max_length=2_000,
            description="The specs of the family that the rates are for [default: all].",
            exclude_if=lambda labels: not labels,
        ),
    ] = ()
    hsk_lr: Annotated[
        float | None,
        Field(gt=0, description="Rate of the HSK stage; not for none.", exclude_if=lambda rate: rate is None),
    ] = None
    prediction_lr: Annotated[float, Field(gt=0, description="Rate of the last stage.")]

    @model_validator(mode="after")
    def _has_the_rates_of_its_stages(self) -> FamilyRates:
        if (self.hsk_lr is None) != (self.family == NONE):
            raise ValueError(
                "none has no HSK stage: leave hsk_lr out"
                if self.hsk_lr is not None
                else f"{self.family} has an HSK stage: expected hsk_lr"
            )
        for label in self.specs:
            family = family_of(HSKSpec.parse(label)).split(",hsk_loss=")[0]
            if family != self.family.split(",hsk_loss=")[0]:
                raise ValueError(f"{label} is of the family {family}, not {self.family}")
        return self

    def fits(self, family: str, student: AnyStudent, spec: HSKSpec | None) -> bool:
        """Return whether these rates apply to a trial."""
        # A student's name may be read from its checkpoint, so it is computed only if it decides.
        if family != self.family or (self.student is not None and self.student != student.name):
            return False
        return not self.specs or (spec is not None and any(HSKSpec.parse(label) == spec for label in self.specs))

    @property
    def changes(self) -> dict[str, float]:
        """The rates as changes to a trial's settings."""
        rates = {"hsk_lr": self.hsk_lr, "prediction_lr": self.prediction_lr}
        return {name: rate for name, rate in rates.items() if rate is not None}


def family_of(spec: HSKSpec) -> str:
    """Return the family of a spec: its selectors, without amounts, settings, and selectors that keep a dimension whole.

    A spec that only keeps fewer layers has the family ``depth=top_n``.
    """
    plain = HSKSpec()
    words = []
    for dimension in DIMENSIONS:
        selector, whole = getattr(spec, dimension), getattr(plain, dimension)
        keeps_all = getattr(selector, "k", None) == "all" or selector == whole
        if not keeps_all and not (dimension == "depth" and selector.selector == whole.selector):
            words.append(f"{dimension}={selector.selector}")
    return ",".join(words) or f"depth={spec.depth.selector}"


def family_of_arm(settings: DistillSettings, spec: HSKSpec | None) -> str:
    """Return the family of a trial. A loss of the HSK stage other than squared error is part of the family's name."""
    if settings.arm in ("none", "gold", "paper_none"):
        return NONE
    name = family_of(spec) if settings.arm == "spec" and spec is not None else FULL
    return name if settings.hsk_loss == "mse" else f"{name},hsk_loss={settings.hsk_loss}"


def rates_for(
    rates: Sequence[FamilyRates], settings: DistillSettings, spec: HSKSpec | None, student: AnyStudent
) -> FamilyRates | None:
    """Return the first of ``rates`` that applies to a trial; None if there is none."""
    family = family_of_arm(settings, spec)
    return next((entry for entry in rates if entry.fits(family, student, spec)), None)


def read_rates(place: str) -> list[Any]:
    """Read the entries of a file of rates, as a search writes it. The entries themselves are not validated here.

    Raises:
        HskdError: there is no such file, or it does not hold a list.
    """
    path = Path(with_home(place))
    try:
        content, _ = safe_yaml.parse(safe_yaml.read(path))
    except yaml.YAMLError as error:
        raise HskdError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, list) or not content:
        raise HskdError(f"{cut(str(path))}: expected a list of rates, as `hskd grid search` writes it.")
    return content
