"""Initialise a general student: derive a narrower encoder from a teacher's body, without gradients.

Hidden states keep their largest principal components, rotated so that LayerNorm can be applied to them. Each layer
keeps the heads and FFN neurons that contribute most to these components. Least squares fits every matrix, from the
embeddings up, to what the teacher computes on a sample of text.
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
from transformers import AutoModel, BertConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hskd.encoders import ENCODERS, ROTARY, Parts, base_type, head_size, parts_of
from hskd.errors import HskdError
from hskd.fast.encoder import LeanEncoder, embedded, runs_by_layer, surroundings
from hskd.fast.layers import run_layer
from hskd.selectors.depth import uniform_mapping
from hskd.students.rosita.prune import factorise
from hskd.tasks import TokenizedSplit, model_inputs, sequential_batches

_RIDGE = 1e-6
"""Ridge penalty of least squares, as a share of the inputs' mean square."""
_BATCH = 32
_OF_PRUNED = ("attention_head_size", "embedding_rank")
"""Fields that occur only in the configuration of a pruned encoder."""


@dataclass(frozen=True, eq=False)
class Start:
    """A narrow student and the linear map from its hidden states to the teacher's, None if the widths are equal."""

    student: PreTrainedModel
    projection: nn.Linear | None


@torch.no_grad()
def narrow(
    body: PreTrainedModel, layers: int, width: int, heads: int, ffn: int, split: TokenizedSplit, examples: int = 256
) -> Start:
    """Return an encoder of these sizes whose hidden states approximate the body's, through the projection.

    The student has the body's type. If :mod:`hskd.encoders` does not describe that type, the student is a BERT that
    takes only its word embeddings from the body, as their largest principal components. Its other weights are drawn
    from torch's random state. The rotation of the hidden states is always drawn from it.

    Args:
        body: the teacher's body, on the CPU, in eval mode.
        layers: layers of the student, spread evenly over the body's.
        width: neurons of the student's hidden states.
        heads: attention heads in each layer.
        ffn: FFN neurons in each layer.
        split: text to fit the student on.
        examples: number of pieces of ``split`` to use.

    Raises:
        HskdError: a size is larger than the body's, or the body uses rotary positions and the size of a head differs
            from the body's.
    """
    full = body.config.hidden_size
    student = _empty(body, layers, width, heads, ffn)
    projection = nn.Linear(width, full) if width != full else None
    if runs_by_layer(body):
        _require("layers", layers, body.config.num_hidden_layers)
        _require("width", width, full)
        fit = _Fit(body, student, split.take(range(min(examples, len(split)))))
        fit.run(projection)
    elif (table := body.get_input_embeddings().weight).shape[1] >= width:
        student.embeddings.word_embeddings.weight.copy_(factorise(table, width)[0])
    return Start(student, projection)


def narrow_config(teacher: PretrainedConfig, layers: int, width: int, heads: int, ffn: int) -> PretrainedConfig:
    """Return the configuration of a narrow student of these sizes; everything except the sizes is the teacher's.

    It has the teacher's type if :mod:`hskd.encoders` describes that type, and is a BERT configuration otherwise.

    Raises:
        HskdError: the teacher uses rotary positions and the size of a head would differ from the teacher's.
    """
    model_type = base_type(teacher)
    parts = ENCODERS.get(model_type)
    made: type[PretrainedConfig] = BertConfig if parts is None else CONFIG_MAPPING[model_type]
    is_similar = parts is not None or isinstance(teacher, BertConfig)
    given = teacher.to_dict() if is_similar else {}
    given.setdefault("max_position_embeddings", getattr(teacher, "max_position_embeddings", 512))
    for stale in ("_name_or_path", "architectures", "transformers_version", "dtype", "model_type", *_OF_PRUNED):
        given.pop(stale, None)
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    given |= {made.attribute_map.get(name, name): value for name, value in fields.items()}
    given |= {
        "vocab_size": teacher.vocab_size,
        "pad_token_id": teacher.pad_token_id,
        "intermediate_size" if parts is None else parts.ffn_field: ffn,
    }
    if getattr(teacher, "embedding_size", None) == teacher.hidden_size and parts is not None:
        given["embedding_size"] = width
    if parts is not None and model_type in ROTARY:
        size = getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads
        if heads * size != width:
            raise HskdError(
                f"heads: {heads} of {width // heads} each; the rotary positions of a {teacher.model_type} model need "
                f"heads of size {size}. Give a width of {heads * size}, or another number of heads."
            )
        if parts.head_size_field is not None:
            given[parts.head_size_field] = size
    if given.get("layer_types") is not None:
        tops = [teacher_layer for _, teacher_layer in sorted(uniform_mapping(layers, teacher.num_hidden_layers))[1:]]
        given["layer_types"] = [teacher.layer_types[max(top, 1) - 1] for top in tops]
    return made(**given)


