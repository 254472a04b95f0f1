"""Cut a narrower BERT out of a teacher's body: where a general student starts from.

Hidden states keep their largest principal components, in a rotation that LayerNorm puts up with; each layer keeps the
heads and FFN neurons that do most in these; and least squares fits every matrix, from the embeddings up, to what the
teacher computes on a sample of text. No gradient is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedModel

from hskd.errors import HskdError
from hskd.fast.encoder import LeanEncoder, is_bert_shaped
from hskd.selectors.depth import uniform_mapping
from hskd.students.rosita.prune import factorise
from hskd.tasks import TokenizedSplit, model_inputs, sequential_batches

_RIDGE = 1e-6
"""Of least squares, as a share of the inputs' mean square."""
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Start:
    """A narrow student, and the map from its hidden states to the teacher's; None where the widths are equal."""

    student: PreTrainedModel
    projection: nn.Linear | None


@torch.no_grad()
def narrow(
    body: PreTrainedModel, layers: int, width: int, heads: int, ffn: int, split: TokenizedSplit, examples: int = 256
) -> Start:
    """A BERT of these sizes whose hidden states, through the projection, resemble the body's.

    A body that is not BERT-shaped gives its word embeddings alone, by their largest principal components; the rest is
    drawn from torch's random state, as is the rotation of the hidden states.

    Args:
        body: the teacher's body, on the CPU, in eval mode.
        layers: layers of the student, spread evenly over the body's.
        width: neurons of its hidden states.
        heads: attention heads in each layer.
        ffn: FFN neurons in each layer.
        split: text to fit the student on.
        examples: how many of its pieces are used.

    Raises:
        HskdError: a size is larger than the body can fill.
    """
    full = body.config.hidden_size
    student = _empty(body, layers, width, heads, ffn)
    projection = nn.Linear(width, full) if width != full else None
    if is_bert_shaped(body):
        _require("layers", layers, body.config.num_hidden_layers)
        _require("width", width, full)
        fit = _Fit(body, student, split.take(range(min(examples, len(split)))))
        fit.run(projection)
    elif (table := body.get_input_embeddings().weight).shape[1] >= width:
        student.embeddings.word_embeddings.weight.copy_(factorise(table, width)[0])
    return Start(student, projection)


def _empty(body: PreTrainedModel, layers: int, width: int, heads: int, ffn: int) -> BertModel:
    """A random BERT of these sizes; all that is not a size is the body's, where it is a BERT."""
    config = body.config
    given = config.to_dict() if isinstance(config, BertConfig) else {}
    for stale in ("_name_or_path", "architectures", "transformers_version", "dtype", "model_type"):
        given.pop(stale, None)
    given.update(
        vocab_size=config.vocab_size,
        max_position_embeddings=getattr(config, "max_position_embeddings", 512),
        pad_token_id=config.pad_token_id,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
    )
    return BertModel(BertConfig(**given)).eval()


