"""What every training run here shares: Trainer on our batches, its arguments, its callbacks, and predictions."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from typing_extensions import override

from hskd import processes
from hskd.artifacts import CHECKSUMS, require_whole, seal
from hskd.errors import CorruptionError, HskdError
from hskd.fast.encoder import LeanEncoder
from hskd.heads import Head
from hskd.io import read_json, saving
from hskd.progress import Progress
from hskd.runtime import autocast
from hskd.tasks import (
    BatchDataset,
    BucketedBatchSampler,
    Deal,
    TokenizedSplit,
    batch_loader,
    head_inputs,
    is_padded,
    model_inputs,
    sequential_batches,
)


class HeadModule(nn.Module):
    """A model as gold labels and the prediction stage train it: rows of its head, and no more than the head reads.

    Args:
        model: the model.
        head: what its predictions are.
        encoder: how the model runs; by default as :class:`~hskd.fast.LeanEncoder` runs it.
    """

    accepts_loss_kwargs = False  # Or Trainer would count labels among all processes, which no loss here asks for.

    def __init__(self, model: PreTrainedModel, head: Head, encoder: LeanEncoder | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.encoder = encoder or LeanEncoder(model)

    def forward(self, padded: bool | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """The head's rows ``(R, C)`` for a batch (:func:`~hskd.tasks.head_inputs`).

        ``padded`` says whether it has pads, None that it is to find out.
        """
        output = self.encoder.output(model_inputs(inputs), self.head.readout(inputs), padded)
        return self.head.rows(output, inputs)


class StageTrainer(Trainer):
    """``transformers.Trainer`` over a tokenised split, in length-bucketed batches that depend on seed and epoch alone.

    A subclass gives the loss of a batch in :meth:`batch_loss`. A batch may be shared out among processes and taken in
    several steps: its loss and gradient are those of the whole, to rounding.

    Args:
        model: the module to train. It says ``accepts_loss_kwargs = False``.
        args: training arguments, those of :func:`training_arguments`.
        dataset: the training examples, with their targets.
        stage: name of the stage, for messages and progress.
        options: further arguments of ``Trainer``, such as ``optimizer_cls_and_kwargs``.
    """

    args: StageArguments

    def __init__(
        self, model: nn.Module, args: StageArguments, dataset: BatchDataset, stage: str, **options: Any
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=dataset, **options)
        self.dataset = dataset
        self.stage = stage
        self._finite = FiniteCheck(stage)
        self.remove_callback(PrinterCallback)
        for callback in (_LogEveryEpoch(), self._finite, _SealCheckpoint()):
            self.add_callback(callback)

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch with its targets, a scalar, mean over its examples."""
        raise NotImplementedError

    @override
    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        # Trainer takes the mean over processes and accumulated steps, and shares of a batch may differ in size.
        parts = self.args.world_size * self.args.gradient_accumulation_steps
        loss = self.batch_loss(model, inputs) * (inputs["share"] * parts)
        self._finite.see(loss, self.state.global_step + 1)
        return loss

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        sampler = BucketedBatchSampler(
            self.dataset.split.lengths,
            self.args.batch_size,
            self.args.seed,
            self.args.first_epoch,
            self.args.dataloader_drop_last,
            Deal(self.args.gradient_accumulation_steps, self.args.process_index, self.args.world_size),
            self.args.epoch_examples,
        )
        return batch_loader(self.dataset, sampler, self.args.device, self.args.dataloader_num_workers)

    @property
    def batches(self) -> int:
        """Batches of an epoch; each is a step."""
        return len(self.get_train_dataloader()) // int(self.args.gradient_accumulation_steps)

    def run(self) -> None:
        """Train, going on from the last whole checkpoint in the output folder where there is one.

        Raises:
            HskdError: a checkpoint cannot be written, a loss or a gradient norm is not finite.
            CorruptionError: a file of the checkpoint is not the one that was written.
        """
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        if checkpoint is not None:
            processes.by_main(lambda: _require_checkpoint(checkpoint))
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception:
            if not self.args.should_save:
                raise
            torn = [path for path in Path(self.args.output_dir).glob("checkpoint-*") if not _is_whole(path)]
            for path in torn:  # Of no use, and the room that it takes may be missing when the run is started again.
                shutil.rmtree(path, ignore_errors=True)
            with saving(torn[0]) if torn else nullcontext():
                raise


