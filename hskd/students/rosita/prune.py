"""Cut a ROSITA student out of a fine-tuned BERT."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertForTokenClassification, PreTrainedModel

from hskd.errors import HskdError
from hskd.students.rosita.importance import BertClassifier, Importance, require_bert_shaped
from hskd.students.rosita.model import RositaConfig, RositaForSequenceClassification, RositaForTokenClassification

RositaClassifier = RositaForSequenceClassification | RositaForTokenClassification
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings"


def prune_rosita(
    teacher: PreTrainedModel,
    importance: Importance,
    *,
    layers: int,
    heads: int,
    ffn: int,
    rank: int | None,
) -> RositaClassifier:
    """A ROSITA student with the weights of ``teacher``'s most important parts, in eval mode on the teacher's device.

    Keeps the first ``layers`` layers and, in each, the ``heads`` heads and ``ffn`` neurons of largest importance
    (ties go to the lower index) in the teacher's order. Word embeddings are factorised to ``rank``, or copied where
    that is None. Everything else, label names and dropout included, is the teacher's.

    Raises:
        HskdError: the teacher is not BERT-shaped, ``importance`` is of another shape than the teacher, or an amount
            is out of range.
    """
    bert = require_bert_shaped(teacher)
    if isinstance(bert, RositaClassifier):
        raise HskdError("The teacher is a ROSITA student already: prune the BERT it came from.")
    config = bert.config
    shapes = (tuple(importance.heads.shape), tuple(importance.neurons.shape))
    require_sizes(bert, layers=layers, heads=heads, ffn=ffn, rank=rank)
    depth = config.num_hidden_layers
    expected = ((depth, config.num_attention_heads), (depth, config.intermediate_size))
    if shapes != expected:
        raise HskdError(
            f"importance: heads and neurons have shapes {shapes}; this teacher's are {expected}. "
            "Compute the importance on the teacher that is pruned."
        )
    head_size = config.hidden_size // config.num_attention_heads
    settings = config.to_dict()
    for stale in ("_name_or_path", "model_type", "architectures", "transformers_version", "dtype"):
        settings.pop(stale, None)
    settings.update(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        attention_head_size=head_size,
        intermediate_size=ffn,
        embedding_rank=rank,
    )
    weights = {name: weight.detach() for name, weight in bert.state_dict().items()}
    for name in list(weights):
        if name.startswith("bert.encoder.layer.") and int(name.split(".")[3]) >= layers:
            del weights[name]
    for index in range(layers):
        kept_heads = _largest(importance.heads[index], heads)
        columns = (kept_heads[:, None] * head_size + torch.arange(head_size)).flatten()
        _prune_layer(weights, index, columns, _largest(importance.neurons[index], ffn))
    if rank is not None:
        table, projection = factorise(weights[f"{WORD_EMBEDDINGS}.weight"], rank)
        weights[f"{WORD_EMBEDDINGS}.weight"] = table
        weights[f"{WORD_EMBEDDINGS}.projection.weight"] = projection

    # The fresh weights are all overwritten: drawing them must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        student = _student_class(bert)(RositaConfig(**settings))
    student.load_state_dict(weights)  # strict: no weight of the student stays random
    student.to(bert.device).eval()
    return student


def _student_class(teacher: BertClassifier) -> type[RositaClassifier]:
    """The student with the teacher's kind of head."""
    is_tagger = isinstance(teacher, BertForTokenClassification)
    return RositaForTokenClassification if is_tagger else RositaForSequenceClassification


def require_sizes(teacher: PreTrainedModel, *, layers: int, heads: int, ffn: int, rank: int | None) -> None:
    """Refuse a student that is not smaller than, or equal to, ``teacher`` in every size.

    Raises:
        HskdError: names the size, its value and the allowed range.
    """
    config = teacher.config
    _require_range("layers", layers, config.num_hidden_layers)
    _require_range("heads", heads, config.num_attention_heads)
    _require_range("ffn", ffn, config.intermediate_size)
    if rank is not None:
        _require_range("rank", rank, config.hidden_size)


def factorise(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The thin SVD of ``matrix`` ``(rows, columns)`` cut to ``rank``, its best approximation of that rank.

    Returns ``U_r S_r`` ``(rows, rank)`` and ``V_r`` ``(columns, rank)``: the approximation is the first times the
    transpose of the second. The singular values go to the first factor, so an embedding's rows keep the lengths they
    had (an optimiser's step means to them what it meant in the teacher) and the projection is orthonormal.

    ``V`` comes from the eigenvectors of the small Gram matrix in float64. That squares the condition number, which
    does no harm here: whatever the error of a direction, projecting on an orthonormal basis adds none of its own.
    The largest entry of each direction is made positive, so that the signs are the same everywhere.
    """
    wide = matrix.detach().cpu().double()
    _, directions = torch.linalg.eigh(wide.T @ wide)  # eigenvalues ascend
    kept = directions.flip(1)[:, :rank]
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    kept = kept * torch.where(largest < 0, -1.0, 1.0)
    return (wide @ kept).to(matrix.dtype), kept.to(matrix.dtype)


def _prune_layer(weights: dict[str, Tensor], index: int, columns: Tensor, neurons: Tensor) -> None:
    """Keep, in place, the attention ``columns`` and FFN ``neurons`` of layer ``index``."""
    layer = f"bert.encoder.layer.{index}"
    producers = {f"attention.self.{name}": columns for name in ("query", "key", "value")}
    producers["intermediate.dense"] = neurons
    for name, kept in producers.items():
        for part in ("weight", "bias"):
            key = f"{layer}.{name}.{part}"
            weights[key] = weights[key][kept.to(weights[key].device)]
    for name, kept in (("attention.output.dense", columns), ("output.dense", neurons)):
        key = f"{layer}.{name}.weight"
        weights[key] = weights[key][:, kept.to(weights[key].device)]


def _largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest ``scores``, ascending; ties go to the lower index."""
    return scores.cpu().argsort(descending=True, stable=True)[:count].sort().values


def _require_range(field: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise HskdError(f"{field}: {value} is out of range; this teacher allows 1 to {highest}.")
