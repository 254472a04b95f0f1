"""Departures of the paper's released code from this project, each switched on by its name.

docs/compat.md describes the switches. A trial calls only the hooks of :class:`Departures`, and does not depend on the
names of switches. Trainers, sources and losses do not depend on this module; it replaces them by variants of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel
from typing_extensions import override

from hskd.compat import ONLINE_ONLY, Compat, require_regression
from hskd.distill.source import Batch, KnowledgeSource, OnlineSource
from hskd.distill.trainer import PredictionTrainer
from hskd.errors import HskdError
from hskd.knowledge import KeptHSK, TeacherStates, select_hsk
from hskd.paper.bert_adam import BertAdam
from hskd.selectors import Tokens
from hskd.selectors.basis import BasisWidth
from hskd.selectors.length import AttentionNoSep
from hskd.selectors.precision import FP32
from hskd.selectors.width import Magnitude, RandomNeurons, UniformNeurons
from hskd.spec import HSKSpec
from hskd.tasks import Task, TokenizedSplit
from hskd.tasks.positions import max_tokens
from hskd.teachers.forward import ForwardOptions, TeacherOutput
from hskd.teachers.loading import Teacher
from hskd.training import GoldTrainer, HeadModule, StageArguments, StageRecipe, StageTrainer, training_arguments


class Departures:
    """Hooks that a trial calls. With no switch on, each hook does what a trial does by default.

    Args:
        switches: the departures that are on.
    """

    def __init__(self, switches: Iterable[Compat] = ()) -> None:
        self._on = frozenset(switches)

    # Checks

    def require_task(self, task: Task) -> None:
        """Refuse a switch that does not fit the task (see :func:`hskd.compat.require_regression`)."""
        require_regression(self._on, task)

    def require_splits(self, splits: Mapping[str, TokenizedSplit], batch_size: int) -> None:
        """Refuse switches whose examples or labels are missing.

        Raises:
            HskdError: ``drop_last`` is on and there are fewer training examples than a batch has; or ``best_epoch`` or
                ``gold_regression`` is on and the labels that it needs are missing.
        """
        train, dev = splits["train"], splits.get("dev")
        if "drop_last" in self._on and len(train) < batch_size:
            raise HskdError(
                f"compat drop_last: {len(train)} training examples are fewer than a batch of {batch_size}; "
                "lower --batch-size, or leave the switch out."
            )
        if "best_epoch" in self._on and (dev is None or dev.labels is None):
            raise HskdError("compat best_epoch: needs the labels of dev, which are missing; give the data.")
        if "gold_regression" in self._on and train.labels is None:
            raise HskdError("compat gold_regression: needs the gold labels of train, which are missing; give the data.")

    def require_spec(self, spec: HSKSpec | None) -> None:
        """Refuse switches that concern neurons if a spec keeps other numbers.

        Raises:
            HskdError: ``zero_dropped`` is on and the spec keeps coordinates along a basis.
        """
        if "zero_dropped" in self._on and isinstance(spec and spec.width, BasisWidth):
            raise HskdError(
                "compat zero_dropped: dropped neurons are compared with 0, and width="
                f"{spec.width.selector if spec else ''} drops none, because it keeps coordinates; leave the switch out."
            )

    def require_whole_batches(self, accumulate: int, processes: int) -> None:
        """Refuse switches that need a whole batch at a time if batches are split.

        Raises:
            HskdError: batches are split; the message names the switch.
        """
        for name in sorted(self._on & {"batch_threshold", "loose_masks"}):
            if accumulate * processes > 1:
                raise HskdError(
                    f"compat {name}: what is kept depends on the whole batch, which {processes} processes with "
                    f"--accumulate {accumulate} cut into parts; use one process and --accumulate 1."
                )

    # Teacher

    def online_source(
        self,
        teacher: Teacher,
        sep_id: int,
        spec: HSKSpec | None,
        student_layers: int,
        dtype: str,
        aligned: TokenizedSplit | None = None,
    ) -> OnlineSource:
        """Return the source that runs the teacher; ``aligned`` is as in :class:`~hskd.distill.source.OnlineSource`.

        Raises:
            HskdError: ``relu_pooled`` is on and the teacher's head is not BERT's; or a switch changes how the teacher
                runs, and the teacher has another tokenizer than the student.
        """
        online_only = sorted(self._on & set(ONLINE_ONLY))
        if not online_only:
            return OnlineSource(teacher, sep_id, spec, student_layers, dtype, aligned)
        if aligned is not None:
            raise HskdError(
                f"compat {', '.join(online_only)}: needs a teacher with the student's tokenizer, and "
                f"{teacher.name} has another; leave the switch out."
            )
        return CompatSource(self._on, teacher, sep_id, spec, student_layers, dtype)

    # Student and stages

    def student(self, model: PreTrainedModel, distils: bool = True) -> AbstractContextManager[None]:
        """Return the context in which the student trains and is scored; ``distils`` is False for the arm *gold*."""
        return relu_pooled(model, "relu_pooled" in self._on and distils)

    def hsk_source(self, source: KnowledgeSource, teacher_width: int, resumed: bool) -> KnowledgeSource:
        """Return the source of the HSK stage; ``resumed`` says whether its first step is already done."""
        if isinstance(source, CompatSource):
            source.masked = resumed
        return ZeroedSource(source, teacher_width) if "zero_dropped" in self._on else source

    def hsk_split(self, split: TokenizedSplit, student: PreTrainedModel) -> TokenizedSplit:
        """Return the examples of the HSK stage. If pads count, they are padded to the limit of the data or student."""
        if "pads_in_loss" not in self._on:
            return split
        return replace(split, pad_to=min(split.max_length, max_tokens(student.config) or split.max_length))

    def prediction_trainer(
        self,
        model: HeadModule,
        args: StageArguments,
        split: TokenizedSplit,
        source: KnowledgeSource,
        tau: float,
        **options: Any,
    ) -> StageTrainer:
        """Return the trainer of the prediction stage."""
        if "gold_regression" in self._on:
            return GoldTrainer(model, args, split, "prediction stage", **options)
        trainer = MeanClassesTrainer if "mean_classes" in self._on else PredictionTrainer
        return trainer(model, args, split, source, tau, **options)

    # Training

    def arguments(self, folder: Path, recipe: StageRecipe, **changes: Any) -> StageArguments:
        """Return the training arguments of a stage; ``changes`` go to :func:`~hskd.training.training_arguments`."""
        if "bert_adam" in self._on:  # BertAdam clips gradients itself.
            changes["max_grad_norm"] = 0.0
        return training_arguments(folder, recipe, dataloader_drop_last="drop_last" in self._on, **changes)

    def trainer_options(self, recipe: StageRecipe) -> dict[str, Any]:
        """Return further arguments of a stage's trainer."""
        if "bert_adam" not in self._on:
            return {}
        return {
            "optimizer_cls_and_kwargs": (
                BertAdam,
                {"lr": recipe.learning_rate, "max_grad_norm": recipe.max_grad_norm},
            )
        }

    @property
    def trains_by_dev(self) -> bool:
        """Whether the choice of the final student depends on the labels of dev."""
        return "best_epoch" in self._on

    def keeps(self, scores: Sequence[float]) -> bool:
        """Return whether to keep the student of the epoch that was scored last; ``scores`` has all epochs so far."""
        return "best_epoch" in self._on and scores[-1] > max(scores[:-1], default=-math.inf)

    def reported_epoch(self, scores: Sequence[float]) -> int | None:
        """Return the epoch of the last stage to report, counted from 1; None for the last epoch."""
        return 1 + scores.index(max(scores)) if "best_epoch" in self._on else None


