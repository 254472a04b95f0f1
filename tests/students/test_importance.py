"""Taylor importance equals a plain loop and leaves the model unchanged."""

from __future__ import annotations

import pytest
import torch
from conftest import make_bert
from support.calls import Calls
from torch import Tensor
from transformers import AlbertConfig, AlbertForSequenceClassification, BertForSequenceClassification

from hskd.errors import HskdError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.students import taylor_importance

HEAD = SequenceClassification(("no", "yes"))


def make_batches(regression: bool = False) -> list[dict[str, Tensor]]:
    """Return two batches of four and two sentences, the second padded, with keys that the model does not take."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for size, length in ((4, 7), (2, 9)):
        ids = torch.randint(5, 200, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        if length == 9:
            ids[0, 6:] = mask[0, 6:] = 0
        labels = torch.rand(size, generator=generator) * 5 if regression else torch.arange(size) % 2
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "token_type_ids": torch.zeros_like(ids),
                "labels": labels,
                "example_ids": torch.arange(size),
            }
        )
    return batches


def plain_importance(model: BertForSequenceClassification, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the importances by definition, one weight matrix, head and neuron at a time."""
    config = model.config
    heads = torch.zeros(config.num_hidden_layers, config.num_attention_heads)
    neurons = torch.zeros(config.num_hidden_layers, config.intermediate_size)
    head_size = config.hidden_size // config.num_attention_heads
    for batch in batches:
        model.zero_grad()
        model(**{key: value for key, value in batch.items() if key != "example_ids"}).loss.backward()
        for i, layer in enumerate(model.bert.encoder.layer):
            attention = layer.attention.output.dense.weight
            into, out = layer.intermediate.dense.weight, layer.output.dense.weight
            for h in range(config.num_attention_heads):
                for column in range(h * head_size, (h + 1) * head_size):
                    heads[i, h] += sum(abs(attention.grad[:, column]) * abs(attention.data[:, column]))
            for n in range(config.intermediate_size):
                neurons[i, n] += sum(abs(into.grad[n]) * abs(into.data[n]))
                neurons[i, n] += sum(abs(out.grad[:, n]) * abs(out.data[:, n]))
    return heads, neurons


@pytest.mark.parametrize("labels", [1, 2])
def test_it_is_the_definition(labels: int) -> None:
    names = {"num_labels": 1, "id2label": {0: "score"}, "label2id": {"score": 0}} if labels == 1 else {}
    batches = make_batches(regression=labels == 1)
    seen: list[int] = []
    head = SequenceRegression() if labels == 1 else HEAD
    importance = taylor_importance(make_bert(**names), head, batches, progress=Calls(advance=seen.append))
    heads, neurons = plain_importance(make_bert(**names), batches)
    torch.testing.assert_close(importance.heads.float(), heads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(importance.neurons.float(), neurons, rtol=1e-4, atol=1e-6)
    assert seen == [1, 1]


def test_the_model_is_left_as_it_was() -> None:
    model = make_bert().train()
    model.bert.pooler.eval()
    model.bert.embeddings.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    config = model.config.to_dict()
    with torch.no_grad():
        first, second = (taylor_importance(model, HEAD, make_batches()) for _ in range(2))
    assert torch.equal(first.heads, second.heads), "dropout was live"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and not model.bert.pooler.training
    assert model.config.to_dict() == config


def test_it_refuses_what_it_cannot_answer() -> None:
    model = make_bert().train()
    with pytest.raises(HskdError, match="at least one batch"):
        taylor_importance(model, HEAD, [])
    with pytest.raises(HskdError, match="labels"):
        taylor_importance(model, HEAD, [{"input_ids": torch.tensor([[2, 3]])}])
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(HskdError, match="not finite at batch 1"):
        taylor_importance(model, HEAD, make_batches())
    assert model.training, "restored after an error too"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    other = AlbertForSequenceClassification(AlbertConfig(vocab_size=200, **sizes))
    with pytest.raises(HskdError, match=r"AlbertForSequenceClassification.*TinyBERT"):
        taylor_importance(other, HEAD, make_batches())
