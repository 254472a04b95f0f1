"""Pruning a teacher into a ROSITA student keeps the right parts and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import make_bert
from torch import Tensor
from transformers import BertForSequenceClassification

from hskd.errors import HskdError
from hskd.students import Importance, factorise, prune_rosita

INPUTS = {
    "input_ids": torch.tensor([[2, 9, 10, 11, 3, 0, 0], [2, 30, 31, 32, 33, 34, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7]),
    "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0] * 7]),
}


def make_importance(layers: int = 2, heads: int = 4, ffn: int = 64) -> Importance:
    generator = torch.Generator().manual_seed(3)
    return Importance(
        torch.rand(layers, heads, generator=generator).double(), torch.rand(layers, ffn, generator=generator).double()
    )


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**INPUTS).logits
    return output


def zeroed(teacher: BertForSequenceClassification, importance: Importance, heads: int, ffn: int) -> Tensor:
    """Return logits of ``teacher`` with the outputs of all but the most important heads and neurons set to zero."""

    def masking(mask: Tensor) -> Callable[..., tuple[Tensor]]:
        def hook(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0] * mask,)

        return hook

    handles = []
    for i, layer in enumerate(teacher.bert.encoder.layer):
        head_mask, neuron_mask = torch.zeros(4), torch.zeros(64)
        head_mask[sorted(range(4), key=lambda h: -importance.heads[i, h])[:heads]] = 1
        neuron_mask[sorted(range(64), key=lambda n: -importance.neurons[i, n])[:ffn]] = 1
        for module, mask in (
            (layer.attention.output.dense, head_mask.repeat_interleave(8)),
            (layer.output.dense, neuron_mask),
        ):
            handles.append(module.register_forward_pre_hook(masking(mask)))
    result = logits(teacher)
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.parametrize("rank", [None, 32])
def test_nothing_pruned_is_the_teacher(rank: int | None) -> None:
    teacher = make_bert()
    student = prune_rosita(teacher, make_importance(), layers=2, heads=4, ffn=64, rank=rank)
    torch.testing.assert_close(logits(student), logits(teacher), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "ffn"), [(1, 64), (4, 10), (3, 1), (2, 33)])
def test_pruning_is_zeroing(heads: int, ffn: int) -> None:
    teacher, importance = make_bert(), make_importance()
    student = prune_rosita(teacher, importance, layers=2, heads=heads, ffn=ffn, rank=None)
    expected = zeroed(teacher, importance, heads, ffn)
    assert (expected - logits(teacher)).abs().max() > 1e-3, "the case would show nothing"
    torch.testing.assert_close(logits(student), expected, atol=1e-5, rtol=0)


def test_the_first_layers_are_kept() -> None:
    teacher = make_bert()
    student = prune_rosita(teacher, make_importance(), layers=1, heads=4, ffn=64, rank=None)
    with torch.no_grad():
        theirs = teacher(**INPUTS, output_hidden_states=True).hidden_states
        ours = student(**INPUTS, output_hidden_states=True).hidden_states
    assert len(ours) == 2
    torch.testing.assert_close(ours, theirs[:2], atol=1e-5, rtol=0)


def test_ties_go_to_the_lower_index_and_order_is_the_teachers() -> None:
    teacher = make_bert()
    heads = torch.tensor([[1.0, 3.0, 1.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    importance = Importance(heads, torch.zeros(2, 64))
    student = prune_rosita(teacher, importance, layers=2, heads=3, ffn=5, rank=None)
    for index, kept in ((0, [0, 1, 3]), (1, [0, 1, 2])):
        theirs, ours = teacher.bert.encoder.layer[index], student.bert.encoder.layer[index]
        query = theirs.attention.self.query.weight.view(4, 8, 32)[kept].reshape(24, 32)
        assert torch.equal(ours.attention.self.query.weight, query)
        assert torch.equal(ours.intermediate.dense.bias, theirs.intermediate.dense.bias[:5])


def test_labels_and_dropout_are_the_teachers_and_the_teacher_is_untouched() -> None:
    teacher = make_bert(hidden_dropout_prob=0.2, classifier_dropout=0.3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    random_state = torch.get_rng_state()
    student = prune_rosita(teacher, make_importance(), layers=1, heads=2, ffn=8, rank=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert student.config.label2id == {"negative": 0, "positive": 1}
    assert (student.bert.embeddings.dropout.p, student.dropout.p) == (0.2, 0.3)
    assert student.config.attention_head_size == 8
    assert not student.training
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_factorise_is_the_thin_svd(rank: int) -> None:
    matrix = torch.randn(200, 32, generator=torch.Generator().manual_seed(5)) + 0.5
    table, projection = factorise(matrix, rank)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close((table @ projection.T).double(), best, atol=1e-5, rtol=0)
    torch.testing.assert_close(projection.T @ projection, torch.eye(rank), atol=1e-5, rtol=0)
    assert (projection.gather(0, projection.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("field", "value", "highest"),
    [("layers", 0, 2), ("layers", 3, 2), ("heads", 5, 4), ("ffn", 65, 64), ("rank", 0, 32), ("rank", 33, 32)],
)
def test_amounts_out_of_range_are_refused(field: str, value: int, highest: int) -> None:
    amounts: dict[str, int] = {"layers": 2, "heads": 2, "ffn": 8, "rank": 4, field: value}
    with pytest.raises(HskdError, match=rf"{field}: {value} .* 1 to {highest}"):
        prune_rosita(make_bert(), make_importance(), **amounts)  # type: ignore[arg-type]


def test_teachers_of_another_shape_are_refused() -> None:
    student = prune_rosita(make_bert(), make_importance(), layers=1, heads=2, ffn=8, rank=4)
    with pytest.raises(HskdError, match="already"):
        prune_rosita(student, make_importance(1, 2, 8), layers=1, heads=1, ffn=1, rank=None)
    with pytest.raises(HskdError, match="importance"):
        prune_rosita(make_bert(), make_importance(ffn=32), layers=1, heads=1, ffn=1, rank=None)
