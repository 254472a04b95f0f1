"""Prune a fine-tuned encoder to a ROSITA student."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from hskd.encoders import ENCODERS, PRUNED, Parts, base_type, head_size
from hskd.errors import HskdError
from hskd.students.rosita.importance import Importance, not_prunable, require_prunable


def prune_rosita(
    teacher: PreTrainedModel,
    importance: Importance,
    *,
    layers: int,
    heads: int,
    ffn: int,
    rank: int | None,
) -> PreTrainedModel:
    """Return a ROSITA student with the most important weights of ``teacher``, in eval mode on the teacher's device.

    The student keeps the first ``layers`` layers. In each of them it keeps the ``heads`` heads and ``ffn`` neurons of
    largest importance, in the teacher's order; ties go to the lower index. Word embeddings are factorised to ``rank``,
    or copied if it is None. Everything else is the teacher's, including label names and dropout.

    Raises:
        HskdError: the teacher cannot be pruned, ``importance`` does not have the teacher's shape, or a size is out of
            range.
    """
    parts = require_prunable(teacher)
    config = teacher.config
    if config.model_type.startswith(PRUNED):
        raise HskdError("The teacher is a ROSITA student already: prune the encoder that it came from.")
    shapes = (tuple(importance.heads.shape), tuple(importance.neurons.shape))
    require_sizes(teacher, layers=layers, heads=heads, ffn=ffn, rank=rank)
    depth, count, neurons = config.num_hidden_layers, config.num_attention_heads, getattr(config, parts.ffn_field)
    expected = ((depth, count), (depth, neurons))
    if shapes != expected:
        raise HskdError(
            f"importance: heads and neurons have shapes {shapes}; this teacher's are {expected}. "
            "Compute the importance on the teacher that is pruned."
        )
    pruned = pruned_config(config, layers=layers, heads=heads, ffn=ffn, rank=rank)
    body = f"{teacher.base_model_prefix}."
    weights = {name: weight.detach() for name, weight in teacher.state_dict().items()}
    stack = f"{body}{parts.layers}."
    for name in list(weights):
        if name.startswith(stack) and int(name.removeprefix(stack).split(".")[0]) >= layers:
            del weights[name]
    size = head_size(parts.of(teacher.base_model)[0].get_submodule(parts.attention))
    kept_heads = [_largest(importance.heads[index], heads) for index in range(layers)]
    for index, kept in enumerate(kept_heads):
        columns = (kept[:, None] * size + torch.arange(size)).flatten()
        _prune_heads(weights, f"{stack}{index}", parts, columns, count * size)
        _prune_neurons(weights, f"{stack}{index}", parts, _largest(importance.neurons[index], ffn), neurons)
    bias = f"{body}encoder.relative_attention_bias.weight"  # MPNet's, one column per head
    if bias in weights and pruned.model_type != config.model_type:
        weights[bias] = weights[bias][:, torch.cat(kept_heads).to(weights[bias].device)]
    if rank is not None:
        words = next(name for name, module in teacher.named_modules() if module is teacher.get_input_embeddings())
        table, projection = factorise(weights[f"{words}.weight"], rank)
        weights[f"{words}.weight"] = table
        weights[f"{words}.projection.weight"] = projection

    # All fresh weights are overwritten, so drawing them must not change the caller's random state.
    with torch.random.fork_rng(devices=[]):
        student: PreTrainedModel = _student_class(teacher, pruned)(pruned)
    student.load_state_dict(weights)  # Strict, so that no weight of the student stays random.
    student.to(teacher.device).eval()
    return student


def pruned_config(
    teacher: PretrainedConfig, *, layers: int, heads: int, ffn: int, rank: int | None
) -> PretrainedConfig:
    """Return the configuration of a student of these sizes; everything except the sizes is the teacher's.

    The student has the teacher's model type if ``transformers`` can build it with these sizes. Otherwise, and always
    for a BERT, it has a ``rosita`` type.

    Raises:
        HskdError: an encoder of the teacher's type cannot be pruned.
    """
    parts = ENCODERS.get(base_type(teacher))
    if parts is None:
        raise not_prunable(f"a {teacher.model_type} model")
    settings = teacher.to_dict()
    for stale in ("_name_or_path", "model_type", "architectures", "transformers_version", "dtype"):
        settings.pop(stale, None)
    size = getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads
    is_own_type = (
        teacher.model_type != "bert"
        and rank is None
        and (heads == teacher.num_attention_heads or parts.head_size_field is not None)
    )
    # A configuration accepts these fields only under its own names.
    names = teacher.attribute_map
    settings[names.get("num_hidden_layers", "num_hidden_layers")] = layers
    settings[names.get("num_attention_heads", "num_attention_heads")] = heads
    settings[parts.ffn_field] = ffn
    if parts.head_size_field is not None:
        settings[parts.head_size_field] = size
    if settings.get("layer_types") is not None:
        settings["layer_types"] = settings["layer_types"][:layers]
    if is_own_type:
        return type(teacher)(**settings)
    model_type = PRUNED if teacher.model_type == "bert" else f"{PRUNED}-{teacher.model_type}"
    config: PretrainedConfig = AutoConfig.for_model(
        model_type, **settings, attention_head_size=size, embedding_rank=rank
    )
    return config


def _student_class(teacher: PreTrainedModel, config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the model class of the student, with the teacher's kind of head."""
    is_tagger = type(teacher).__name__.endswith("ForTokenClassification")
    mapping = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING if is_tagger else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return mapping[type(config)]  # type: ignore[no-any-return]


