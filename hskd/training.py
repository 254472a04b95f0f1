"""Training of one stage: a Trainer over length-bucketed batches, its arguments and callbacks, and prediction."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from typing_extensions import override

from hskd import processes
from hskd.artifacts import CHECKSUMS, require_whole, seal
from hskd.errors import CorruptionError, HskdError
from hskd.fast.capture import Captured, HeldAdamW
from hskd.fast.encoder import LeanEncoder
from hskd.heads import Head
from hskd.io import read_json, saving
from hskd.progress import Progress
from hskd.runtime import RunOptions, autocast
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
from hskd.tasks.fixed import RowDataset, few_widths, in_few_shapes


class HeadModule(nn.Module):
    """A model that returns the outputs of its head, and computes only what the head reads.

    Fine-tuning on gold labels and the prediction stage train a model in this form.

    Args:
        model: the model.
        head: the head of its task.
        encoder: runs the model [default: a :class:`~hskd.fast.LeanEncoder` of it].
    """

    accepts_loss_kwargs = False  # Otherwise, Trainer would count labels across processes, which no loss here needs.

    def __init__(self, model: PreTrainedModel, head: Head, encoder: LeanEncoder | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.encoder = encoder or LeanEncoder(model)

    def forward(self, padded: bool | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the head's outputs ``(R, C)`` for a batch (:func:`~hskd.tasks.head_inputs`).

        ``padded`` says whether the batch has padding; None means that this is to be detected.
        """
        output = self.encoder.output(model_inputs(inputs), self.head.readout(inputs), padded)
        return self.head.rows(output, inputs)


