"""What every training run here shares: Trainer with our batches, stopping at NaN, counting clipped steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerControl, TrainerState

from hskd import processes
from hskd.dropout import cheap_dropout
from hskd.encoder import cls_only, takes_cls_only
from hskd.errors import HskdError
from hskd.runtime import autocast
from hskd.tasks import (
    BucketedBatchSampler,
    EpochDataLoader,
    Task,
    TokenizedSplit,
    compute_metrics,
    model_inputs,
    sequential_batches,
)


class StageTrainer(Trainer):
    """``transformers.Trainer`` over a tokenised split, in length-bucketed batches that depend on seed and epoch alone.

    A subclass gives the loss of a batch in :meth:`batch_loss`. A batch may be shared out among processes and taken in
    several steps: its loss and gradient are those of the whole, to rounding.

    Args:
        model: the module to train.
        args: training arguments, those of :func:`training_arguments`.
        split: the training examples.
        stage: name of the stage, for messages and progress.
    """

    # compute_loss does it: shares of a batch may differ in size.
    loss_is_scaled_for_ga = True

    clip_each = False
    """Clip the gradient of every parameter by itself, and not that of all together."""

    first_epoch = 0
    """Epochs of the stages before: the batches go on from there, so that arms with and without them agree."""

    def __init__(self, model: nn.Module, args: StageArguments, split: TokenizedSplit, stage: str) -> None:
        # Elsewhere not every parameter may take part, such as the classifier in the HSK stage.
        args.ddp_find_unused_parameters = not takes_cls_only(model)
        super().__init__(model=model, args=args, train_dataset=split)
        # Or Trainer would count, among all processes, labels that no one asks about.
        self.model_accepts_loss_kwargs = False
        self.split = split
        self.stage = stage
        self._clipped_since_log = 0.0
        self._unread: list[tuple[str, int, torch.Tensor]] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(_LogEveryEpoch)

    def targets(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch is to learn, beside what the split says of it; it joins the batch.

        Asked for one batch ahead (see :class:`hskd.tasks.EpochDataLoader`).
        """
        return {}

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch with its targets, a scalar, mean over its examples."""
        raise NotImplementedError

    def compute_loss(  # type: ignore[no-untyped-def]
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ) -> torch.Tensor:
        """See ``Trainer``; the shares of a batch add up to its mean over examples.

        Of what processes add, Trainer takes the mean.
        """
        return self.batch_loss(model, inputs) * (inputs["share"] * self.args.world_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as a pure function of (seed, epoch), so that a resumed run and every arm of a seed see the same."""
        sampler = BucketedBatchSampler(
            self.split.lengths,
            self.args.batch_size,
            self.args.seed,
            self.first_epoch,
            self.args.dataloader_drop_last,
            accumulate=self.args.gradient_accumulation_steps,
            process=self.args.process_index,
            processes=self.args.world_size,
        )
        return EpochDataLoader(self.split, sampler, collate_fn=lambda batch: batch | self.targets(batch))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See ``Trainer``.

        Raises:
            HskdError: the loss is not finite.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._unread.append(("loss", self.state.global_step + 1, loss))
        # Reading a value waits for the device: on an accelerator it is that of the step before, which is done.
        self._read(keep=0 if loss.device.type == "cpu" else 2)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm: torch.Tensor
        if self.clip_each:
            limit = self.args.max_grad_norm
            trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
            norm = torch.stack([nn.utils.clip_grad_norm_(parameter, limit) for parameter in trained])
        else:
            norm = super()._clip_grad_norm(model)
        self._unread.append(("gradient norm", self.state.global_step + 1, norm))
        self._read(keep=0 if norm.device.type == "cpu" else 2)
        return norm.norm()

    def _read(self, keep: int = 0) -> None:
        """Check the losses and gradient norms that were set aside, but for the last ``keep``; count clipped steps."""
        while len(self._unread) > keep:
            what, step, value = self._unread.pop(0)
            if not torch.isfinite(value).all():
                raise HskdError(
                    f"{self.stage}: the {what} is {float(value.norm())} at step {step}. "
                    "Lower the learning rate, or train in fp32 (--dtype fp32)."
                )
            if what == "gradient norm":  # one, or one of each parameter: of those, the share that was clipped
                self._clipped_since_log += float((value > self.args.max_grad_norm).double().mean())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See ``Trainer``; the clipped steps since the last log go with it."""
        super().log({**logs, **self._take_clipped()}, *args, **kwargs)

    def _take_clipped(self) -> dict[str, float]:
        self._read()
        taken, self._clipped_since_log = self._clipped_since_log, 0.0
        return {"clipped_steps": taken}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The count must be in the state that is saved, or a resumed run would forget it.
        self.state.log_history.append({"step": self.state.global_step, **self._take_clipped()})
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The main process now writes what makes the checkpoint whole.
        processes.barrier()

    @property
    def batches(self) -> int:
        """Batches of an epoch; each is a step."""
        return len(self.get_train_dataloader()) // int(self.args.gradient_accumulation_steps)

    @property
    def clipped_share(self) -> float:
        """Share of the steps so far whose gradient was clipped; with ``clip_each``, of the parameters' gradients."""
        clipped = sum(entry.get("clipped_steps", 0) for entry in self.state.log_history) + self._clipped_since_log
        return float(clipped) / max(self.state.global_step, 1)

    def run(self) -> None:
        """Train, going on from the last whole checkpoint in the output folder where there is one."""
        checkpoint = processes.by_main(lambda: last_checkpoint(Path(self.args.output_dir)))
        with cheap_dropout(self.model), cls_only(self.model):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