class CompatSource(OnlineSource):
    """Knowledge source that runs the teacher on every batch, with the departures in ``switches``.

    The other arguments are those of :class:`~hskd.distill.source.OnlineSource`.
    """

    masked = False
    """Whether fixed masks of neurons apply. With ``loose_masks``, they apply from the second batch on."""

    def __init__(
        self,
        switches: Iterable[Compat],
        teacher: Teacher,
        sep_id: int,
        spec: HSKSpec | None,
        student_layers: int,
        dtype: str = "fp32",
    ) -> None:
        super().__init__(teacher, sep_id, spec, student_layers, dtype)
        self._on = frozenset(switches)
        self._options = ForwardOptions(
            dtype,
            dropout="teacher_dropout" in self._on,
            softmax="attention_scores" not in self._on,
            pads="pads_in_loss" in self._on,
        )
        if "relu_pooled" in self._on:
            _require_bert_head(teacher.model)

    @override
    def in_shape(self, split: TokenizedSplit) -> None:
        return None

    def _forward(self, batch: Batch, layers: Sequence[int], attention: Sequence[int]) -> TeacherOutput:
        with relu_pooled(self._model, "relu_pooled" in self._on):
            return super()._forward(batch, layers, attention)

    def _select(self, spec: HSKSpec, states: TeacherStates) -> KeptHSK:
        if "loose_masks" in self._on:
            spec = loosened(spec, self.masked)
            self.masked = True
        width = next(iter(states.hidden.values())).shape[1]
        varying = isinstance(spec.width, Magnitude) and spec.width.count(width) < width
        if varying and "batch_threshold" in self._on:
            whole = spec.model_copy(update={"width": UniformNeurons(), "precision": FP32()})
            return above_threshold(spec, select_hsk(whole, self._layers, states))
        return select_hsk(spec, self._layers, states, self._codec)


