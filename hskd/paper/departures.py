"""Where the paper's released code departs from what is done here, each departure to be switched on by its name.

What a switch does is written down in docs/compat.md. :class:`Departures` is the one door: a trial calls its hooks and
knows no names. Trainers, sources and losses know nothing of it; this module puts its own pieces in the place of theirs.
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
    """What a trial does otherwise than by default: hooks that it calls, each of which does the default thing if off.

    Args:
        switches: the departures that are on.
    """

    def __init__(self, switches: Iterable[Compat] = ()) -> None:
        self._on = frozenset(switches)

    # What is refused

    def require_task(self, task: Task) -> None:
        """Refuse a switch that does not suit the task; see :func:`hskd.compat.require_regression`."""
        require_regression(self._on, task)

    def require_splits(self, splits: Mapping[str, TokenizedSplit], batch_size: int) -> None:
        """Refuse switches for which there are no examples.

        Raises:
            HskdError: ``drop_last``, and there are fewer training examples than a batch has; ``best_epoch`` or
                ``gold_regression``, and there are no labels to choose by or to fit.
        """
        train, dev = splits["train"], splits.get("dev")
        if "drop_last" in self._on and len(train) < batch_size:
            raise HskdError(
                f"compat drop_last: {len(train)} training examples make no whole batch of {batch_size}; "
                "lower --batch-size, or leave it out."
            )
        if "best_epoch" in self._on and (dev is None or dev.labels is None):
            raise HskdError("compat best_epoch: chooses by the score on dev, and there is none; give the data.")
        if "gold_regression" in self._on and train.labels is None:
            raise HskdError("compat gold_regression: fits gold labels, and there are none; give the data.")

    def require_spec(self, spec: HSKSpec | None) -> None:
        """Refuse switches that concern neurons where a spec keeps other numbers.

        Raises:
            HskdError: ``zero_dropped``, and the spec keeps coordinates along a basis.
        """
        if "zero_dropped" in self._on and isinstance(spec and spec.width, BasisWidth):
            raise HskdError(
                "compat zero_dropped: dropped neurons are compared with 0, and width="
                f"{spec.width.selector if spec else ''} drops none: it keeps coordinates; leave it out."
            )

    def require_whole_batches(self, accumulate: int, processes: int) -> None:
        """Refuse switches for which a batch has to be in one piece, where it is not.

        Raises:
            HskdError: names the switch.
        """
        for name in sorted(self._on & {"batch_threshold", "loose_masks"}):
            if accumulate * processes > 1:
                raise HskdError(
                    f"compat {name}: what is kept depends on the whole batch, which {processes} processes with "
                    f"--accumulate {accumulate} cut into parts; use one process and --accumulate 1."
                )

    # What the teacher says

    def online_source(
        self,
        teacher: Teacher,
        sep_id: int,
        spec: HSKSpec | None,
        student_layers: int,
        dtype: str,
        aligned: TokenizedSplit | None = None,
    ) -> OnlineSource:
        """The source that runs the teacher; ``aligned`` is that of :class:`~hskd.distill.source.OnlineSource`.

        Raises:
            HskdError: ``relu_pooled``, and the teacher's head is not BERT's; or a switch is about how the teacher runs,
                and it has another tokenizer.
        """
        online_only = sorted(self._on & set(ONLINE_ONLY))
        if not online_only:
            return OnlineSource(teacher, sep_id, spec, student_layers, dtype, aligned)
        if aligned is not None:
            raise HskdError(
                f"compat {', '.join(online_only)}: is about a teacher with the student's tokenizer, and "
                f"{teacher.name} has another; leave it out."
            )
        return CompatSource(self._on, teacher, sep_id, spec, student_layers, dtype)

    # What the student learns

    def student(self, model: PreTrainedModel, distils: bool = True) -> AbstractContextManager[None]:
        """The context in which the student trains and is scored; ``distils`` is False for the arm *gold*."""
        return relu_pooled(model, "relu_pooled" in self._on and distils)

    def hsk_source(self, source: KnowledgeSource, teacher_width: int, resumed: bool) -> KnowledgeSource:
        """What the HSK stage trains from; ``resumed`` says that its first step is done."""
        if isinstance(source, CompatSource):
            source.masked = resumed
        return ZeroedSource(source, teacher_width) if "zero_dropped" in self._on else source

    def hsk_split(self, split: TokenizedSplit, student: PreTrainedModel) -> TokenizedSplit:
        """The examples of the HSK stage: where pads count, padded to the most tokens that data and student allow."""
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
        """The trainer of the prediction stage."""
        if "gold_regression" in self._on:
            return GoldTrainer(model, args, split, "prediction stage", **options)
        trainer = MeanClassesTrainer if "mean_classes" in self._on else PredictionTrainer
        return trainer(model, args, split, source, tau, **options)

    # How it learns

    def arguments(self, folder: Path, recipe: StageRecipe, **changes: Any) -> StageArguments:
        """The training arguments of a stage; ``changes`` are those of :func:`~hskd.training.training_arguments`."""
        if "bert_adam" in self._on:  # BertAdam clips by itself.
            changes["max_grad_norm"] = 0.0
        return training_arguments(folder, recipe, dataloader_drop_last="drop_last" in self._on, **changes)

    def trainer_options(self, recipe: StageRecipe) -> dict[str, Any]:
        """Further arguments of a stage's trainer."""
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
        """Whether the student that is kept depends on the labels of dev."""
        return "best_epoch" in self._on

    def keeps(self, scores: Sequence[float]) -> bool:
        """Whether to keep the student of the epoch that has just been scored, the last of ``scores``."""
        return "best_epoch" in self._on and scores[-1] > max(scores[:-1], default=-math.inf)

    def reported_epoch(self, scores: Sequence[float]) -> int | None:
        """The epoch of the last stage that is reported, from 1; None for the last one."""
        return 1 + scores.index(max(scores)) if "best_epoch" in self._on else None