class GoldTrainer(StageTrainer):
    """Fine-tuning on gold labels: a teacher, or the arm *gold*.

    Args:
        model: the model with its head.
        args: training arguments.
        split: the training examples, with labels.
        stage: name of the stage.
        options: further arguments of ``Trainer``.
    """

    def __init__(
        self, model: HeadModule, args: StageArguments, split: TokenizedSplit, stage: str = "gold", **options: Any
    ) -> None:
        super().__init__(model, args, BatchDataset(split), stage, **options)
        self.head = model.head

    @override
    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        rows = model(padded=batch["padded"], **head_inputs(batch))
        return self.head.gold_loss(rows, self.head.labels(batch))


class FiniteCheck(TrainerCallback):
    """Stops training at a loss or a gradient norm that is not finite.

    A loss is read at once on a CPU. On a GPU it is read a step later, when its copy has arrived, so that no step waits
    for the device. Gradient norms are read when Trainer logs them; between two logs, a gradient that is not a number
    shows in the loss of the step after.

    Args:
        stage: name of the stage, for the message.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._unread: list[tuple[int, torch.Tensor, torch.cuda.Event | None]] = []

    def see(self, loss: torch.Tensor, step: int) -> None:
        """Check the loss of ``step``, or set it aside where it is on a GPU.

        Raises:
            HskdError: it is not finite, or one set aside before is not.
        """
        if loss.device.type != "cuda":
            self._require_finite("loss", float(loss.detach()), step)
            return
        copy = loss.detach().to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._read()
        self._unread.append((step, copy, arrived))

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._read()
        if logs is not None and "grad_norm" in logs:
            self._require_finite("gradient norm", logs["grad_norm"], state.global_step)

    def _read(self) -> None:
        """Check what was set aside."""
        for step, loss, arrived in self._unread:
            if arrived is not None:
                arrived.synchronize()
            self._require_finite("loss", float(loss), step)
        self._unread.clear()

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise HskdError(
                f"{self._stage}: the {what} is {abs(value)} at step {step}. "
                "Lower the learning rate, or train in fp32 (--dtype fp32)."
            )


class _LogEveryEpoch(TrainerCallback):
    """Logs after every epoch, so that a short stage has a loss, and with every checkpoint.

    The loss since the last log is in no checkpoint: what is logged would depend on whether a run was resumed.
    """

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = True


class _SealCheckpoint(TrainerCallback):
    """Writes the checksums of a checkpoint, which also say that all of several processes have written to it."""

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            processes.barrier()
        if args.should_save:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _require_checkpoint(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file is damaged.

    Raises:
        CorruptionError: names the file, and says what to do.
    """
    try:
        require_whole(checkpoint)
    except CorruptionError as error:
        damaged = str(error).partition(". ")[0].removesuffix(".")
        raise CorruptionError(
            f"{damaged}. Delete the checkpoint {checkpoint}, and run the same command again: it goes on from an "
            "earlier one, or starts anew."
        ) from None


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a stage's output folder, and the folder where nothing else is left: logs stay."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class Callbacks(TrainerCallback):
    """Plain functions as Trainer callbacks: ``on_step`` after every step, ``on_epoch`` after every epoch."""

    def __init__(self, on_step: Callable[[], None] | None = None, on_epoch: Callable[[], None] | None = None) -> None:
        self._on_step = on_step
        self._on_epoch = on_epoch

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._on_step:
            self._on_step()

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._on_epoch:
            self._on_epoch()


