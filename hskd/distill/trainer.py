"""Trainers of the two stages, each fed by a knowledge source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from hskd.distill.dataset import DistillationDataset
from hskd.distill.losses import HSKLoss, kept_loss, kept_states, states_at
from hskd.distill.projection import make_projection
from hskd.distill.source import KnowledgeSource
from hskd.fast.encoder import LeanEncoder
from hskd.knowledge import KeptHSK
from hskd.runtime import autocast
from hskd.tasks import TokenizedSplit, head_inputs, is_padded, model_inputs, sequential_batches
from hskd.training import HeadModule, StageArguments, StageTrainer


class Criterion(nn.Module):
    """Loss of the HSK stage as a module without weights (see :func:`hskd.distill.losses.kept_loss`).

    Args:
        loss: name of the loss.
        spread: the teacher's standard deviations, for ``standardised``.
    """

    spread: torch.Tensor | None

    def __init__(self, loss: HSKLoss = "mse", spread: torch.Tensor | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, states: Sequence[torch.Tensor], kept: KeptHSK, projection: nn.Module | None) -> torch.Tensor:
        """Return the loss of hidden states at the kept tokens."""
        return kept_loss(states, kept, projection, self.loss, self.spread)


class HSKModule(nn.Module):
    """The model that the HSK stage trains: a student, and ``W`` if ``d_S != d_T``.

    Args:
        student: the student. This stage does not use its classifier.
        teacher_width: ``d_T``.
        seed: seed from which ``W`` is drawn, unless ``checkpoint`` has one.
        checkpoint: the student's folder, which may hold a ``fit_dense`` as the initial ``W``.
        encoder: runs the student; None for a :class:`~hskd.fast.LeanEncoder`.
        criterion: the loss; None for squared error. With ``gram`` there is no ``W``, because it needs none.

    Raises:
        MismatchError: the ``fit_dense`` does not map the student's width to the teacher's.
    """

    accepts_loss_kwargs = False  # Otherwise Trainer would count labels over all processes, which no loss here needs.

    def __init__(
        self,
        student: PreTrainedModel,
        teacher_width: int,
        seed: int = 0,
        checkpoint: Path | None = None,
        encoder: LeanEncoder | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.encoder = encoder or LeanEncoder(student)
        self.criterion = criterion or Criterion()
        width = student.config.hidden_size
        needs_projection = self.criterion.loss != "gram"
        self.projection = make_projection(width, teacher_width, seed, checkpoint) if needs_projection else None

    def forward(self, kept: KeptHSK, padded: bool | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the HSK loss of a batch (see :func:`hskd.distill.losses.hsk_loss`).

        Hidden states that the loss does not read are not computed.

        Args:
            kept: the targets.
            padded: whether the batch has pads; None to read it from the mask, which synchronises with a GPU.
            inputs: the student's inputs.
        """
        top, example, rank = max(kept.layers), kept.example, kept.rank
        rows = None
        assert kept.most is not None
        if kept.members is None and 0 < kept.most < inputs["input_ids"].shape[1]:
            rows = torch.zeros((len(kept.counts), kept.most), dtype=torch.long, device=example.device)
            rows[example, rank] = kept.positions[:, kept.layers.index(top)]
        states = self.encoder.hidden_states(inputs, top, rows, padded)
        at = [
            states_at(states[layer], example, rank)
            if rows is not None and layer == top
            else kept_states(states[layer], kept, i)
            for i, layer in enumerate(kept.layers)
        ]
        return self.criterion(at, kept, self.projection)


class HSKTrainer(StageTrainer):
    """Trainer of the HSK stage: the student's hidden states learn the kept HSK of a knowledge source.

    Args:
        model: the student with its projection.
        args: training arguments.
        split: the training examples.
        source: provides the kept HSK of every batch.
        stage: name of the stage, for messages and progress.
        options: further arguments of ``Trainer``.
    """

    def __init__(
        self,
        model: HSKModule,
        args: StageArguments,
        split: TokenizedSplit,
        source: KnowledgeSource,
        stage: str = "HSK stage",
        **options: Any,
    ) -> None:
        super().__init__(model, args, DistillationDataset(split, source, "hsk"), stage, **options)

    @override
    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        kept = batch["kept"].to(batch["input_ids"].device)
        loss: torch.Tensor = model(kept, padded=batch["padded"], **model_inputs(batch))
        return loss


class PredictionTrainer(StageTrainer):
    """Trainer of the prediction stage: the student's rows learn the teacher's rows.

    Args:
        model: the student with its head.
        args: training arguments.
        split: the training examples.
        source: provides the teacher's rows for every batch.
        tau: temperature.
        options: further arguments of ``Trainer``.
    """

    def __init__(
        self,
        model: HeadModule,
        args: StageArguments,
        split: TokenizedSplit,
        source: KnowledgeSource,
        tau: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, args, DistillationDataset(split, source, "prediction"), "prediction stage", **options)
        self.head = model.head
        self.tau = tau

    @override
    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        rows = model(padded=batch["padded"], **head_inputs(batch))
        return self.head.distil_loss(rows, batch["target"], self.tau)


@torch.no_grad()
def mean_hsk_loss(
    module: HSKModule, split: TokenizedSplit, source: KnowledgeSource, dtype: str, batch_size: int = 128
) -> float:
    """Return the squared-error HSK loss of a student in eval mode, mean over the examples of ``split``.

    It is the squared error even if ``module`` trains with another loss.
    """
    was_training, criterion = module.training, module.criterion
    module.eval()
    module.criterion = Criterion()
    device = next(module.parameters()).device
    total = 0.0
    for order in sequential_batches(split.lengths, batch_size):
        batch = split.collate(order)
        with autocast(dtype, device):
            kept = source.kept(batch).to(device)
            loss = module(kept, padded=is_padded(batch), **model_inputs(batch, device))
        total += len(order) * float(loss)
    module.criterion = criterion
    module.train(was_training)
    return total / len(split)