class StageTrainer(Trainer):
    """A ``transformers.Trainer`` over a tokenised split. Its batches depend only on seed and epoch.

    Batches are bucketed by length. A subclass defines the loss of a batch in :meth:`batch_loss`. If several processes
    share a batch, or gradients are accumulated, loss and gradient are those of the whole batch, up to rounding.

    Args:
        model: the module to train. It must have ``accepts_loss_kwargs = False``.
        args: the result of :func:`training_arguments`.
        dataset: the training examples, with their targets.
        stage: name of the stage, for messages and progress.
        options: further arguments of ``Trainer``, such as ``optimizer_cls_and_kwargs``. With an optimizer of your own,
            steps are not captured.

    Attributes:
        captures: whether a GPU runs every step as one captured graph.
    """

    args: StageArguments

    def __init__(
        self, model: nn.Module, args: StageArguments, dataset: BatchDataset, stage: str, **options: Any
    ) -> None:
        fixed = None
        if args.capture and not options:
            fixed = in_few_shapes(dataset, args.batch_size, args.seed, args.device)
        self.captures = fixed is not None
        self._max_norm = args.max_grad_norm
        if self.captures:
            args.max_grad_norm = 0  # The captured step clips gradients.
            options["optimizer_cls_and_kwargs"] = HeldAdamW, _adamw_options(args)
            self._captured = Captured(self._whole_step, args.device)
        super().__init__(model=model, args=args, train_dataset=fixed or dataset, **options)
        self.dataset = fixed or dataset
        self.stage = stage
        self._finite = FiniteCheck(stage)
        self.remove_callback(PrinterCallback)
        for callback in (_LogEveryEpoch(), self._finite, _SealCheckpoint()):
            self.add_callback(callback)

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a batch with its targets: a scalar, the mean over its examples."""
        raise NotImplementedError

    @override
    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        # Trainer averages over processes and accumulated steps, but the parts of a batch may differ in size.
        parts = self.args.world_size * self.args.gradient_accumulation_steps
        loss = self.batch_loss(model, inputs) * (inputs["share"] * parts)
        self._finite.see(loss, self.state.global_step + 1)
        return loss

    @override
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if not self.captures:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        loss, norm = self._captured(self._prepare_inputs(inputs)["rows"], key=inputs["width"])
        for what, value in (("loss", loss), ("gradient norm", norm)):
            self._finite.see(value, self.state.global_step + 1, what)
        return loss.clone()

    def _whole_step(self, rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on the examples ``rows``; return loss and gradient norm."""
        assert isinstance(self.optimizer, AcceleratedOptimizer) and isinstance(self.dataset, RowDataset)
        with self.compute_loss_context_manager():
            loss = self.batch_loss(self.model, self.dataset.complete(rows, width))
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm or math.inf)
        self.optimizer.optimizer.apply()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

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
        """Number of batches in an epoch, each of which is one step."""
        return len(self.get_train_dataloader()) // int(self.args.gradient_accumulation_steps)

    def run(self) -> None:
        """Train. If the output folder holds a complete checkpoint, resume from the newest one.

        Raises:
            HskdError: a checkpoint cannot be written, or a loss or gradient norm is not finite.
            CorruptionError: a file of the checkpoint is damaged.
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
            for path in torn:  # An incomplete checkpoint is useless, and a resumed run may need the disk space.
                shutil.rmtree(path, ignore_errors=True)
            with saving(torn[0]) if torn else nullcontext():
                raise


def _adamw_options(args: TrainingArguments) -> dict[str, Any]:
    """Return the options with which ``Trainer`` would make a fused AdamW."""
    betas = (args.adam_beta1, args.adam_beta2)
    return {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon, "fused": True}


class GoldTrainer(StageTrainer):
    """Fine-tunes a model on gold labels: a teacher, or a student of the arm *gold*.

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
    """Stops training if a loss or a gradient norm is not finite.

    On a CPU, a loss is checked immediately. On a GPU, it is checked one step later, when its copy has arrived, so that
    no step waits for the device. Gradient norms are checked when Trainer logs them. Between two logs, a NaN gradient
    appears in the loss of the next step.

    Args:
        stage: name of the stage, for the message.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._unread: list[tuple[int, str, torch.Tensor, torch.cuda.Event]] = []

    def see(self, value: torch.Tensor, step: int, what: str = "loss") -> None:
        """Check the loss of ``step``, or ``what`` it is, on a CPU. On a GPU, check the previous ones and keep this one.

        Raises:
            HskdError: a checked value is not finite.
        """
        if value.device.type != "cuda":
            self._require_finite(what, float(value.detach()), step)
            return
        copy = value.detach().to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._read(before=step)
        self._unread.append((step, what, copy, arrived))

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

    def _read(self, before: float = math.inf) -> None:
        """Check the values that were kept for later, of steps before ``before``."""
        while self._unread and self._unread[0][0] < before:
            step, what, value, arrived = self._unread.pop(0)
            arrived.synchronize()
            self._require_finite(what, float(value), step)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise HskdError(
                f"{self._stage}: the {what} is {abs(value)} at step {step}. "
                "Lower the learning rate, or train in fp32 (--dtype fp32)."
            )


class _LogEveryEpoch(TrainerCallback):
    """Logs after every epoch, so that a short stage has a logged loss, and at every checkpoint.

    A checkpoint does not hold the loss since the last log. Without a log at every checkpoint, the logged losses would
    depend on whether a run was resumed.
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
    """Writes the checksums of a checkpoint. They also mark that all processes have finished writing it."""

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            processes.barrier()
        if args.should_save:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _require_checkpoint(checkpoint: Path) -> None:
    """Verify the files of a checkpoint.

    Raises:
        CorruptionError: names the damaged file, and says what to do.
    """
    try:
        require_whole(checkpoint)
    except CorruptionError as error:
        damaged = str(error).partition(". ")[0].removesuffix(".")
        raise CorruptionError(
            f"{damaged}. Delete the checkpoint {checkpoint}, and run the same command again: it resumes from an "
            "earlier one, or starts again."
        ) from None


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a stage's output folder, and the folder if it is then empty. Logs are kept."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class Callbacks(TrainerCallback):
    """Trainer callback that calls ``on_step`` after every step, and ``on_epoch`` after every epoch."""

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
    """Scores a model after every epoch. Checkpoints hold the scores, so that a resumed run has all of them.

    Args:
        score: returns the score of the model.
        on_score: called after each epoch with all scores so far.
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
    """Seed all random number generators.

    Each process gets a different seed, so that dropout masks differ. The main process gets the seed of a single one.
    """
    if rank := processes.rank():
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    set_seed(seed)


class StageSettings(Protocol):
    """Settings that every kind of stage has: of a teacher, of a distillation, and of a general distillation."""

    @property
    def batch_size(self) -> int:
        """Number of examples in a batch."""

    @property
    def seed(self) -> int:
        """Seed of the batches and of dropout."""

    @property
    def warmup(self) -> float:
        """Warm-up steps, or their share of all steps if below 1."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of AdamW."""


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """Hyperparameters of a stage. It trains with AdamW and gradient clipping.

    Weight decay does not apply to biases and LayerNorms.

    Attributes:
        epochs: number of passes over the training examples.
        learning_rate: peak learning rate.
        schedule: ``lr_scheduler_type`` of ``TrainingArguments``, such as constant or linear.
        batch_size: number of examples in a batch, over all processes together.
        seed: seed of the batches and of dropout.
        dtype: fp32, or bf16 for autocast.
        device: the device to train on.
        warmup_steps: number of warm-up steps; a value below 1 is a share of all steps.
        weight_decay: weight decay of AdamW.
        max_grad_norm: maximum norm of the gradient over all parameters together; 0 disables clipping.
        checkpoints: whether to save a checkpoint after every epoch, so that a killed run can resume.
        report_to: a reporter of Trainer (tensorboard, wandb, mlflow, ...), or none.
        accumulate: number of parts into which a process splits its share of a batch (gradient accumulation).
        first_epoch: number of epochs in earlier stages. Batches continue from there, so that arms with and without
            these stages see the same batches.
        epoch_examples: number of examples in an epoch, if the stage trains on fewer examples repeatedly; None for the
            number of training examples.
        capture: whether steps are captured on a GPU (see :class:`~hskd.runtime.RunOptions`). It has no effect if
            batches are shared by processes, split for accumulation, or of varying shapes.
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
    capture: bool = False

    @classmethod
    def of(
        cls,
        settings: StageSettings,
        options: RunOptions,
        *,
        epochs: float,
        learning_rate: float,
        schedule: str = "linear",
        **more: Any,
    ) -> StageRecipe:
        """Return the recipe of a stage with these settings on this machine. ``more`` sets or replaces other fields."""
        common: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "warmup_steps": settings.warmup,
            "weight_decay": settings.weight_decay,
            "dtype": options.dtype,
            "device": options.device,
            "checkpoints": options.checkpoints,
            "report_to": options.report_to,
            "accumulate": options.accumulate,
            "capture": options.capture,
        }
        return cls(epochs=epochs, learning_rate=learning_rate, schedule=schedule, **(common | more))


@dataclass
class StageArguments(TrainingArguments):
    """``TrainingArguments`` with the size of a whole batch, over all processes and accumulated steps."""

    batch_size: int = 32
    first_epoch: int = 0
    epoch_examples: int | None = None
    capture: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        # accelerate's configuration must not override the recorded dtype.
        self.mixed_precision = "bf16" if self.bf16 else "no"


def training_arguments(folder: Path, recipe: StageRecipe | None = None, **changes: Any) -> StageArguments:
    """Return the arguments of a :class:`StageTrainer`.

    Args:
        folder: where checkpoints and the reporters' logs go.
        recipe: hyperparameters of the stage; None if ``changes`` sets all required fields.
        changes: fields of :class:`StageRecipe` to set, and further arguments of ``TrainingArguments``.

    Raises:
        HskdError: a batch has fewer examples than parts.
    """
    known = {field.name for field in fields(StageRecipe)}
    of_recipe = {name: changes.pop(name) for name in list(changes) if name in known}
    recipe = StageRecipe(**of_recipe) if recipe is None else replace(recipe, **of_recipe)
    parts = recipe.accumulate * processes.count()
    if parts > recipe.batch_size:
        raise HskdError(
            f"--batch-size {recipe.batch_size}: {processes.count()} processes with --accumulate {recipe.accumulate} "
            f"cut a batch into {parts} parts; give a larger batch size, fewer processes or a smaller --accumulate."
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
            "capture": recipe.capture and parts == 1,
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
            # With several processes, the newest checkpoint may be incomplete, so the one before it is kept too.
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
    """Return the newest complete checkpoint in ``folder``; None if there is none.

    All processes must call it together, and get the answer of the main process. A checkpoint is complete once it has
    its checksums. With a single process, ``trainer_state.json`` is enough: Trainer writes it last, and the process may
    have been killed before the checksums were written.
    """
    alone = processes.count() == 1

    def newest() -> Path | None:
        checkpoints = folder.glob("checkpoint-*")
        whole = [path for path in checkpoints if (path / CHECKSUMS).is_file() or (alone and _is_whole(path))]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    return processes.by_main(newest)


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end."""
    if (checkpoint / CHECKSUMS).is_file():
        return True
    try:
        return isinstance(read_json(checkpoint / "trainer_state.json"), dict)
    except HskdError:
        return False


