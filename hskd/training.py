"""What every training run here shares: Trainer with our batches, stopping at NaN, counting clipped steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hskd.dropout import cheap_dropout
from hskd.encoder import cls_only
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

    A subclass gives the loss of a batch in :meth:`batch_loss`.

    Args:
        model: the module to train.
        args: training arguments, such as those of :func:`training_arguments`.
        split: the training examples.
        stage: name of the stage, for messages and progress.
    """

    # The loss is a mean over the batch: with accumulation, Trainer has to divide it.
    loss_is_scaled_for_ga = False

    clip_each = False
    """Clip the gradient of every parameter by itself, and not that of all together."""

    first_epoch = 0
    """Epochs of the stages before: the batches go on from there, so that arms with and without them agree."""

    def __init__(self, model: nn.Module, args: TrainingArguments, split: TokenizedSplit, stage: str) -> None:
        super().__init__(model=model, args=args, train_dataset=split)
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
        """See ``Trainer``."""
        return self.batch_loss(model, inputs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as a pure function of (seed, epoch), so that a resumed run and every arm of a seed see the same."""
        sampler = BucketedBatchSampler(
            self.split.lengths,
            self.args.train_batch_size,
            self.args.seed,
            self.first_epoch,
            self.args.dataloader_drop_last,
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

    @property
    def clipped_share(self) -> float:
        """Share of the steps so far whose gradient was clipped; with ``clip_each``, of the parameters' gradients."""
        clipped = sum(entry.get("clipped_steps", 0) for entry in self.state.log_history) + self._clipped_since_log
        return float(clipped) / max(self.state.global_step, 1)

    def run(self) -> None:
        """Train, going on from the last whole checkpoint in the output folder where there is one."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
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
    **more: Any,
) -> TrainingArguments:
    """``TrainingArguments`` with this project's defaults: AdamW, weight decay but on biases and LayerNorms, clipping.

    Args:
        folder: where checkpoints and the reporters' logs go.
        epochs: passes over the training examples.
        learning_rate: peak learning rate.
        schedule: ``lr_scheduler_type``, such as constant or linear.
        batch_size: examples in a batch.
        seed: decides the batches and the dropout.
        dtype: fp32, or bf16 for autocast.
        device: the device to train on.
        warmup_steps: steps of warm-up, or a share of all steps where below 1.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm, over all parameters together.
        checkpoints: save one after every epoch, so that a killed run goes on from there.
        report_to: a reporter of Trainer's (tensorboard, wandb, mlflow, ...), or none.
        more: any further argument of ``TrainingArguments``.
    """
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "lr_scheduler_type": schedule,
            "per_device_train_batch_size": batch_size,
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


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose ``trainer_state.json``, which is written last, is there."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@torch.no_grad()
def predict_logits(model: nn.Module, split: TokenizedSplit, dtype: str, batch_size: int = 128) -> np.ndarray:
    """The logits of ``model`` in eval mode, ``(N, C)`` fp32, in the order of ``split``."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits: np.ndarray | None = None
    with cls_only(model):
        for order in sequential_batches(split.lengths, batch_size):
            batch = model_inputs(split.collate(order), device)
            with autocast(dtype, device):
                output = model(**batch).logits.float().cpu().numpy()
            if logits is None:
                logits = np.empty((len(split), output.shape[1]), np.float32)
            logits[order] = output
    model.train(was_training)
    assert logits is not None
    return logits


def score(model: nn.Module, task: Task, split: TokenizedSplit, dtype: str) -> dict[str, float]:
    """The task's metrics of ``model`` on a split that has labels, and their mean, ``score``; all between -1 and 1."""
    assert split.labels is not None
    return compute_metrics(task, predict_logits(model, split, dtype), split.labels)