def _empty(body: PreTrainedModel, layers: int, width: int, heads: int, ffn: int) -> PreTrainedModel:
    """Return an encoder of these sizes with random weights."""
    student: PreTrainedModel = AutoModel.from_config(narrow_config(body.config, layers, width, heads, ffn))
    return student.eval()


class _Fit:
    """Fits one student to a teacher's body on a sample of text.

    States are those of the sample's ``M`` real tokens, concatenated: ``(M, d)``. ``basis`` ``(d_T, d_S)`` holds the
    directions that the student keeps. It is None if the student keeps all of them.
    """

    def __init__(self, body: Any, student: Any, sample: TokenizedSplit) -> None:
        self.body, self.student = body, student
        parts = parts_of(body)
        assert parts is not None
        self.parts: Parts = parts
        self.width = student.config.hidden_size
        layers = student.config.num_hidden_layers
        self.mapped = [teacher for _, teacher in sorted(uniform_mapping(layers, body.config.num_hidden_layers))]
        batches = [sample.collate(order) for order in sequential_batches(sample.lengths, _BATCH)]
        self.inputs = [model_inputs(batch) for batch in batches]
        self.real = [inputs["attention_mask"].bool() for inputs in self.inputs]
        self.below: list[Tensor] = []
        """Padded hidden states of the teacher that enter the layer being fitted, one tensor per batch."""
        self.bias: list[Tensor] = []
        """MPNet only: the position biases of each layer's heads, ``(buckets, heads)`` per layer."""

    def run(self, projection: nn.Linear | None) -> None:
        """Set the weights of the student and of the projection."""
        teacher_states = self._mapped_states()
        self.mean, self.basis = _choose_basis(teacher_states, self.width, centred=not self.parts.is_pre_norm)
        student_states = [self._fit_embeddings(teacher_states[0])]
        for index in range(len(self.mapped) - 1):
            student_states.append(self._fit_layer(index, student_states[-1]))
        if self.bias:
            self.student.encoder.relative_attention_bias.weight.copy_(torch.stack(self.bias).mean(0))
        if self.parts.is_pre_norm:
            student_states[-1] = self._fit_norm(
                self.student.final_norm, student_states[-1], self._reduced(teacher_states[-1])
            )
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
        """Map the teacher's states to target states of the student, ``(M, d_T)`` to ``(M, d_S)``."""
        return states if self.basis is None else (states - self.mean) @ self.basis

    def _before_norm(self, before: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the target input of the student's LayerNorm where the teacher's LayerNorm gets ``before``."""
        if self.basis is None:
            return before
        centred = before - before.mean(1, keepdim=True)
        return (centred * (norm.weight / norm.weight.abs().mean())) @ self.basis

    def _outward(self, weight: Tensor) -> Tensor:
        """Return the part of an output matrix ``(d_T, n)`` that affects the student's states."""
        return weight if self.basis is None else self.basis.T @ weight

    def _fit_embeddings(self, teacher_states: Tensor) -> Tensor:
        teacher_norm, student_norm = (
            model.get_submodule(self.parts.embedding_norm) for model in (self.body, self.student)
        )
        # ELECTRA may project its embeddings after their norm. Then the embeddings keep their width.
        is_kept = hasattr(self.student, "embeddings_project")
        project = self.body.embeddings_project.weight if hasattr(self.body, "embeddings_project") else None
        for (_, table), (_, own_table) in zip(_tables(self.body), _tables(self.student), strict=True):
            every = table(torch.arange(table.num_embeddings))  # Not .weight: a pruned encoder's table is factorised.
            wide = every if project is None or is_kept else every @ project.T
            own_table.weight.copy_(wide if is_kept else self._before_norm(wide, _like(teacher_norm, wide)))
        if is_kept:
            student_norm.load_state_dict(teacher_norm.state_dict())
        before: list[Tensor] = []
        watched = {"states": self.student.embeddings_project if is_kept else student_norm}
        with _watched(watched, set(), lambda name, states: before.append(states)):
            for inputs in self.inputs:
                embedded(self.student, inputs)
        rows = torch.cat([states[real] for states, real in zip(before, self.real, strict=True)])
        if is_kept:
            _assign(self.student.embeddings_project, rows, self._reduced(teacher_states))
            return self.student.embeddings_project(rows)  # type: ignore[no-any-return]
        return self._fit_norm(student_norm, rows, self._reduced(teacher_states))

    def _fit_norm(self, norm: nn.LayerNorm, before: Tensor, target_states: Tensor) -> Tensor:
        """Fit weight and bias of a LayerNorm neuron by neuron, and return its outputs."""
        normal = F.layer_norm(before, (self.width,), eps=norm.eps).double()
        target = target_states.double()
        has_bias = norm.bias is not None
        normal_mean, target_mean = (normal.mean(0), target.mean(0)) if has_bias else (0.0, 0.0)
        spread = normal.var(0, unbiased=False) if has_bias else normal.square().mean(0)
        weight = ((normal - normal_mean) * (target - target_mean)).mean(0) / spread.clamp_min(norm.eps)
        norm.weight.copy_(weight)
        if has_bias:
            norm.bias.copy_(target_mean - weight * normal_mean)
        return norm(before)  # type: ignore[no-any-return]

    def _fit_layer(self, index: int, states: Tensor) -> Tensor:
        """Fit the student's layer ``index`` to its input states, and return its output states.

        The layer replaces all teacher layers from the one after the previously mapped layer up to its own mapped layer.
        Its heads and neurons are chosen from all of these.
        """
        parts = self.parts
        span = range(self.mapped[index] + 1, self.mapped[index + 1] + 1)
        seen = self._run_teacher(span)
        block, top = parts.of(self.student)[index], parts.of(self.body)[span[-1] - 1]
        normal = self._normal(block, parts.attended_norm, states)
        projected = self._choose_heads(span, seen)
        for linears, targets in zip(_grouped(parts.linears(block, parts.projections), 3), projected, strict=True):
            _assign_rows(*linears, normal, targets)
        attended = parts.linears(block, [parts.attended])[0]
        after = self._fit_output(
            block, "attended", attended, self._inputs_of(index, states, attended), states, seen, top
        )
        normal = self._normal(block, parts.output_norm, after)
        neurons = self._choose_neurons(span, seen)
        for linears, targets in zip(_grouped(parts.linears(block, parts.neurons), len(neurons)), neurons, strict=True):
            _assign_rows(*linears, normal, targets)
        output = parts.linears(block, [parts.output])[0]
        return self._fit_output(block, "output", output, self._inputs_of(index, states, output), after, seen, top)

    def _normal(self, block: Any, norm: str, states: Tensor) -> Tensor:
        """Return the input of a layer's attention or FFN: the states, after a norm in a pre-norm encoder."""
        return block.get_submodule(norm)(states) if self.parts.is_pre_norm else states  # type: ignore[no-any-return]

    def _run_teacher(self, span: range) -> dict[str, Tensor]:
        """Run the layers in ``span`` of the teacher, and return what they compute, by name.

        Each layer, for example 4, gives ``query4``, ``key4``, ``value4``, ``context4``, ``neurons4`` (before the
        activation) and ``active4``. The last layer also gives ``attended`` and ``output``: the states after attention
        and after the FFN, before their LayerNorms.
        """
        parts, layers = self.parts, self.parts.of(self.body)
        places: dict[str, nn.Module] = {}
        for layer in span:
            block = layers[layer - 1]
            places |= {f"projection{i}.{layer}": block.get_submodule(path) for i, path in enumerate(parts.projections)}
            places |= {f"neuron{i}.{layer}": block.get_submodule(path) for i, path in enumerate(parts.neurons)}
            places |= {f"context{layer}": block.get_submodule(parts.attended)}
            places |= {f"active{layer}": block.get_submodule(parts.output)}
        outputs = {name for name in places if "." in name}
        top = layers[span[-1] - 1]
        places["attended"] = top.get_submodule(parts.output_norm if parts.is_pre_norm else parts.attended_norm)
        if not parts.is_pre_norm:
            places["output"] = top.get_submodule(parts.output_norm)
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for number, real in enumerate(self.real):

            def keep(name: str, states: Tensor, real: Tensor = real) -> None:
                rows[name].append(states[real])

            told = surroundings(self.body, self.below[number], real)
            with _watched(places, outputs, keep):
                for layer in span:
                    block = layers[layer - 1]
                    near = told[getattr(block, "attention_type", "")]
                    self.below[number] = run_layer(block, self.below[number], near)
            if parts.is_pre_norm:
                rows["output"].append(self.below[number][real])
        seen = {name: torch.cat(batches) for name, batches in rows.items()}
        for layer in span:
            made = [seen.pop(f"projection{i}.{layer}") for i in range(len(parts.projections))]
            for name, states in zip(("query", "key", "value"), parts.queries_keys_values(made), strict=True):
                seen[f"{name}{layer}"] = states
            seen[f"neurons{layer}"] = torch.cat([seen.pop(f"neuron{i}.{layer}") for i in range(len(parts.neurons))], 1)
        return seen

    def _choose_heads(self, span: range, seen: dict[str, Tensor]) -> list[Tensor]:
        """Return queries, keys and values, ``(M, heads * size)`` each, of the heads that change the states most.

        The change is measured in the student's states.
        """
        heads = self.body.config.num_attention_heads
        size = head_size(self.parts.of(self.student)[0].get_submodule(self.parts.attention))
        parts = [torch.cat([seen[f"{name}{layer}"] for layer in span], 1) for name in ("query", "key", "value")]
        context = torch.cat([seen[f"context{layer}"] for layer in span], 1)
        blocks = [
            self.parts.linears(self.parts.of(self.body)[layer - 1], [self.parts.attended])[0].weight for layer in span
        ]
        outward = torch.cat([self._outward(weight) for weight in blocks], 1).unflatten(1, (heads * len(span), -1))
        moved = (context - context.mean(0)).unflatten(1, (heads * len(span), -1))
        # E |out c|^2 of each head, up to the number of tokens, from the covariance of c.
        covariance = torch.einsum("mhi,mhj->hij", moved, moved)
        scores = torch.einsum("dhi,hij,dhj->h", outward, covariance, outward)
        chosen = _largest("heads", scores, self.student.config.num_attention_heads)
        if base_type(self.body.config) == "mpnet":
            table = self.body.encoder.relative_attention_bias.weight  # shared by all layers, or for each layer's heads
            is_shared = table.shape[1] == heads
            self.bias.append(table[:, chosen % heads if is_shared else chosen + (span[0] - 1) * heads])
            self.student.encoder.relative_attention_bias.weight.copy_(self.bias[-1])
        query, key, value = (part.unflatten(1, (heads * len(span), -1)) for part in parts)
        sized = [_resize(query[:, i], key[:, i], value[:, i], outward[:, i], size) for i in chosen.tolist()]
        return [torch.cat(columns, 1) for columns in zip(*sized, strict=True)]

    def _choose_neurons(self, span: range, seen: dict[str, Tensor]) -> list[Tensor]:
        """Return the FFN neurons that change the student's states most: values before the activation, and gates.

        Each tensor is ``(M, n)``.
        """
        scores = []
        for layer in span:
            [output] = self.parts.linears(self.parts.of(self.body)[layer - 1], [self.parts.output])
            scores.append(seen[f"active{layer}"].var(0) * self._outward(output.weight).square().sum(0))
        chosen = _largest("ffn", torch.cat(scores), getattr(self.student.config, self.parts.ffn_field))
        values = len(self.parts.neurons) * self.parts.packed
        by_layer = [seen[f"neurons{layer}"].chunk(values, 1) for layer in span]
        return [torch.cat(columns, 1)[:, chosen] for columns in zip(*by_layer, strict=True)]

    def _inputs_of(self, index: int, states: Tensor, linear: nn.Module) -> Tensor:
        """Return the inputs of a linear layer in the student's layer ``index`` when ``states`` enter that layer."""
        layer = self.parts.of(self.student)[index]
        given: list[Tensor] = []
        for real, rows in zip(self.real, states.split([int(real.sum()) for real in self.real]), strict=True):
            padded = torch.zeros((*real.shape, self.width))
            padded[real] = rows
            near = surroundings(self.student, padded, real)[getattr(layer, "attention_type", "")]
            with _watched({"inputs": linear}, set(), lambda name, inputs, real=real: given.append(inputs[real])):
                run_layer(layer, padded, near)
        return torch.cat(given)

    def _fit_output(
        self, block: Any, name: str, linear: nn.Linear, inputs: Tensor, residual: Tensor, seen: Any, top: Any
    ) -> Tensor:
        """Fit a matrix that adds to the residual stream and the LayerNorm after it, and return the resulting states.

        ``name`` is ``attended`` or ``output``; ``top`` is the teacher's layer. In a pre-norm encoder, no LayerNorm is
        fitted here.
        """
        target = seen[name]
        if self.parts.is_pre_norm:
            _assign(linear, inputs, self._reduced(target) - residual)
            return linear(inputs) + residual  # type: ignore[no-any-return]
        path = self.parts.attended_norm if name == "attended" else self.parts.output_norm
        norm, own_norm = top.get_submodule(path), block.get_submodule(path)
        _assign(linear, inputs, self._before_norm(target, norm) - residual)
        return self._fit_norm(own_norm, linear(inputs) + residual, self._reduced(norm(target)))


def _tables(body: Any) -> list[tuple[str, nn.Embedding]]:
    """Return, by name, the embedding tables whose rows are summed."""
    return [(name, module) for name, module in body.embeddings.named_children() if isinstance(module, nn.Embedding)]


def _like(norm: nn.LayerNorm, rows: Tensor) -> nn.LayerNorm:
    """Return ``norm`` if it has the width of ``rows``, otherwise a LayerNorm with all weights 1."""
    return norm if norm.weight.shape[0] == rows.shape[1] else nn.LayerNorm(rows.shape[1])


def _grouped(linears: list[nn.Linear], count: int) -> list[tuple[nn.Linear, int, int]]:
    """Divide the outputs of linear layers into ``count`` equal parts.

    Returns:
        For each part: the layer, the part's index in the layer, and the layer's number of parts.
    """
    packed = count // len(linears)
    return [(linear, place, packed) for linear in linears for place in range(packed)]


def _choose_basis(states: list[Tensor], width: int, centred: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return the mean ``(d_T,)`` and the basis ``(d_T, width)`` of hidden states; the basis is None if all is kept.

    Without ``centred`` the mean is 0, because after embeddings without a bias nothing could add it back.

    The outputs of a LayerNorm have mean 0 over neurons, and the same norm for every token. Therefore one direction
    fewer is kept than there are neurons. The directions are rotated so that the neurons have mean 0 and about equal
    variance.
    """
    every = torch.cat(states).double()
    mean = every.mean(0) if centred else torch.zeros(every.shape[1], dtype=torch.float64)
    if width == every.shape[1]:
        return torch.zeros_like(mean).float(), None
    around = every - mean
    _, directions = torch.linalg.eigh(around.T @ around)
    kept = directions.flip(1)[:, : width - 1]
    drawn = torch.cat([torch.ones(width, 1), torch.randn(width, width - 1)], 1).double()
    rotation = torch.linalg.qr(drawn).Q[:, 1:]  # orthonormal, and orthogonal to the constant vector
    return mean.float(), (kept @ rotation.T).float()


def _resize(query: Tensor, key: Tensor, value: Tensor, outward: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Resize a head ``(M, s)`` to ``size`` columns so that its scores and outputs change as little as possible.

    ``outward`` ``(d, s)`` is the head's part of the output matrix.
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
    """Return the square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@contextmanager
def _watched(places: dict[str, nn.Module], outputs: set[str], keep: Any) -> Iterator[None]:
    """Pass each module's name and input to ``keep`` within the context, or its output if the name is in ``outputs``."""
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


def least_squares(inputs: Tensor, targets: Tensor, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """Return weight ``(out, in)`` and bias ``(out,)`` of the best linear map from ``(M, in)`` to ``(M, out)``.

    Without ``intercept`` the bias is 0. A small ridge penalty keeps the solution stable.
    """
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = (x.mean(0), y.mean(0)) if intercept else (torch.zeros_like(x[0]), torch.zeros_like(y[0]))
    x = x - x_mean
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ (targets - y_mean)).T
    return weight, y_mean - weight @ x_mean


def _assign(linear: nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    _assign_rows(linear, 0, 1, inputs, targets)


def _assign_rows(linear: nn.Linear, place: int, count: int, inputs: Tensor, targets: Tensor) -> None:
    """Fit part number ``place`` of ``count`` equal parts of a linear layer's rows."""
    weight, bias = least_squares(inputs, targets, linear.bias is not None)
    linear.weight.chunk(count)[place].copy_(weight)
    if linear.bias is not None:
        linear.bias.chunk(count)[place].copy_(bias)


def _largest(field: str, scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest ``scores``, ascending; ties go to the lower index."""
    _require(field, count, len(scores))
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _require(field: str, value: int, highest: int) -> None:
    if value > highest:
        raise HskdError(f"{field}: {value} is out of range; this teacher allows 1 to {highest}.")