@dataclass(frozen=True)
class StageRun:
    """Statistics of a finished stage.

    Attributes:
        epochs: number of epochs.
        steps: number of steps in all epochs.
        examples: number of examples in an epoch. If the stage trains on fewer examples repeatedly, every repetition
            counts.
        seconds: wall time since the start or the last resumption.
        examples_per_second: examples of all epochs divided by ``seconds``.
        first_loss: the first logged loss; None if no loss was logged.
        last_loss: the last logged loss; None if no loss was logged.
    """

    epochs: int
    steps: int
    examples: int
    seconds: float
    examples_per_second: float
    first_loss: float | None
    last_loss: float | None


def run_stage(trainer: StageTrainer, progress: Progress, callbacks: Iterable[TrainerCallback] = ()) -> StageRun:
    """Train a stage, or resume it, and return its statistics.

    Args:
        trainer: the trainer of the stage.
        progress: receives the name of the stage and its steps.
        callbacks: further callbacks of ``Trainer``.

    Raises:
        HskdError: a checkpoint cannot be written, or a loss or gradient norm is not finite.
        CorruptionError: a file of the checkpoint is damaged.
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


class Predictor:
    """Runs a model in eval mode over whole splits, as often as it is asked to.

    Args:
        module: the model.
        dtype: resolved precision: fp32, or bf16 for autocast.
        capture: whether a GPU runs every batch as one captured graph (see :class:`~hskd.runtime.RunOptions`).
    """

    def __init__(self, module: HeadModule, dtype: str, capture: bool = False) -> None:
        self._module = module
        self._dtype = dtype
        self._device = next(module.parameters()).device
        self._per_token = module.head.target().per == "token"
        self._capture = capture and not self._per_token
        self._captured: dict[TokenizedSplit, tuple[RowDataset, Captured]] = {}

    @torch.no_grad()
    def rows(self, split: TokenizedSplit, batch_size: int = 128) -> np.ndarray:
        """Return the model's outputs ``(R, C)`` fp32, in the order of ``split``.

        There is one row per example. If the model predicts words, there is one row per token, which is 0 for tokens
        that begin no word. If there are several processes, they share the batches, and all get all rows.
        """
        module = self._module
        was_training = module.training
        module.eval()
        rows = np.zeros((split.offsets[-1] if self._per_token else len(split), module.head.outputs), np.float32)
        for order in sequential_batches(split.lengths, batch_size)[processes.rank() :: processes.count()]:
            index = split.first_tokens(order) if self._per_token else order
            rows[index] = self._outputs(split, order, batch_size).cpu().numpy()
        module.train(was_training)
        return processes.summed(rows)

    def _outputs(self, split: TokenizedSplit, order: np.ndarray, batch_size: int) -> torch.Tensor:
        if not self._capture:
            batch = split.collate(order)
            return self._forward(head_inputs(batch, self._device), is_padded(batch))
        if split not in self._captured:
            longest = [split.lengths[rows].max() for rows in sequential_batches(split.lengths, batch_size)]
            fixed = RowDataset(split, few_widths(longest), self._device, lambda rows, inputs: {})

            def forward(rows: torch.Tensor, width: int) -> tuple[torch.Tensor]:
                return (self._forward(head_inputs(fixed.complete(rows, width)), True),)

            self._captured[split] = fixed, Captured(forward, self._device)
        fixed, captured = self._captured[split]
        batch = fixed.__getitems__(order.tolist())
        return captured(batch["rows"].to(self._device), key=batch["width"])[0]

    def _forward(self, inputs: dict[str, torch.Tensor], padded: bool) -> torch.Tensor:
        with autocast(self._dtype, self._device):
            output: torch.Tensor = self._module(padded=padded, **inputs)
        return output.float()

    def score(self, split: TokenizedSplit) -> dict[str, float]:
        """Return the model's metrics on a split with labels, and their mean as ``score``. All are between -1 and 1."""
        assert split.labels is not None
        return self._module.head.metrics(self.rows(split), split.labels)