class EpochScores(TrainerCallback, ExportableState):
    """Scores a model after every epoch. Checkpoints hold the scores, so that a resumed run knows all of them.

    Args:
        score: gives the score.
        on_score: called with all scores so far after each of them.
    """

    def __init__(self, score: Callable[[], float], on_score: Callable[[list[float]], None]) -> None:
        self.scores: list[float] = []
        self._score = score
        self._on_score = on_score

    @override
    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"scores": self.scores}}

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        self.scores = list(callbacks[type(self).__name__]["attributes"]["scores"])

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.scores.append(self._score())
        self._on_score(self.scores)


def seed_training(seed: int) -> None:
    """Seed everything that draws; each process draws another dropout, the main one that of a process alone."""
    if rank := processes.rank():
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    set_seed(seed)


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """How a stage trains: AdamW, with weight decay but on biases and LayerNorms, and clipped gradients.

    Attributes:
        epochs: passes over the training examples.
        learning_rate: peak learning rate.
        schedule: ``lr_scheduler_type``, such as constant or linear.
        batch_size: examples in a batch, over all processes together.
        seed: decides the batches and the dropout.
        dtype: fp32, or bf16 for autocast.
        device: the device to train on.
        warmup_steps: steps of warm-up, or a share of all steps where below 1.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm, over all parameters together; 0 leaves them as they are.
        checkpoints: save one after every epoch, so that a killed run can resume.
        report_to: a reporter of Trainer's (tensorboard, wandb, mlflow, ...), or none.
        accumulate: parts that a process cuts its share of a batch into, one after the other.
        first_epoch: epochs of the stages before: the batches go on from there, so that arms with and without them
            see the same ones.
        epoch_examples: examples that an epoch comes to, where the stage trains on fewer, pass after pass; None for
            those that there are.
    """

    epochs: float
    learning_rate: float
    schedule: str
    batch_size: int
    seed: int
    dtype: str
    device: torch.device
    warmup_steps: float = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    checkpoints: bool = False
    report_to: str = "none"
    accumulate: int = 1
    first_epoch: int = 0
    epoch_examples: int | None = None


@dataclass
class StageArguments(TrainingArguments):
    """``TrainingArguments`` that know how many examples a batch has: in all processes and all their steps together."""

    batch_size: int = 32
    first_epoch: int = 0
    epoch_examples: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        # Not what accelerate's configuration says: what is recorded is dtype.
        self.mixed_precision = "bf16" if self.bf16 else "no"


def training_arguments(folder: Path, recipe: StageRecipe | None = None, **changes: Any) -> StageArguments:
    """The arguments of a :class:`StageTrainer`.

    Args:
        folder: where checkpoints and the reporters' logs go.
        recipe: how the stage trains; None where ``changes`` say all of it.
        changes: fields of :class:`StageRecipe` to set, and any further argument of ``TrainingArguments``.

    Raises:
        HskdError: the batch is smaller than the number of its parts.
    """
    known = {field.name for field in fields(StageRecipe)}
    of_recipe = {name: changes.pop(name) for name in list(changes) if name in known}
    recipe = StageRecipe(**of_recipe) if recipe is None else replace(recipe, **of_recipe)
    parts = recipe.accumulate * processes.count()
    if parts > recipe.batch_size:
        raise HskdError(
            f"--batch-size {recipe.batch_size}: {processes.count()} processes with --accumulate {recipe.accumulate} "
            f"cut a batch into {parts} parts; give a larger batch, or fewer of either."
        )
    return StageArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": recipe.epochs,
            "learning_rate": recipe.learning_rate,
            "lr_scheduler_type": recipe.schedule,
            "batch_size": recipe.batch_size,
            "first_epoch": recipe.first_epoch,
            "epoch_examples": recipe.epoch_examples,
            "per_device_train_batch_size": -(-recipe.batch_size // parts),
            "gradient_accumulation_steps": recipe.accumulate,
            "warmup_steps": recipe.warmup_steps,
            "weight_decay": recipe.weight_decay,
            "max_grad_norm": recipe.max_grad_norm,
            "seed": recipe.seed,
            "bf16": recipe.dtype == "bf16",
            "use_cpu": recipe.device.type == "cpu",
            "optim": "adamw_torch_fused",
            "logging_steps": 10,
            "logging_nan_inf_filter": False,
            "save_strategy": "epoch" if recipe.checkpoints else "no",
            # Of several processes the newest may not be whole yet.
            "save_total_limit": 1 if processes.count() == 1 else 2,
            "report_to": recipe.report_to,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "ddp_broadcast_buffers": False,
            "dataloader_num_workers": 2 if recipe.device.type == "cuda" else 0,
            **changes,
        }
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, as the main process sees it; all processes ask together.

    One is whole once it has its checksums. Those of one process are also if they have ``trainer_state.json``, which
    is written last: the process may have been killed between the two.
    """
    alone = processes.count() == 1

    def newest() -> Path | None:
        checkpoints = folder.glob("checkpoint-*")
        whole = [path for path in checkpoints if (path / CHECKSUMS).is_file() or (alone and _is_whole(path))]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    return processes.by_main(newest)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a process came to the end of writing a checkpoint."""
    if (checkpoint / CHECKSUMS).is_file():
        return True
    try:
        return isinstance(read_json(checkpoint / "trainer_state.json"), dict)
    except HskdError:
        return False


