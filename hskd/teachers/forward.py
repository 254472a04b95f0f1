"""The teacher's forward pass: hidden states, the attention that ``[CLS]`` pays, outputs. Eval mode, no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from hskd.errors import HskdError
from hskd.heads import Head
from hskd.heads.scores import entropies_of_tokens
from hskd.knowledge import TeacherStates
from hskd.runtime import autocast
from hskd.selectors import Tokens
from hskd.tasks import head_inputs, model_inputs
from hskd.teachers.attention import attention_rows


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """What the teacher says of a padded batch.

    Attributes:
        states: hidden states and attention of the real tokens.
        target: the rows of the head that was asked for, ``(R, C)`` fp32; None without a head.
    """

    states: TeacherStates
    target: torch.Tensor | None


@dataclass(frozen=True)
class ForwardOptions:
    """How a teacher runs, and what it tells; the defaults are those of every setting but the released code's.

    Attributes:
        dtype: fp32, or bf16 for autocast.
        dropout: run it in train mode, where its dropout reaches the student.
        softmax: give the attention after softmax; otherwise the scores before it, mean over heads too.
        pads: give what it says of pads too, as if they were tokens.
        gradients: teacher layers whose ``|h . dL/dh|`` is wanted; ``L`` is the loss of the teacher's own prediction.
        received: attention layers (1-based) of which it is wanted how much attention each token receives.
        entropies: give the entropy of the prediction for each token, where there is one.
    """

    dtype: str = "fp32"
    dropout: bool = False
    softmax: bool = True
    pads: bool = False
    gradients: tuple[int, ...] = ()
    received: tuple[int, ...] = ()
    entropies: bool = False


PLAIN = ForwardOptions()


class NotFiniteError(HskdError):
    """A hidden state is infinite or not a number; ``example`` is its example's place in the batch."""

    def __init__(self, message: str, example: int) -> None:
        super().__init__(message)
        self.example = example


def tokens_of(batch: Mapping[str, torch.Tensor], sep_id: int, pads: bool = False) -> Tokens:
    """The real tokens of a padded batch, end to end; with ``pads``, those too."""
    mask = batch["attention_mask"].bool().cpu() | pads
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1).numpy())])
    starts = None
    if "words" in batch:
        begins = torch.zeros(mask.numel(), dtype=torch.bool)
        begins[batch["words"].cpu()] = True
        starts = begins[mask.flatten()].numpy()
    ids = batch["input_ids"].cpu()[mask].numpy()
    return Tokens(batch["example_ids"].cpu().numpy(), offsets, ids, sep_id, word_starts=starts)


@torch.no_grad()
def teacher_forward(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    sep_id: int,
    layers: Sequence[int],
    attention_layers: Sequence[int],
    *,
    head: Head | None = None,
    options: ForwardOptions = PLAIN,
) -> TeacherOutput:
    """Run a teacher on a padded batch.

    Args:
        model: the teacher; it is put into eval mode, unless ``options`` ask for dropout.
        batch: ``example_ids`` ``(B,)``, ``input_ids`` and ``attention_mask`` ``(B, T)``, perhaps ``token_type_ids``.
        sep_id: the tokenizer's id of ``[SEP]``.
        layers: teacher layers whose hidden states are wanted; 0 is the embedding output.
        attention_layers: attention layers (1-based) whose ``[CLS]`` row is wanted.
        head: makes the target rows of the model's output; None where only hidden states are wanted.
        options: how it runs.

    Raises:
        NotFiniteError: the teacher gives a hidden state that is not finite.
        HskdError: its attention cannot be read; or gradients are wanted of a teacher without a head.
    """
    model.train(options.dropout)
    device = next(model.parameters()).device
    inputs = head_inputs(batch, device)
    mask = inputs["attention_mask"].bool()
    gradient_layers = options.gradients
    with (
        torch.set_grad_enabled(bool(gradient_layers)),
        autocast(options.dtype, device),
        attention_rows(model, attention_layers, options.received, mask, options.softmax) as rows,
    ):
        output = model(**model_inputs(inputs), output_hidden_states=bool(layers or gradient_layers))
        target = None if head is None else head.rows(output, inputs).float()
    for layer in layers:
        if output.hidden_states[layer].shape[:2] != mask.shape:
            raise HskdError(
                f"the teacher's hidden state {layer} is of shape {tuple(output.hidden_states[layer].shape)} for "
                f"{mask.shape[1]} tokens; what is distilled is one state a token. Use an encoder that keeps them apart."
            )
    scores = _dependence(output.hidden_states, head, target, gradient_layers) if gradient_layers else {}
    # Counted where the batch is: a loader's is on the CPU, and nobody has to wait for a GPU to count.
    real = (batch["attention_mask"].bool() | options.pads).flatten().nonzero()[:, 0].to(device, non_blocking=True)
    hidden = {
        layer: output.hidden_states[layer].flatten(0, 1).index_select(0, real).detach().float() for layer in layers
    }
    tokens = tokens_of(batch, sep_id, options.pads)
    require_finite(hidden, tokens)
    attention, gradient, received = (
        {layer: row.flatten().index_select(0, real).detach().float().cpu().numpy() for layer, row in table.items()}
        for table in (rows.paid, scores, rows.received)
    )
    entropy = None
    if options.entropies and tokens.word_starts is not None and head is not None and target is not None:
        entropy = entropies_of_tokens(head, target.detach(), tokens.word_starts)
    states = TeacherStates(tokens, hidden, attention, gradient, received, entropy)
    return TeacherOutput(states, None if target is None else target.detach())


def _dependence(
    hidden: Sequence[torch.Tensor], head: Head | None, target: torch.Tensor | None, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """``|h . dL/dh|`` of every token in some layers, ``(B, T)`` each, for the loss of the prediction ``target``."""
    if head is None or target is None:
        raise HskdError("length=gradient ranks by the teacher's prediction, and this teacher makes none; use another.")
    with torch.enable_grad():
        # A row depends on its own example alone, so of a sum each example gets its own gradient.
        loss = head.predicted_loss(target)
    states = [hidden[layer] for layer in layers]
    gradients = torch.autograd.grad(loss, states, allow_unused=True)
    return {
        layer: torch.zeros(state.shape[:2], device=state.device)
        if gradient is None
        else (state.float() * gradient.float()).sum(-1).abs()
        for layer, state, gradient in zip(layers, states, gradients, strict=True)
    }


def require_finite(hidden: Mapping[int, torch.Tensor], tokens: Tokens) -> None:
    """Refuse hidden states ``(M, d_T)`` of ``tokens`` that are not finite; a GPU is waited for once.

    Raises:
        NotFiniteError: names the first layer, and knows the first example, in which one is not.
    """
    if hidden:
        # One number that is not finite makes the sum so, and a sum is quick.
        sums = torch.stack([values.sum() for values in hidden.values()]).tolist()
        for layer, total in zip(hidden, sums, strict=True):
            # A sum of large numbers may be infinite where none of them is.
            if not math.isfinite(total) and not (finite := torch.isfinite(hidden[layer]).all(1).cpu().numpy()).all():
                raise NotFiniteError(
                    f"the teacher's hidden state {layer} is not finite; its weights are damaged or overflow.",
                    int(tokens.example[np.flatnonzero(~finite)[0]]),
                )
