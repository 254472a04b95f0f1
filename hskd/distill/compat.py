"""Where the paper's released code departs from what is done here, each departure to be switched on by its name.

What a switch does is written down in docs/compat.md. The trainers, sources and losses know nothing of the names; this
module puts its own pieces in the place of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel

from hskd.distill.bert_adam import BertAdam
from hskd.distill.settings import Compat, DistillSettings
from hskd.distill.source import Batch, KnowledgeSource, OnlineSource
from hskd.distill.trainer import PredictionTrainer
from hskd.errors import HskdError
from hskd.knowledge import KeptHSK, TeacherStates, select_hsk
from hskd.selectors import Tokens
from hskd.selectors.length import AttentionNoSep
from hskd.selectors.precision import FP32
from hskd.selectors.width import Magnitude, RandomNeurons, UniformNeurons
from hskd.spec import HSKSpec
from hskd.tasks import Task, TokenizedSplit
from hskd.teachers.forward import TeacherOutput, teacher_forward
from hskd.teachers.loading import Teacher
from hskd.training import StageTrainer

ONLINE_ONLY: dict[Compat, str] = {
    "attention_scores": "a superset holds the attention after softmax, averaged over heads",
    "batch_threshold": "what is kept depends on the rest of the batch, and a store knows no batches",
    "loose_masks": "what is kept changes after the first step and depends on the batch, and a store keeps one thing",
    "pads_in_loss": "a store holds no pads",
    "relu_pooled": "a store holds the logits of the head as it was fine-tuned",
    "teacher_dropout": "a store holds one pass of the teacher, and under dropout every pass is another",
}
"""Switches that need the teacher, and why."""


def refuse_offline(switches: Iterable[Compat], instead: str) -> None:
    """Refuse switches that cannot come from a store; ``instead`` says what to do.

    Raises:
        HskdError: names the switch and says why.
    """
    for name in switches:
        if name in ONLINE_ONLY:
            raise HskdError(f"compat {name} cannot come from a store: {ONLINE_ONLY[name]}. {instead}")


def require_regression(settings: DistillSettings, task: Task) -> None:
    """Refuse ``gold_regression`` where there is nothing to regress.

    Raises:
        HskdError: the task is a classification.
    """
    if "gold_regression" in settings.compat and task.label_type != "regression":
        raise HskdError(
            f"compat gold_regression: fits the gold labels of a regression, and task {task.name} is a classification; "
            "leave it out (the arm gold fits hard labels)."
        )


# What the teacher says


def online_source(
    settings: DistillSettings,
    teacher: Teacher,
    sep_id: int,
    spec: HSKSpec | None,
    student_layers: int,
    dtype: str,
) -> OnlineSource:
    """The source that runs the teacher, with the departures of ``settings``.

    Raises:
        HskdError: ``relu_pooled``, and the teacher's head is not BERT's.
    """
    if not set(settings.compat) & set(ONLINE_ONLY):
        return OnlineSource(teacher, sep_id, spec, student_layers, dtype)
    return CompatSource(settings.compat, teacher, sep_id, spec, student_layers, dtype)


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
        if "relu_pooled" in self._on:
            _require_bert_head(teacher.model)

    def _forward(self, batch: Batch, layers: Sequence[int], attention: Sequence[int]) -> TeacherOutput:
        with relu_pooled(self._model, "relu_pooled" in self._on):
            return teacher_forward(
                self._model,
                batch,
                self._sep_id,
                layers,
                attention,
                self._dtype,
                dropout="teacher_dropout" in self._on,
                softmax="attention_scores" not in self._on,
                pads="pads_in_loss" in self._on,
            )

    def _select(self, spec: HSKSpec, states: TeacherStates) -> KeptHSK:
        if "loose_masks" in self._on:
            spec = loosened(spec, self.masked)
            self.masked = True
        width = next(iter(states.hidden.values())).shape[1]
        varying = isinstance(spec.width, Magnitude) and spec.width.count(width) < width
        if varying and "batch_threshold" in self._on:
            whole = spec.model_copy(update={"width": UniformNeurons(), "precision": FP32()})
            return above_threshold(spec, select_hsk(whole, self._layers, states))
        return select_hsk(spec, self._layers, states)


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
        values=spec.precision.decode(spec.precision.encode(whole.values * above)),
        weights=above / counts[whole.example][:, :, None].clamp(min=1),
    )


class LooseNoSep(AttentionNoSep):
    """``attention_no_sep`` that leaves out as many tokens of each example as the batch's first has ``[SEP]``.

    ``[SEP]`` goes first, from the left; where an example has too few, its other tokens from the left follow.
    """

    def eligible(self, tokens: Tokens) -> np.ndarray:
        """See the base class."""
        is_sep = tokens.input_ids == tokens.sep_id
        order = np.lexsort((~is_sep, tokens.example))  # stable: from the left
        rank = np.arange(len(order)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        eligible = np.empty(len(order), bool)
        eligible[order] = rank >= is_sep[: tokens.offsets[1]].sum()
        return eligible


class LooseRandom(RandomNeurons):
    """A mask in which each neuron is kept with probability ``w``; at least one is."""

    def fixed(self, width: int) -> np.ndarray:
        """See the base class."""
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


# What the student learns


class ZeroedSource:
    """Another source's knowledge, in which the neurons that are not kept have target 0.

    Args:
        source: where the knowledge comes from.
        width: ``d_T``.
    """

    def __init__(self, source: KnowledgeSource, width: int) -> None:
        self._source = source
        self._width = width

    def kept(self, batch: Batch) -> KeptHSK:
        """See :class:`~hskd.distill.source.KnowledgeSource`."""
        return zero_dropped(self._source.kept(batch), self._width)

    def logits(self, batch: Batch) -> torch.Tensor:
        """See :class:`~hskd.distill.source.KnowledgeSource`."""
        return self._source.logits(batch)


def zero_dropped(kept: KeptHSK, width: int) -> KeptHSK:
    """``kept`` with all ``width`` neurons of the kept tokens, all alike: 0 where they were not kept."""
    values = kept.values
    if kept.neurons is not None:
        neurons = kept.neurons.expand(values.shape) if kept.neurons.dim() == 1 else kept.neurons
        values = values.new_zeros((*values.shape[:2], width)).scatter_(2, neurons, values)
    return replace(kept, values=values, neurons=None, weights=None)


def hsk_source(
    settings: DistillSettings, source: KnowledgeSource, teacher_width: int, resumed: bool
) -> KnowledgeSource:
    """What the HSK stage trains from; ``resumed`` says that its first step is done."""
    if isinstance(source, CompatSource):
        source.masked = resumed
    return ZeroedSource(source, teacher_width) if "zero_dropped" in settings.compat else source


def hsk_split(settings: DistillSettings, split: TokenizedSplit, student: PreTrainedModel) -> TokenizedSplit:
    """The examples of the HSK stage: where pads count, padded to the maximum length, or to what the student takes."""
    if "pads_in_loss" not in settings.compat:
        return split
    positions = getattr(student.config, "max_position_embeddings", split.max_length)
    return replace(split, pad_to=min(split.max_length, positions))


class MeanClassesTrainer(PredictionTrainer):
    """The prediction stage, its loss averaged over classes too."""

    def batch_loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """See the base class."""
        return super().batch_loss(model, batch) / batch["teacher_logits"].shape[1]


# How it learns


def require_splits(settings: DistillSettings, splits: Mapping[str, TokenizedSplit]) -> None:
    """Refuse switches for which there are no examples.

    Raises:
        HskdError: ``drop_last``, and there are fewer training examples than a batch has; ``best_epoch`` or
            ``gold_regression``, and there are no labels to choose by or to fit.
    """
    train, dev = splits["train"], splits.get("dev")
    if "drop_last" in settings.compat and len(train) < settings.batch_size:
        raise HskdError(
            f"compat drop_last: {len(train)} training examples make no whole batch of {settings.batch_size}; "
            "lower --batch-size, or leave it out."
        )
    if "best_epoch" in settings.compat and (dev is None or dev.labels is None):
        raise HskdError("compat best_epoch: chooses by the score on dev, and there is none; give the data.")
    if "gold_regression" in settings.compat and train.labels is None:
        raise HskdError("compat gold_regression: fits gold labels, and there are none; give the data.")


def set_optimizer(settings: DistillSettings, trainer: StageTrainer) -> None:
    """Give a trainer the optimiser that ``settings`` ask for, before it trains."""
    if "bert_adam" in settings.compat:
        trainer.optimizer_cls_and_kwargs = (BertAdam, {"lr": trainer.args.learning_rate})
        trainer.clip_each = True
