"""Settings of one distillation. Every field's description is also its help on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hskd.compat import COMPAT_HELP, SQUARED_ERROR_ONLY, Compat

if TYPE_CHECKING:
    from hskd.spec import HSKSpec

Arm = Literal["spec", "full", "none", "paper_none", "gold", "shuffled"]
HSKLossName = Literal["mse", "standardised", "cosine", "gram"]
"""The losses of the HSK stage. Their code is in :mod:`hskd.distill.losses`, which needs torch; this module does not."""
ARMS: tuple[Arm, ...] = ("spec", "full", "none", "paper_none", "gold", "shuffled")


class DistillSettings(BaseModel):
    """Settings of a distillation; the defaults of rates, batch and decay are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    arm: Annotated[
        Arm,
        Field(
            description="spec: distil --spec. full: all HSK of the mapping. none: prediction stage only, for the "
            "epochs of both stages. paper_none: prediction stage only, for the HSK stage's epochs. gold: hard labels, "
            "no teacher. shuffled: full HSK of another example, a control."
        ),
    ] = "spec"
    seed: Annotated[int, Field(ge=0, description="Seed of batch order, dropout and W.")] = 0
    hsk_epochs: Annotated[int | None, Field(ge=0, description="Epochs of the HSK stage [default: the task's].")] = None
    prediction_epochs: Annotated[int, Field(ge=0, description="Epochs of the prediction stage.")] = 5
    hsk_lr: Annotated[float, Field(gt=0, description="Learning rate of the HSK stage, constant after warm-up.")] = 5e-5
    prediction_lr: Annotated[float, Field(gt=0, description="Peak learning rate of the prediction stage, linear.")] = (
        2e-5
    )
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of each stage's steps that warms up.")] = 0.0
    batch_size: Annotated[int, Field(ge=1, description="Examples in a batch.")] = 32
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's, except on biases and LayerNorms.")] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0, description="Gradients are clipped to this norm.")] = 1.0
    tau: Annotated[float, Field(gt=0, description="Temperature of the prediction stage.")] = 1.0
    hsk_loss: Annotated[
        HSKLossName,
        Field(
            description="Loss of the HSK stage. mse: squared error. standardised: squared error of numbers divided by "
            "the teacher's standard deviation. cosine: cosine distance of each token's numbers. gram: compares the "
            "cosines between an example's kept tokens, without W.",
            # Omitted if it is the default, so that the identity of trials from before this field stays the same.
            exclude_if=lambda name: name == "mse",
        ),
    ] = "mse"
    loss: Annotated[
        str | None,
        Field(
            description="Loss of the prediction stage, where a task has several: cosine, mse or similarity for "
            "embeddings, bce or mse for rerankers [default: the task's].",
            # Omitted if not chosen, like compat.
            exclude_if=lambda name: name is None,
        ),
    ] = None
    compat: Annotated[
        tuple[Compat, ...],
        Field(
            description=COMPAT_HELP,
            # Omitted if empty, so that the identity of a trial without departures does not depend on it.
            exclude_if=lambda switches: not switches,
        ),
    ] = ()

    @field_validator("compat")
    @classmethod
    def _in_one_order(cls, switches: tuple[Compat, ...]) -> tuple[Compat, ...]:
        return tuple(sorted(set(switches)))

    @model_validator(mode="after")
    def _goes_with_compat(self) -> DistillSettings:
        if self.hsk_loss != "mse":
            for name in self.compat:
                if name in SQUARED_ERROR_ONLY:
                    raise ValueError(
                        f"hsk_loss {self.hsk_loss}: compat {name} is about the squared error; leave one out"
                    )
        return self

    def arm_spec(self, spec: HSKSpec) -> HSKSpec | None:
        """Return the spec that this arm distils in the HSK stage; ``spec`` is that of the arm *spec*. None: no HSK."""
        if self.arm == "spec":
            return spec
        return spec.full() if self.arm in ("full", "shuffled") else None

    def epochs(self, default_hsk_epochs: int) -> tuple[int, int]:
        """Return the epochs of the HSK stage and of the last stage in this arm.

        Every arm except *paper_none* trains for the same total, so that no arm gains from longer training.
        """
        hsk = default_hsk_epochs if self.hsk_epochs is None else self.hsk_epochs
        if self.arm == "paper_none":
            return 0, hsk
        return (0, hsk + self.prediction_epochs) if self.arm in ("none", "gold") else (hsk, self.prediction_epochs)