class _Fit:
    """The fitting of one student.

    States are those of the sample's ``M`` real tokens, end to end: ``(M, d)``. ``basis`` ``(d_T, d_S)`` holds the
    directions that the student keeps, and is None where it keeps all.
    """

    def __init__(self, body: Any, student: Any, sample: TokenizedSplit) -> None:
        self.body, self.student = body, student
        self.width = student.config.hidden_size
        layers = student.config.num_hidden_layers
        self.mapped = [teacher for _, teacher in sorted(uniform_mapping(layers, body.config.num_hidden_layers))]
        batches = [sample.collate(order) for order in sequential_batches(sample.lengths, _BATCH)]
        self.inputs = [model_inputs(batch) for batch in batches]
        self.real = [inputs["attention_mask"].bool() for inputs in self.inputs]
        self.below: list[Tensor] = []
        """The teacher's padded hidden states below the layer that is fitted."""

    def run(self, projection: nn.Linear | None) -> None:
        """Fill the student, and the projection."""
        teacher_states = self._mapped_states()
        self.mean, self.basis = _choose_basis(teacher_states, self.width)
        student_states = [self._fit_embeddings(teacher_states[0])]
        for index in range(len(self.mapped) - 1):
            student_states.append(self._fit_layer(index, student_states[-1]))
        if projection is not None:
            _assign(projection, torch.cat(student_states), torch.cat(teacher_states))

    def _mapped_states(self) -> list[Tensor]:
        states: list[list[Tensor]] = [[] for _ in self.mapped]
        for inputs, real in zip(self.inputs, self.real, strict=True):
            every = LeanEncoder(self.body).hidden_states(inputs, self.mapped[-1])
            self.below.append(every[0])
            for kept, layer in zip(states, self.mapped, strict=True):
                kept.append(every[layer][real])
        return [torch.cat(parts) for parts in states]

    def _reduced(self, states: Tensor) -> Tensor:
        """The student's states that stand for a teacher's, ``(M, d_T)`` to ``(M, d_S)``."""
        return states if self.basis is None else (states - self.mean) @ self.basis

    def _before_norm(self, before: Tensor, norm: nn.LayerNorm) -> Tensor:
        """What the student's LayerNorm should be given where the teacher's is given ``before``."""
        if self.basis is None:
            return before
        centred = before - before.mean(1, keepdim=True)
        return (centred * (norm.weight / norm.weight.abs().mean())) @ self.basis

    def _outward(self, weight: Tensor) -> Tensor:
        """The part of an output matrix ``(d_T, n)`` that shows in the student's states."""
        return weight if self.basis is None else self.basis.T @ weight

    def _fit_embeddings(self, teacher_states: Tensor) -> Tensor:
        teacher_embeddings, student_embeddings = self.body.embeddings, self.student.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            getattr(student_embeddings, name).weight.copy_(
                self._before_norm(getattr(teacher_embeddings, name).weight, teacher_embeddings.LayerNorm)
            )
        before = []
        with _watched({"sum": student_embeddings.LayerNorm}, set(), lambda name, states: before.append(states)):
            for inputs in self.inputs:
                student_embeddings(inputs["input_ids"], inputs.get("token_type_ids"))
        rows = torch.cat([states[real] for states, real in zip(before, self.real, strict=True)])
        return self._fit_norm(student_embeddings.LayerNorm, rows, self._reduced(teacher_states))

    def _fit_norm(self, norm: nn.LayerNorm, before: Tensor, target_states: Tensor) -> Tensor:
        """Fit weight and bias, neuron by neuron, and return what comes out."""
        normal = F.layer_norm(before, (self.width,), eps=norm.eps).double()
        target = target_states.double()
        spread = normal.var(0, unbiased=False)
        weight = ((normal - normal.mean(0)) * (target - target.mean(0))).mean(0) / spread.clamp_min(norm.eps)
        norm.weight.copy_(weight)
        norm.bias.copy_(target.mean(0) - weight * normal.mean(0))
        return norm(before)  # type: ignore[no-any-return]

    def _fit_layer(self, index: int, states: Tensor) -> Tensor:
        """Fit layer ``index``, given the student's states below it, and return those above it.

        It stands for all teacher layers up to the mapped one: its heads and neurons are chosen among all of theirs.
        """
        span = range(self.mapped[index] + 1, self.mapped[index + 1] + 1)
        seen = self._run_teacher(span)
        block, top = self.student.encoder.layer[index], self.body.encoder.layer[span[-1] - 1]
        attention = block.attention.self
        for name, targets in self._choose_heads(span, seen).items():
            _assign(getattr(attention, name), states, targets)
        after = self._fit_output(
            block.attention.output, self._context(attention, states), states, seen["attended"], top.attention.output
        )
        _assign(block.intermediate.dense, after, self._choose_neurons(span, seen))
        return self._fit_output(block.output, block.intermediate(after), after, seen["output"], top.output)

    def _run_teacher(self, span: range) -> dict[str, Tensor]:
        """What the teacher computes in some layers.

        ``query4``, ``key4``, ``value4``, ``context4``, ``ffn4`` (before the activation) of each; ``attended`` and
        ``output``, before their LayerNorms, of the last.
        """
        top = self.body.encoder.layer[span[-1] - 1]
        places: dict[str, nn.Module] = {}
        for layer in span:
            block = self.body.encoder.layer[layer - 1]
            places |= {f"{name}{layer}": getattr(block.attention.self, name) for name in ("query", "key", "value")}
            places |= {f"context{layer}": block.attention.output.dense, f"ffn{layer}": block.intermediate.dense}
        outputs = {name for name in places if not name.startswith("context")}
        places |= {"attended": top.attention.output.LayerNorm, "output": top.output.LayerNorm}
        seen: dict[str, list[Tensor]] = defaultdict(list)
        for number, real in enumerate(self.real):

            def keep(name: str, states: Tensor, real: Tensor = real) -> None:
                seen[name].append(states[real])

            with _watched(places, outputs, keep):
                for layer in span:
                    self.below[number] = self.body.encoder.layer[layer - 1](self.below[number], real[:, None, None])
        return {name: torch.cat(parts) for name, parts in seen.items()}

    def _choose_heads(self, span: range, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Queries, keys and values ``(M, d_S)`` of the heads that move the student's states most."""
        heads = self.body.config.num_attention_heads
        size = self.width // self.student.config.num_attention_heads
        parts = {name: torch.cat([seen[f"{name}{layer}"] for layer in span], 1) for name in ("query", "key", "value")}
        context = torch.cat([seen[f"context{layer}"] for layer in span], 1)
        blocks = [self.body.encoder.layer[layer - 1].attention.output.dense.weight for layer in span]
        outward = torch.cat([self._outward(weight) for weight in blocks], 1).unflatten(1, (heads * len(span), -1))
        moved = (context - context.mean(0)).unflatten(1, (heads * len(span), -1))
        # E |out c|^2 of each head, from the covariance of c.
        covariance = torch.einsum("mhi,mhj->hij", moved, moved)
        scores = torch.einsum("dhi,hij,dhj->h", outward, covariance, outward)
        chosen = _largest("heads", scores, self.student.config.num_attention_heads)
        query, key, value = (part.unflatten(1, (heads * len(span), -1)) for part in parts.values())
        sized = [_resize(query[:, i], key[:, i], value[:, i], outward[:, i], size) for i in chosen.tolist()]
        return {name: torch.cat(columns, 1) for name, columns in zip(parts, zip(*sized, strict=True), strict=True)}

    def _choose_neurons(self, span: range, seen: dict[str, Tensor]) -> Tensor:
        """FFN neurons before their activation, ``(M, n)``: those that move the student's states most."""
        scores = []
        for layer in span:
            block = self.body.encoder.layer[layer - 1]
            active = block.intermediate.intermediate_act_fn(seen[f"ffn{layer}"])
            scores.append(active.var(0) * self._outward(block.output.dense.weight).square().sum(0))
        chosen = _largest("ffn", torch.cat(scores), self.student.config.intermediate_size)
        return torch.cat([seen[f"ffn{layer}"] for layer in span], 1)[:, chosen]

    def _context(self, attention: Any, states: Tensor) -> Tensor:
        """What the student's heads give, ``(M, d_S)``."""
        contexts = []
        for real, rows in zip(self.real, states.split([int(real.sum()) for real in self.real]), strict=True):
            padded = torch.zeros((*real.shape, self.width))
            padded[real] = rows
            contexts.append(attention(padded, real[:, None, None])[0][real])
        return torch.cat(contexts)

    def _fit_output(self, block: Any, inputs: Tensor, residual: Tensor, before: Tensor, top: Any) -> Tensor:
        """Fit a matrix that adds to the residual stream, and the LayerNorm behind it; return what comes out."""
        _assign(block.dense, inputs, self._before_norm(before, top.LayerNorm) - residual)
        return self._fit_norm(block.LayerNorm, block.dense(inputs) + residual, self._reduced(top.LayerNorm(before)))


def _choose_basis(states: list[Tensor], width: int) -> tuple[Tensor, Tensor | None]:
    """The mean ``(d_T,)`` and the basis ``(d_T, width)`` of hidden states; no basis where all is kept.

    A LayerNorm gives states whose neurons have mean 0 and, over tokens, a fixed length. Hence one direction fewer is
    kept than there are neurons, and directions are rotated so that the neurons have mean 0 and about equal variance.
    """
    every = torch.cat(states).double()
    mean = every.mean(0)
    if width == every.shape[1]:
        return torch.zeros_like(mean).float(), None
    centred = every - mean
    _, directions = torch.linalg.eigh(centred.T @ centred)
    kept = directions.flip(1)[:, : width - 1]
    drawn = torch.cat([torch.ones(width, 1), torch.randn(width, width - 1)], 1).double()
    rotation = torch.linalg.qr(drawn).Q[:, 1:]  # orthonormal, and orthogonal to the constant
    return mean.float(), (kept @ rotation.T).float()


def _resize(query: Tensor, key: Tensor, value: Tensor, outward: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A head ``(M, s)`` with ``size`` columns: its scores and its outputs stay as near as they can.

    ``outward`` ``(d, s)`` is its part of the output matrix.
    """
    have = query.shape[1]
    if size == have:
        return query, key, value
    if size > have:
        query, key, value = (F.pad(part, (0, size - have)) for part in (query, key, value))
        return query * (size / have) ** 0.5, key, value
    q, k, v = (_root(part.T @ part / len(part)) for part in (query, key, value))
    u, s, vh = torch.linalg.svd(q @ k)
    root = s[:size].sqrt()
    left = torch.linalg.pinv(q) @ u[:, :size] * root
    right = torch.linalg.pinv(k) @ vh[:size].T * root
    out = _root(outward.T @ outward)
    seen = out @ torch.linalg.svd(out @ v)[0][:, :size]
    return query @ left * (size / have) ** 0.5, key @ right, value @ seen


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix that is not negative."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@contextmanager
def _watched(places: dict[str, nn.Module], outputs: set[str], keep: Any) -> Iterator[None]:
    """Within, ``keep`` receives a module's name and its input, or its output where the name is in ``outputs``."""
    handles = []
    for name, module in places.items():

        def hook(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            keep(name, output if name in outputs else args[0])

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``(out, in)`` and bias ``(out,)`` of the best linear map from ``(M, in)`` to ``(M, out)``."""
    x_mean, y_mean = inputs.double().mean(0), targets.double().mean(0)
    x = inputs.double() - x_mean
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ (targets - y_mean)).T
    return weight, y_mean - weight @ x_mean


def _assign(linear: nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    weight, bias = least_squares(inputs, targets)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _largest(field: str, scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest ``scores``, ascending; ties go to the lower index."""
    _require(field, count, len(scores))
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _require(field: str, value: int, highest: int) -> None:
    if value > highest:
        raise HskdError(f"{field}: {value} is out of range; this teacher allows 1 to {highest}.")