class CompatSource(OnlineSource):
    """Runs the teacher on every batch, as the released code does in what ``switches`` name.

    The other arguments are those of :class:`~hskd.distill.source.OnlineSource`.
    """

    masked = False
    """Whether fixed masks of neurons apply: with ``loose_masks``, from the second batch on."""

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
    """Keep, in each layer, the values that reach the batch's k-th largest magnitude, k being the spec's share.

    Args:
        spec: says the share of the values and their precision.
        whole: the kept tokens of a batch with all their neurons, in fp32.

    Returns:
        All neurons, those below the threshold with target 0 and weight 0: they are not compared.
    """
    magnitude = spec.precision.ranked(whole.values).abs()
    count = max(1, int(Fraction(str(spec.width.w)) * magnitude[:, 0].numel()))
    threshold = magnitude.transpose(0, 1).flatten(1).topk(count, dim=1).values[:, -1]
    above = magnitude >= threshold[:, None]
    # Kept values of each example and layer: there may be none.
    counts = torch.zeros((len(whole.counts), len(whole.layers)), device=magnitude.device)
    counts.index_add_(0, whole.example, above.sum(2).to(counts.dtype))
    return replace(
        whole,
        values=spec.precision.decode(spec.precision.encode(whole.values * above), whole.values.shape[2]),
        weights=above / counts[whole.example][:, :, None].clamp(min=1),
    )


class LooseNoSep(AttentionNoSep):
    """``attention_no_sep`` that leaves out as many tokens of each example as the batch's first has ``[SEP]``.

    ``[SEP]`` goes first, from the left; where an example has too few, its other tokens from the left follow.
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
    """A mask in which each neuron is kept with probability ``w``; at least one is."""

    @override
    def fixed(self, width: int) -> np.ndarray:
        draw = np.random.default_rng(self.seed).random(width)
        return np.flatnonzero(draw <= max(self.w, draw.min()))


def loosened(spec: HSKSpec, masked: bool) -> HSKSpec:
    """``spec`` with the selectors of the released code; unless ``masked``, with all neurons in a fixed mask's place."""
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
    """Within, and if ``on``, a BERT classifier feeds ``relu(pooled)`` to its last layer in place of its dropout.

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
            "classifier); leave it out."
        )


class ZeroedSource(KnowledgeSource):
    """Another source's knowledge, in which the neurons that are not kept have target 0.

    Args:
        source: where the knowledge comes from.
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
    """``kept`` with all ``width`` neurons of the kept tokens, all alike: 0 where they were not kept."""
    values = kept.values
    if kept.neurons is not None:
        neurons = kept.neurons.expand(values.shape) if kept.neurons.dim() == 1 else kept.neurons
        values = values.new_zeros((*values.shape[:2], width)).scatter_(2, neurons, values)
    return replace(kept, values=values, neurons=None, weights=None)


class MeanClassesTrainer(PredictionTrainer):
    """The prediction stage, its loss averaged over classes too."""

    @override
    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return super().batch_loss(model, batch) / batch["target"].shape[1]
