"""The stages of a trial: the HSK stage, then the prediction stage, then the outputs on every scored split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hskd import processes
from hskd.artifacts import read_record, write_record
from hskd.distill.projection import PROJECTION_FILE
from hskd.distill.source import KnowledgeSource
from hskd.distill.trainer import Criterion, HSKModule, HSKTrainer, mean_hsk_loss
from hskd.errors import CorruptionError
from hskd.fast import LeanEncoder, fast_training
from hskd.hashing import file_sha256
from hskd.io import atomic_path, saving
from hskd.paper.departures import Departures
from hskd.progress import Progress
from hskd.runtime import RunOptions
from hskd.tasks import Task, TokenizedSplit
from hskd.tasks.content import used_tokens
from hskd.training import (
    EpochScores,
    GoldTrainer,
    HeadModule,
    Predictor,
    StageRecipe,
    StageTrainer,
    clear_checkpoints,
    last_checkpoint,
    run_stage,
)
from hskd.trials.result import StageRecord
from hskd.trials.settings import DistillSettings

__all__ = ["HeldOut", "RunOptions", "StageRecord", "Trained", "TrialInputs", "clear_stages", "train_stages"]

_STAGE_FILE = "hsk-stage.safetensors"
_STAGE_RECORD = "hsk-stage.json"
_BEST_FILE = "best-epoch.safetensors"
_WEIGHTS = "weights_sha256"
"""Key in the record of the HSK stage: the checksum of the weights file beside it."""

HeldOut = tuple[TokenizedSplit, KnowledgeSource]
"""Examples that no student trains on, and a source of their HSK."""


@dataclass(frozen=True, eq=False)
class TrialInputs:
    """The inputs of a trial's training: settings, data, student and the teacher's knowledge.

    Attributes:
        settings: arm, epochs, rates, seed.
        task: the task.
        splits: train, and dev and test if available; outputs are computed for those that have labels.
        student: the initialised student.
        teacher_width: ``d_T``, which determines whether there is a ``W``.
        source: the teacher's knowledge; None only for the arm *gold*.
        student_folder: folder that the student was loaded from. Its tokenizer is saved with the trained student, and a
            ``W`` in it initialises ``W``.
        held_out: examples on which the HSK loss is measured after the HSK stage.
        spread: the teacher's standard deviations, if the loss of the HSK stage needs them.
        hsk_rows: the examples of ``train`` that the HSK stage trains on, in the same number of steps; None for all.
    """

    settings: DistillSettings
    task: Task
    splits: Mapping[str, TokenizedSplit]
    student: PreTrainedModel
    teacher_width: int
    source: KnowledgeSource | None
    student_folder: Path | None = None
    held_out: HeldOut | None = None
    spread: torch.Tensor | None = None
    hsk_rows: np.ndarray | None = None

    @property
    def hsk_split(self) -> TokenizedSplit:
        """The examples that the HSK stage trains on."""
        train = self.splits["train"]
        return train if self.hsk_rows is None else train.take(self.hsk_rows)


@dataclass
class Trained:
    """The results of training, apart from the student itself.

    Attributes:
        stages: the record of each stage.
        dev_scores: the score on dev after each epoch of the last stage.
        outputs: the outputs of the student's head on every scored split, ``(R, C)``.
    """

    stages: dict[str, StageRecord]
    dev_scores: list[float]
    outputs: dict[str, np.ndarray]


def train_stages(inputs: TrialInputs, folder: Path, options: RunOptions, progress: Progress) -> Trained:
    """Train the student through its stages, and compute its outputs.

    All of :mod:`hskd.processes` train. A killed run resumes from the files in ``folder``.

    Args:
        inputs: what the trial trains from.
        folder: receives checkpoints and the projection ``W``.
        options: device, precision, reporting.
        progress: receives reports of the stages and their steps.

    Raises:
        HskdError: a loss is not finite.
    """
    settings, student = inputs.settings, inputs.student
    departures = Departures(settings.compat)
    hsk_epochs, last_epochs = settings.epochs(inputs.task.hsk_epochs)
    student.to(options.device)
    with _training(inputs, options) as encoder:
        predictor = _predictor(inputs, encoder, options)
        stages = _Stages(inputs, folder, options, departures, progress, encoder, predictor)
        trained = Trained({}, [], {})
        if hsk_epochs:
            trained.stages["hsk"] = stages.hsk(hsk_epochs)
        if last_epochs:
            trained.stages["prediction"], trained.dev_scores = stages.last(last_epochs, hsk_epochs)
        trained.outputs = _outputs(inputs, predictor)
    return trained


def predict_outputs(inputs: TrialInputs, options: RunOptions) -> dict[str, np.ndarray]:
    """Return the outputs of a trained student on every scored split, as :func:`train_stages` computes them.

    Args:
        inputs: inputs whose student is the trained one.
        options: device, precision.
    """
    inputs.student.to(options.device)
    with _training(inputs, options) as encoder:
        return _outputs(inputs, _predictor(inputs, encoder, options))


@contextmanager
def _training(inputs: TrialInputs, options: RunOptions) -> Iterator[LeanEncoder]:
    """Enter the context in which a student is trained and scored."""
    settings, student = inputs.settings, inputs.student
    with (
        fast_training(student, used_tokens(inputs.splits.values()), options.compile) as encoder,
        Departures(settings.compat).student(student, distils=settings.arm != "gold"),
    ):
        yield encoder


def _predictor(inputs: TrialInputs, encoder: LeanEncoder, options: RunOptions) -> Predictor:
    return Predictor(HeadModule(inputs.student, inputs.task.head, encoder), options.dtype, options.capture)


def _outputs(inputs: TrialInputs, predictor: Predictor) -> dict[str, np.ndarray]:
    return {
        name: predictor.rows(split)
        for name, split in inputs.splits.items()
        if name != "train" and split.labels is not None
    }


def clear_stages(folder: Path) -> None:
    """Remove the files that a killed run would resume from."""
    for stage in (folder / "hsk", folder / "prediction"):
        clear_checkpoints(stage)
    for name in (_STAGE_FILE, _STAGE_RECORD, _BEST_FILE):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Stages:
    """The stages of one trial, inside its training context."""

    inputs: TrialInputs
    folder: Path
    options: RunOptions
    departures: Departures
    progress: Progress
    encoder: LeanEncoder
    predictor: Predictor

    @property
    def classifier(self) -> HeadModule:
        """The student with the task's head."""
        head = self.inputs.task.head.with_loss(self.inputs.settings.loss)
        return HeadModule(self.inputs.student, head, self.encoder)

    def hsk(self, epochs: int) -> StageRecord:
        """Train the HSK stage, or load its final state if a killed trial had finished it."""
        inputs, settings = self.inputs, self.inputs.settings
        weights, record = self.folder / _STAGE_FILE, self.folder / _STAGE_RECORD
        module = HSKModule(
            inputs.student,
            inputs.teacher_width,
            settings.seed,
            inputs.student_folder,
            encoder=self.encoder,
            criterion=Criterion(settings.hsk_loss, inputs.spread),
        )
        if not processes.by_main(record.is_file):
            stage = self._train(self._hsk_trainer(module, epochs))

            def write() -> None:
                _save_weights(module, weights)
                write_record(record, stage.model_dump(exclude_unset=True) | {_WEIGHTS: file_sha256(weights)})

            processes.by_main(write)
        _load_weights(module, weights)
        stage = _read_stage(record)
        processes.barrier()  # Other processes must have read both files before they are removed.
        if module.projection is not None and processes.is_main():
            (self.folder / "student").mkdir(exist_ok=True)
            _save_weights(module.projection, self.folder / "student" / PROJECTION_FILE)
        comparable = module.projection is not None or inputs.student.config.hidden_size == inputs.teacher_width
        if inputs.held_out is not None and comparable:
            stage.held_out_loss = mean_hsk_loss(module, *inputs.held_out, self.options.dtype)
        return stage

    def _hsk_trainer(self, module: HSKModule, epochs: int) -> HSKTrainer:
        inputs, settings = self.inputs, self.inputs.settings
        assert inputs.source is not None
        recipe = StageRecipe.of(
            settings,
            self.options,
            epochs=epochs,
            learning_rate=settings.hsk_lr,
            schedule="constant_with_warmup",
            max_grad_norm=settings.max_grad_norm,
            epoch_examples=None if inputs.hsk_rows is None else len(inputs.splits["train"]),
        )
        resumed = last_checkpoint(self.folder / "hsk") is not None
        return HSKTrainer(
            module,
            self.departures.arguments(self.folder / "hsk", recipe),
            self.departures.hsk_split(inputs.hsk_split, inputs.student),
            self.departures.hsk_source(inputs.source, inputs.teacher_width, resumed),
            **self.departures.trainer_options(recipe),
        )

    def last(self, epochs: int, first_epoch: int) -> tuple[StageRecord, list[float]]:
        """Train the last stage; return its record and the score on dev after each epoch, if dev has labels."""
        student, dev, best = self.inputs.student, self.inputs.splits.get("dev"), self.folder / _BEST_FILE
        trainer = self._last_trainer(epochs, first_epoch)
        if dev is None or dev.labels is None:
            return self._train(trainer), []

        def keep(scores: list[float]) -> None:
            if self.departures.keeps(scores):
                processes.by_main(lambda: _save_weights(student, best))

        scoring = EpochScores(lambda: self.predictor.score(dev)["score"], keep)
        stage = self._train(trainer, scoring)
        if (reported := self.departures.reported_epoch(scoring.scores)) is not None:
            _load_weights(student, best)
            processes.barrier()  # Other processes must have read the file before it is removed.
            stage.reported_epoch = reported
        return stage, scoring.scores

    def _last_trainer(self, epochs: int, first_epoch: int) -> StageTrainer:
        settings, source, train = self.inputs.settings, self.inputs.source, self.inputs.splits["train"]
        recipe = StageRecipe.of(
            settings,
            self.options,
            epochs=epochs,
            learning_rate=settings.prediction_lr,
            max_grad_norm=settings.max_grad_norm,
            first_epoch=first_epoch,
        )
        arguments = self.departures.arguments(
            self.folder / "prediction",
            recipe,
            ddp_find_unused_parameters=not self.encoder.reads_every_parameter,
        )
        options = self.departures.trainer_options(recipe)
        if settings.arm == "gold":
            return GoldTrainer(self.classifier, arguments, train, "gold", **options)
        assert source is not None
        return self.departures.prediction_trainer(self.classifier, arguments, train, source, settings.tau, **options)

    def _train(self, trainer: StageTrainer, *callbacks: EpochScores) -> StageRecord:
        if self.options.capture and not trainer.captures:
            self.progress.say(f"{trainer.stage}: steps are not captured, because the shapes of its batches vary")
        return StageRecord(**asdict(run_stage(trainer, self.progress, callbacks)))


def _read_stage(record: Path) -> StageRecord:
    """Return the record of the HSK stage, after checking that its weights are those of its end."""
    remedy = f"Delete it, and run the same command again: the HSK stage of {record.parent} is trained again."
    content = read_record(record, remedy)
    weights = record.with_name(_STAGE_FILE)
    if not weights.is_file() or content.pop(_WEIGHTS, None) not in (None, file_sha256(weights)):
        raise CorruptionError(f"{weights}: is not the file that was written there. Delete {record}, and run again.")
    try:
        return StageRecord.model_validate(content)
    except ValidationError:
        raise CorruptionError(f"{record}: not the record of a stage. {remedy}") from None


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptionError(
            f"{path}: cannot be read ({reason}). Delete {path.parent}, and run the same command again."
        ) from None


def _save_weights(module: nn.Module, path: Path) -> None:
    with saving(path), atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, temporary)
