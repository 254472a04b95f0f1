"""The teacher's forward pass: hidden states, attention and outputs. By default in eval mode, without gradients."""

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
    """The teacher's output for a padded batch.

    Attributes:
        states: hidden states and attention of the real tokens.
        target: the rows of the given head, ``(R, C)`` fp32; None without a head.
    """

    states: TeacherStates
    target: torch.Tensor | None


@dataclass(frozen=True)
class ForwardOptions:
    """How a teacher runs and what it returns.

    Only departures of the paper's released code (docs/compat.md) change ``dropout``, ``softmax`` and ``pads``.

    Attributes:
        dtype: fp32, or bf16 for autocast.
        dropout: run the teacher in train mode, so that its dropout affects the student.
        softmax: return attention after softmax; otherwise the scores before it. Both are means over heads.
        pads: return values for pads too, as if they were tokens.
        gradients: teacher layers for which to return ``|h . dL/dh|``. ``L`` is the loss of the teacher's own
            prediction.
        received: attention layers (1-based) for which to return how much attention each token receives.
        entropies: return the entropy of the prediction for each token, if there is one.
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
    """A hidden state contains an infinity or NaN. ``example`` is the index of its example in the batch."""

    def __init__(self, message: str, example: int) -> None:
        super().__init__(message)
        self.example = example


def tokens_of(batch: Mapping[str, torch.Tensor], sep_id: int, pads: bool = False) -> Tokens:
    """Return the real tokens of a padded batch, concatenated; with ``pads``, the pads too."""
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
        model: the teacher. It is put into eval mode, unless ``options`` request dropout.
        batch: ``example_ids`` ``(B,)``, ``input_ids`` and ``attention_mask`` ``(B, T)``, optionally ``token_type_ids``.
        sep_id: the tokenizer's id of ``[SEP]``.
        layers: teacher layers whose hidden states to return; 0 is the embedding output.
        attention_layers: attention layers (1-based) for which to return the attention that ``[CLS]`` pays.
        head: makes the target rows from the model's output; None returns no target.
        options: how the teacher runs, and what else to return.

    Raises:
        NotFiniteError: a hidden state of the teacher is not finite.
        HskdError: the teacher's attention cannot be read, it does not give one hidden state per token, or gradients are
            requested without a head.
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
                f"the teacher's hidden state {layer} has shape {tuple(output.hidden_states[layer].shape)} for "
                f"{mask.shape[1]} tokens; distillation needs one state per token. Use an encoder that does not join "
                "tokens, such as a BERT."
            )
    scores = _dependence(output.hidden_states, head, target, gradient_layers) if gradient_layers else {}
    # Counted on the batch's own device. A loader's batch is on the CPU, so counting does not wait for a GPU.
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
    """Return ``|h . dL/dh|`` of every token in some layers, ``(B, T)`` each, for the loss of ``target``."""
    if head is None or target is None:
        raise HskdError(
            "length=gradient ranks by the teacher's prediction, and this teacher makes none; use another selector."
        )
    with torch.enable_grad():
        # Each row depends on its own example only, so the gradient of the sum is each example's own gradient.
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
    """Refuse hidden states ``(M, d_T)`` of ``tokens`` that are not finite, with a single synchronisation of a GPU.

    Raises:
        NotFiniteError: a hidden state is not finite. The error has the first such layer, and its first example.
    """
    if hidden:
        # A single value that is not finite makes the sum so, and a sum is cheap.
        sums = torch.stack([values.sum() for values in hidden.values()]).tolist()
        for layer, total in zip(hidden, sums, strict=True):
            # The sum may overflow although every value is finite.
            if not math.isfinite(total) and not (finite := torch.isfinite(hidden[layer]).all(1).cpu().numpy()).all():
                raise NotFiniteError(
                    f"the teacher's hidden state {layer} is not finite; its weights are damaged or overflow.",
                    int(tokens.example[np.flatnonzero(~finite)[0]]),
                )
