"""The trainers of the two stages, each fed by a knowledge source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from hskd.distill.losses import kept_loss, prediction_loss, states_at
from hskd.distill.source import KnowledgeSource
from hskd.encoder import hidden_states
from hskd.errors import MismatchError
from hskd.knowledge import KeptHSK
from hskd.runtime import autocast
from hskd.students.loading import PROJECTION_FILE
from hskd.tasks import TokenizedSplit, model_inputs, sequential_batches
from hskd.training import StageTrainer


class HSKModule(nn.Module):
    """A student as the HSK stage trains it: hidden states, and ``W`` where ``d_S != d_T``.

    Args:
        student: the student; its classifier takes no part in this stage.
        teacher_width: ``d_T``.
        seed: ``W`` is drawn from it, unless ``checkpoint`` has one.
        checkpoint: the student's folder, which may hold a ``fit_dense`` to start from.

    Raises:
        MismatchError: that ``fit_dense`` leads to another width than the teacher's.
    """

    def __init__(
        self, student: PreTrainedModel, teacher_width: int, seed: int = 0, checkpoint: Path | None = None
    ) -> None:
        super().__init__()
        self.student = student
        width = student.config.hidden_size
        self.projection: nn.Linear | None = None
        if width != teacher_width:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projection = nn.Linear(width, teacher_width)
            if checkpoint is not None and (checkpoint / PROJECTION_FILE).is_file():
                own = load_file(checkpoint / PROJECTION_FILE)
                if own["weight"].shape != self.projection.weight.shape:
                    raise MismatchError(
                        f"{checkpoint / PROJECTION_FILE}: leads from width {own['weight'].shape[1]} to "
                        f"{own['weight'].shape[0]}; the student's is {width} and the teacher's {teacher_width}. It was "
                        "trained for another teacher: delete it to draw W from the seed."
                    )
                self.projection.load_state_dict(own)

    def forward(self, kept: KeptHSK, **inputs: torch.Tensor) -> torch.Tensor:
        """The HSK loss of a batch (see :func:`hskd.distill.losses.hsk_loss`); what it does not read is not computed."""
        top, example, rank = max(kept.layers), kept.example, kept.rank
        rows = None
        if 0 < (most := int(kept.counts.max())) < inputs["input_ids"].shape[1]:
            rows = torch.zeros((len(kept.counts), most), dtype=torch.long, device=example.device)
            rows[example, rank] = kept.positions[:, kept.layers.index(top)]
        states = hidden_states(self.student, inputs, top, rows)
        at = [
            states_at(states[layer], example, rank if rows is not None and layer == top else kept.positions[:, i])
            for i, layer in enumerate(kept.layers)
        ]
        return kept_loss(at, kept, self.projection)


class HSKTrainer(StageTrainer):
    """The HSK stage: the student's hidden states follow the kept HSK of a knowledge source.

    Args:
        model: the student with its projection.
        args: training arguments.
        split: the training examples.
        source: answers for every batch what is kept.
    """

    def __init__(
        self, model: HSKModule, args: TrainingArguments, split: TokenizedSplit, source: KnowledgeSource
    ) -> None:
        super().__init__(model, args, split, "HSK stage")
        self.source = source

    def targets(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the source keeps of the batch."""
        return {"kept": self.source.kept(batch)}

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """See :func:`hskd.distill.losses.hsk_loss`."""
        loss: torch.Tensor = model(batch["kept"].to(batch["input_ids"].device), **model_inputs(batch))
        return loss


class PredictionTrainer(StageTrainer):
    """The prediction stage: the student's logits follow the teacher's.

    Args:
        model: the student.
        args: training arguments.
        split: the training examples.
        source: answers for every batch what the teacher's logits are.
        tau: temperature.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        split: TokenizedSplit,
        source: KnowledgeSource,
        tau: float = 1.0,
    ) -> None:
        super().__init__(model, args, split, "prediction stage")
        self.source = source
        self.tau = tau

    def targets(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The teacher's logits of the batch."""
        return {"teacher_logits": self.source.logits(batch)}

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """See :func:`hskd.distill.losses.prediction_loss`."""
        return prediction_loss(model(**model_inputs(batch)).logits, batch["teacher_logits"], self.tau)


@torch.no_grad()
def mean_hsk_loss(
    module: HSKModule, split: TokenizedSplit, source: KnowledgeSource, dtype: str, batch_size: int = 128
) -> float:
    """The HSK loss of a student in eval mode, mean over the examples of ``split``."""
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    total = 0.0
    for order in sequential_batches(split.lengths, batch_size):
        batch = split.collate(order)
        with autocast(dtype, device):
            loss = module(source.kept(batch).to(device), **model_inputs(batch, device))
        total += len(order) * float(loss)
    module.train(was_training)
    return total / len(split)
