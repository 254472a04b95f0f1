"""Settings of a teacher, and names of the offline models. This module imports little, so that configs can import it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

OFFLINE_MINILM = "offline:minilm"
"""all-MiniLM-L6-v2, from a PyPI package."""
OFFLINE_MPNET = "offline:mpnet"
"""all-mpnet-base-v2, which `hskd assemble` joins from five packages."""
OFFLINE_PARAPHRASE = "offline:paraphrase-minilm-l3"
"""paraphrase-MiniLM-L3-v2, which `hskd assemble` rebuilds from the ONNX file of a package."""


def is_offline(name: str) -> bool:
    """Return whether ``name`` is the name of a model from PyPI packages."""
    return name.startswith("offline:")


class TeacherSettings(BaseModel):
    """Settings of a teacher's fine-tuning; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    epochs: Annotated[int, Field(ge=1, description="Epochs.")] = 5
    lr: Annotated[float, Field(gt=0, description="Peak learning rate, with linear decay after warm-up.")] = 2e-5
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps used for warm-up.")] = 0.1
    batch_size: Annotated[int, Field(ge=1, description="Examples in a batch.")] = 32
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's, except on biases and LayerNorms.")] = 0.01
    seed: Annotated[int, Field(ge=0, description="Seed of the classifier's weights, batches and dropout.")] = 0