def require_sizes(teacher: PreTrainedModel, *, layers: int, heads: int, ffn: int, rank: int | None) -> None:
    """Refuse a student that is larger than ``teacher`` in any size.

    Raises:
        HskdError: names the size, its value and the allowed range.
    """
    config = teacher.config
    _require_range("layers", layers, config.num_hidden_layers)
    _require_range("heads", heads, config.num_attention_heads)
    _require_range("ffn", ffn, getattr(config, require_prunable(teacher).ffn_field))
    if rank is not None:
        _require_range("rank", rank, teacher.get_input_embeddings().embedding_dim)


def factorise(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best approximation of ``matrix`` ``(rows, columns)`` of rank ``rank``, as two factors.

    It is the thin SVD, truncated to ``rank``. The singular values go into the first factor and the second is
    orthonormal. The rows of an embedding therefore keep their norms, and an optimiser step means the same for them as
    in the teacher.

    ``V`` comes from the eigenvectors of the small Gram matrix in float64. That squares the condition number, which is
    harmless here: whatever the error of a direction, projecting onto an orthonormal basis adds no further error.
    The largest entry of each direction is made positive, so that the signs do not depend on the machine.

    Returns:
        ``U_r S_r`` ``(rows, rank)`` and ``V_r`` ``(columns, rank)``. The approximation is the first factor times the
        transpose of the second.
    """
    wide = matrix.detach().cpu().double()
    _, directions = torch.linalg.eigh(wide.T @ wide)  # eigenvalues ascend
    kept = directions.flip(1)[:, :rank]
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    kept = kept * torch.where(largest < 0, -1.0, 1.0)
    return (wide @ kept).to(matrix.dtype), kept.to(matrix.dtype)


def _prune_heads(weights: dict[str, Tensor], layer: str, parts: Parts, columns: Tensor, width: int) -> None:
    """Keep, in place, the given ``columns`` of the ``width`` columns of the heads' outputs."""
    for path in parts.projections:
        _keep(weights, f"{layer}.{path}", rows=parts.head_rows(columns, width))
    _keep(weights, f"{layer}.{parts.attended}", columns=columns)


def _prune_neurons(weights: dict[str, Tensor], layer: str, parts: Parts, neurons: Tensor, count: int) -> None:
    """Keep, in place, the given ``neurons`` of a layer's ``count`` FFN neurons."""
    for path in parts.neurons:
        _keep(weights, f"{layer}.{path}", rows=parts.neuron_rows(neurons, count))
    _keep(weights, f"{layer}.{parts.output}", columns=neurons)


def _keep(weights: dict[str, Tensor], linear: str, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Keep, in place, the given columns of a linear layer, or the given rows of its weight and bias."""
    weight = weights[f"{linear}.weight"]
    if columns is not None:
        weights[f"{linear}.weight"] = weight[:, columns.to(weight.device)]
        return
    assert rows is not None
    for part in ("weight", "bias"):
        if (key := f"{linear}.{part}") in weights:
            weights[key] = weights[key][rows.to(weights[key].device)]


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest ``scores``, ascending; ties go to the lower index."""
    return scores.cpu().argsort(descending=True, stable=True)[:count].sort().values


def _require_range(field: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise HskdError(f"{field}: {value} is out of range; this teacher allows 1 to {highest}.")