def above_threshold(spec: HSKSpec, whole: KeptHSK) -> KeptHSK:
    """Keep, in each layer, the values that reach the batch's k-th largest magnitude; k follows from the spec's share.

    Args:
        spec: gives the share of the values and their precision.
        whole: the kept tokens of a batch with all their neurons, in fp32.

    Returns:
        All neurons. Those below the threshold have target 0 and weight 0, so they are not compared.
    """
    magnitude = spec.precision.ranked(whole.values).abs()
    count = max(1, int(Fraction(str(spec.width.w)) * magnitude[:, 0].numel()))
    threshold = magnitude.transpose(0, 1).flatten(1).topk(count, dim=1).values[:, -1]
    above = magnitude >= threshold[:, None]
    # Number of kept values of each example and layer, which may be 0.
    counts = torch.zeros((len(whole.counts), len(whole.layers)), device=magnitude.device)
    counts.index_add_(0, whole.example, above.sum(2).to(counts.dtype))
    return replace(
        whole,
        values=spec.precision.decode(spec.precision.encode(whole.values * above), whole.values.shape[2]),
        weights=above / counts[whole.example][:, :, None].clamp(min=1),
    )


class LooseNoSep(AttentionNoSep):
    """``attention_no_sep`` that leaves out as many tokens of each example as the batch's first example has ``[SEP]``.

    The ``[SEP]`` tokens are left out first, from the left. If an example has too few of them, its other tokens are left
    out next, from the left.
    """

    @override
    def eligible(self, tokens: Tokens) -> np.ndarray:
        is_sep = tokens.input_ids == tokens.sep_id
        order = np.lexsort((~is_sep, tokens.example))  # stable: from the left
        rank = np.arange(len(order)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        eligible = np.empty(len(order), bool)
        eligible[order] = rank >= is_sep[: tokens.offsets[1]].sum()
        return eligible


class LooseRandom(RandomNeurons):
    """Mask that keeps each neuron with probability ``w``, and at least one neuron."""

    @override
    def fixed(self, width: int) -> np.ndarray:
        draw = np.random.default_rng(self.seed).random(width)
        return np.flatnonzero(draw <= max(self.w, draw.min()))


def loosened(spec: HSKSpec, masked: bool) -> HSKSpec:
    """Return ``spec`` with the selectors of the released code. Unless ``masked``, a fixed mask keeps all neurons."""
    changes: dict[str, object] = {}
    if type(spec.length) is AttentionNoSep:
        changes["length"] = LooseNoSep(**spec.length.model_dump())
    if isinstance(spec.width, RandomNeurons | UniformNeurons) and not masked:
        changes["width"] = UniformNeurons()
    elif isinstance(spec.width, RandomNeurons):
        changes["width"] = LooseRandom(**spec.width.model_dump())
    return spec.model_copy(update=changes)


@contextmanager
def relu_pooled(model: PreTrainedModel, on: bool = True) -> Iterator[None]:
    """Within the context, if ``on``, make a BERT classifier feed ``relu(pooled)`` to its last layer, without dropout.

    Raises:
        HskdError: the model's head is not BERT's.
    """
    if not on:
        yield
        return
    _require_bert_head(model)
    before = model.dropout
    model.dropout = nn.ReLU()
    try:
        yield
    finally:
        model.dropout = before


def _require_bert_head(model: PreTrainedModel) -> None:
    if not isinstance(model, BertForSequenceClassification):
        raise HskdError(
            f"compat relu_pooled: the head of a {model.config.model_type} classifier is not BERT's (pooled, dropout, "
            "classifier); leave the switch out."
        )


class ZeroedSource(KnowledgeSource):
    """Knowledge source that passes on another source, with target 0 for the neurons that are not kept.

    Args:
        source: the other source.
        width: ``d_T``.
    """

    def __init__(self, source: KnowledgeSource, width: int) -> None:
        self._source = source
        self._width = width
        self.in_workers = bool(getattr(source, "in_workers", False))

    @override
    def kept(self, batch: Batch) -> KeptHSK:
        return zero_dropped(self._source.kept(batch), self._width)

    @override
    def targets(self, batch: Batch) -> torch.Tensor:
        return self._source.targets(batch)


def zero_dropped(kept: KeptHSK, width: int) -> KeptHSK:
    """Return ``kept`` with all ``width`` neurons of its tokens, equally weighted; 0 for those that were not kept."""
    values = kept.values
    if kept.neurons is not None:
        neurons = kept.neurons.expand(values.shape) if kept.neurons.dim() == 1 else kept.neurons
        values = values.new_zeros((*values.shape[:2], width)).scatter_(2, neurons, values)
    return replace(kept, values=values, neurons=None, weights=None)


class MeanClassesTrainer(PredictionTrainer):
    """Trainer of the prediction stage whose loss is averaged over classes too."""

    @override
    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return super().batch_loss(model, batch) / batch["target"].shape[1]
