"""Settings of a teacher, and the names of the models that need no hub. This module is light, for configs to import."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

OFFLINE_MINILM = "offline:minilm"
"""all-MiniLM-L6-v2, from a package of the Python registry."""
OFFLINE_MPNET = "offline:mpnet"
"""all-mpnet-base-v2, which `hskd assemble` puts together from five packages."""
OFFLINE_PARAPHRASE = "offline:paraphrase-minilm-l3"
"""paraphrase-MiniLM-L3-v2, which `hskd assemble` rebuilds from the ONNX file of a package."""


def is_offline(name: str) -> bool:
    """Whether ``name`` is that of a model from a package of the Python registry."""
    return name.startswith("offline:")


class TeacherSettings(BaseModel):
    """Settings of a teacher's fine-tuning; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    epochs: Annotated[int, Field(ge=1, description="Epochs.")] = 5
    lr: Annotated[float, Field(gt=0, description="Peak learning rate, linear after warm-up.")] = 2e-5
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps that warms up.")] = 0.1
    batch_size: Annotated[int, Field(ge=1, description="Examples in a batch.")] = 32
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's, but on biases and LayerNorms.")] = 0.01
    seed: Annotated[int, Field(ge=0, description="Decides the classifier's initialisation, batches and dropout.")] = 0