class GoldTrainer(StageTrainer):
    """Fine-tuning on hard labels: a teacher, or the arm *gold*."""

    def batch_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Cross-entropy with the labels, or squared error for regression."""
        return gold_loss(model(**model_inputs(batch)).logits, batch["labels"])


def gold_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits ``(B, C)`` with labels ``(B,)``, or squared error where there is one output."""
    if logits.shape[1] == 1:
        return F.mse_loss(logits.float().squeeze(1), labels.float())
    return F.cross_entropy(logits.float(), labels)


class _LogEveryEpoch(TrainerCallback):
    """The loss since the last log is in no checkpoint: logged before each, a resumed run has the same log.

    And a stage shorter than ``logging_steps`` has one.
    """

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See ``TrainerCallback``."""
        control.should_log = True


class Callbacks(TrainerCallback):
    """Plain functions as Trainer callbacks: ``on_step`` after every step, ``on_epoch`` after every epoch."""

    def __init__(self, on_step: Callable[[], None] | None = None, on_epoch: Callable[[], None] | None = None) -> None:
        self._on_step = on_step
        self._on_epoch = on_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See ``TrainerCallback``."""
        if self._on_step:
            self._on_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See ``TrainerCallback``."""
        if self._on_epoch:
            self._on_epoch()


def seed_training(seed: int) -> None:
    """Seed everything that draws; each process draws another dropout, the main one that of a process alone."""
    if rank := processes.rank():
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    set_seed(seed)


@dataclass
class StageArguments(TrainingArguments):
    """``TrainingArguments`` that know how many examples a batch has: in all processes and all their steps together."""

    batch_size: int = 32


def training_arguments(
    folder: Path,
    *,
    epochs: float,
    learning_rate: float,
    schedule: str,
    batch_size: int,
    seed: int,
    dtype: str,
    device: torch.device,
    warmup_steps: float = 0,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    checkpoints: bool = False,
    report_to: str = "none",
    accumulate: int = 1,
    **more: Any,
) -> StageArguments:
    """``TrainingArguments`` with this project's defaults: AdamW, weight decay but on biases and LayerNorms, clipping.

    Args:
        folder: where checkpoints and the reporters' logs go.
        epochs: passes over the training examples.
        learning_rate: peak learning rate.
        schedule: ``lr_scheduler_type``, such as constant or linear.
        batch_size: examples in a batch, over all processes together.
        seed: decides the batches and the dropout.
        dtype: fp32, or bf16 for autocast.
        device: the device to train on.
        warmup_steps: steps of warm-up, or a share of all steps where below 1.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm, over all parameters together.
        checkpoints: save one after every epoch, so that a killed run goes on from there.
        report_to: a reporter of Trainer's (tensorboard, wandb, mlflow, ...), or none.
        accumulate: parts that a process cuts its share of a batch into, one after the other.
        more: any further argument of ``TrainingArguments``.

    Raises:
        HskdError: the batch is smaller than the number of its parts.
    """
    parts = accumulate * processes.count()
    if parts > batch_size:
        raise HskdError(
            f"--batch-size {batch_size}: {processes.count()} processes with --accumulate {accumulate} cut a batch into "
            f"{parts} parts; give a larger batch, or fewer of either."
        )
    arguments = StageArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "lr_scheduler_type": schedule,
            "batch_size": batch_size,
            "per_device_train_batch_size": -(-batch_size // parts),
            "gradient_accumulation_steps": accumulate,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "seed": seed,
            "bf16": dtype == "bf16",
            "use_cpu": device.type == "cpu",
            "optim": "adamw_torch_fused",
            "logging_steps": 10,
            "logging_nan_inf_filter": False,
            "save_strategy": "epoch" if checkpoints else "no",
            "save_total_limit": 1,
            "report_to": report_to,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            **more,
        }
    )
    # Not what accelerate's configuration says: what is recorded is dtype.
    arguments.mixed_precision = "bf16" if dtype == "bf16" else "no"
    return arguments


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose ``trainer_state.json``, which is written last, is there."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@torch.no_grad()
def predict_logits(model: PreTrainedModel, split: TokenizedSplit, dtype: str, batch_size: int = 128) -> np.ndarray:
    """The logits of ``model`` in eval mode, ``(N, C)`` fp32, in the order of ``split``.

    Several processes share the batches, and all get all logits.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits = np.zeros((len(split), model.config.num_labels), np.float32)
    with cls_only(model):
        for order in sequential_batches(split.lengths, batch_size)[processes.rank() :: processes.count()]:
            batch = model_inputs(split.collate(order), device)
            with autocast(dtype, device):
                logits[order] = model(**batch).logits.float().cpu().numpy()
    model.train(was_training)
    return processes.summed(logits)


def score(model: PreTrainedModel, task: Task, split: TokenizedSplit, dtype: str) -> dict[str, float]:
    """The task's metrics of ``model`` on a split that has labels, and their mean, ``score``; all between -1 and 1."""
    assert split.labels is not None
    return compute_metrics(task, predict_logits(model, split, dtype), split.labels)