@dataclass(frozen=True)
class StageRun:
    """What a stage did, and what it cost.

    Attributes:
        epochs: epochs of the stage.
        steps: steps of all epochs.
        examples: examples of an epoch; where fewer are trained on, pass after pass, each pass counts.
        seconds: wall time, since the last resumption.
        examples_per_second: examples of all epochs over ``seconds``.
        first_loss: the first that was logged.
        last_loss: the last that was logged.
    """

    epochs: int
    steps: int
    examples: int
    seconds: float
    examples_per_second: float
    first_loss: float | None
    last_loss: float | None


def run_stage(trainer: StageTrainer, progress: Progress, callbacks: Iterable[TrainerCallback] = ()) -> StageRun:
    """Train a stage from its seed, or go on with it.

    Args:
        trainer: the stage.
        progress: is told the stage and its steps.
        callbacks: further callbacks of ``Trainer``.

    Raises:
        HskdError: a loss or a gradient norm is not finite.
    """
    epochs, batches = int(trainer.args.num_train_epochs), trainer.batches
    examples = min(trainer.args.epoch_examples or len(trainer.dataset), batches * trainer.args.batch_size)
    progress.begin(trainer.stage, epochs * batches)
    for callback in (Callbacks(on_step=progress.advance), *callbacks):
        trainer.add_callback(callback)
    seed_training(trainer.args.seed)
    start = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return StageRun(
        epochs=epochs,
        steps=epochs * batches,
        examples=examples,
        seconds=seconds,
        examples_per_second=epochs * examples / seconds,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


@torch.no_grad()
def predict_rows(module: HeadModule, split: TokenizedSplit, dtype: str, batch_size: int = 128) -> np.ndarray:
    """The rows ``(R, C)`` fp32 of a model in eval mode, in the order of ``split``.

    Where words are predicted, there is a row for each token, which is 0 where no word begins. Several processes share
    the batches, and all get all rows.
    """
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    per_token = module.head.target().per == "token"
    rows = np.zeros((split.offsets[-1] if per_token else len(split), module.head.outputs), np.float32)
    for order in sequential_batches(split.lengths, batch_size)[processes.rank() :: processes.count()]:
        batch = split.collate(order)
        with autocast(dtype, device):
            output = module(padded=is_padded(batch), **head_inputs(batch, device))
        index = order
        if per_token:
            index = split.first_tokens(order)
        rows[index] = output.float().cpu().numpy()
    module.train(was_training)
    return processes.summed(rows)


def score(module: HeadModule, split: TokenizedSplit, dtype: str) -> dict[str, float]:
    """The metrics of a model on a split that has labels, and their mean, ``score``; all between -1 and 1."""
    assert split.labels is not None
    return module.head.metrics(predict_rows(module, split, dtype), split.labels)
