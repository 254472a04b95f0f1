from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from support.encoders import TINY, tiny
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hskd.encoders import ENCODERS, base_type, parts_of
from hskd.fast import fast_training
from hskd.fast.dropout import cheap_dropout
from hskd.fast.encoder import LeanEncoder, compiled_layer, runs_by_layer
from hskd.students import Importance, prune_rosita
from hskd.students.rosita.model import RositaConfig, RositaForSequenceClassification

LENGTHS = torch.tensor([9, 4, 12, 7])
MASK = (torch.arange(12) < LENGTHS[:, None]).long()
IDS = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(0)) * MASK
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
CLS = torch.zeros((4, 1), dtype=torch.long)
ROWS = torch.tensor([[0, 8, 3], [0, 2, 1], [11, 5, 0], [1, 6, 2]])


def bert() -> PreTrainedModel:
    return make_bert(num_hidden_layers=3)


def rosita() -> PreTrainedModel:
    torch.manual_seed(1)
    config = RositaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_head_size=8,
        intermediate_size=24,
        embedding_rank=8,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return RositaForSequenceClassification(config).eval()


def albert() -> PreTrainedModel:
    """A student of a type that runs as a whole."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("albert", vocab_size=200, embedding_size=16, max_position_embeddings=64, **sizes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def other(model_type: str, tagger: bool = False, **more: Any) -> Callable[[], PreTrainedModel]:
    return lambda: tiny(model_type, tagger, vocab_size=200, pad_token_id=0, **more)


def pruned(model_type: str) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        generator = torch.Generator().manual_seed(3)
        importance = Importance(torch.rand(3, 4, generator=generator), torch.rand(3, 24, generator=generator))
        return prune_rosita(other(model_type)(), importance, layers=3, heads=3, ffn=10, rank=6)

    return make


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    takes_types = base_type(model.config) in ("bert", "electra", "nomic_bert")
    return {name: INPUTS[name] for name in INPUTS if takes_types or name != "token_type_ids"}


def at(states: torch.Tensor) -> torch.Tensor:
    return torch.stack([states[i, rows] for i, rows in enumerate(ROWS)])


OTHERS = [name for name in TINY if name != "bert"]
MAKERS = {"bert": bert, "rosita": rosita}
MAKERS |= {name: other(name) for name in OTHERS} | {f"rosita-{name}": pruned(name) for name in OTHERS}
BY_LAYER = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
MODELS = pytest.mark.parametrize("make", [*MAKERS.values(), albert], ids=[*MAKERS, "albert"])


@MODELS
@pytest.mark.parametrize("masked", [True, False])
def test_states_and_gradients_are_those_of_the_whole_forward(make: Callable[[], PreTrainedModel], masked: bool) -> None:
    ours, inputs = make(), dict(inputs_of(make()))
    if not masked:
        inputs["attention_mask"] = torch.ones_like(MASK)
    theirs = deepcopy(ours)
    layers = ours.config.num_hidden_layers
    whole = theirs.base_model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    for top in range(layers + 1):
        for rows in (None, ROWS):
            states = LeanEncoder(ours).hidden_states(inputs, top, rows)
            assert len(states) == top + 1
            for state, expected in zip(states[:-1], whole, strict=False):
                torch.testing.assert_close(state[real], expected[real])
            if rows is None:
                torch.testing.assert_close(states[-1][real], whole[top][real])
            else:
                torch.testing.assert_close(states[-1], at(whole[top]))
    weight = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(3))
    (LeanEncoder(ours).hidden_states(inputs, layers, ROWS)[-1] * weight).sum().backward()
    (at(whole[layers]) * weight).sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None and other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


@MODELS
def test_the_classifier_gives_the_same_logits(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    encoder = LeanEncoder(model)
    torch.testing.assert_close(encoder.output(inputs, CLS).logits, expected)
    torch.testing.assert_close(encoder.output(inputs).logits, expected)


def test_every_type_that_is_described_runs_by_layer() -> None:
    assert TINY.keys() == ENCODERS.keys()
    assert all(runs_by_layer(make()) for make in (*map(other, TINY), *map(pruned, TINY)))
    assert not runs_by_layer(albert())


@pytest.mark.parametrize("model_type", OTHERS)
def test_taggers_give_the_same_logits(model_type: str) -> None:
    model = other(model_type, tagger=True)()
    inputs = inputs_of(model)
    assert LeanEncoder(model).reads_every_parameter
    torch.testing.assert_close(
        LeanEncoder(model).output(inputs).logits[MASK.bool()], model(**inputs).logits[MASK.bool()]
    )


def test_a_head_that_reads_all_tokens_is_given_them() -> None:
    model = other("modernbert", classifier_pooling="mean")()
    expected = model(**inputs_of(model)).logits
    torch.testing.assert_close(LeanEncoder(model).output(inputs_of(model), CLS).logits, expected)


@BY_LAYER
def test_other_tokens_of_the_last_layer_are_not_computed(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    parts = parts_of(model)
    assert parts is not None
    seen: list[tuple[int, ...]] = []
    last = parts.of(model.base_model)[-1].get_submodule(parts.output)
    last.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    LeanEncoder(model).hidden_states(inputs_of(model), model.config.num_hidden_layers, ROWS)
    LeanEncoder(model).output(inputs_of(model), CLS)
    assert seen == [(4, 3), (4, 1)]


@BY_LAYER
def test_layers_above_and_the_pooler_do_not_run(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    parts = parts_of(model)
    assert parts is not None
    pooler = getattr(model.base_model, "pooler", None)
    for unread in (parts.of(model.base_model)[-1], model.classifier, *([] if pooler is None else [pooler])):
        unread.register_forward_hook(lambda module, args, output: pytest.fail(f"{type(module).__name__} ran"))
    LeanEncoder(model).hidden_states(inputs_of(model), model.config.num_hidden_layers - 1)


@pytest.mark.parametrize("make", [bert, rosita, other("distilbert"), other("mpnet"), pruned("mpnet")])
def test_attention_with_dropout_is_that_of_torch(make: Callable[[], PreTrainedModel]) -> None:
    """With a dropout probability that rounds to zero, the path with dropout equals the path without."""
    model = make()
    expected = LeanEncoder(model).hidden_states(inputs_of(model), 2)[-1]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 1e-9
    model.train()
    with cheap_dropout(model):
        torch.testing.assert_close(LeanEncoder(model).hidden_states(inputs_of(model), 2)[-1], expected)


def test_attention_dropout_drops_what_it_says() -> None:
    model = bert().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.base_model.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    torch.manual_seed(0)
    with cheap_dropout(model), torch.no_grad():
        drawn = torch.stack([LeanEncoder(model).hidden_states(INPUTS, 1)[-1] for _ in range(400)])
        model.eval()
        mean = LeanEncoder(model).hidden_states(INPUTS, 1)[-1]
    assert drawn.std(0).max() > 0.05
    # The layers after the attention are not linear, so the mean over draws is only near the result without dropout.
    assert (drawn.mean(0) - mean).abs().mean() < 0.25 * drawn.std(0).mean()


@pytest.mark.parametrize("make", [bert, rosita])
def test_compiled_layers_give_the_same_states_and_gradients(make: Callable[[], PreTrainedModel]) -> None:
    ours = make().train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    theirs = deepcopy(ours)
    expected = LeanEncoder(theirs).hidden_states(INPUTS, 2, ROWS)
    torch._dynamo.reset()
    # The captured graph is the same for every backend, and compiling machine code takes half a minute.
    found = LeanEncoder(ours, compiled_layer("aot_eager")).hidden_states(INPUTS, 2, ROWS)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
    found[-1][:, :, :7].sum().backward()
    expected[-1][:, :, :7].sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is not None and other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", [bert, rosita])
@pytest.mark.parametrize("masked", [True, False])
def test_who_says_whether_there_are_pads_is_believed(make: Callable[[], PreTrainedModel], masked: bool) -> None:
    """The result equals that of the encoder's own check for pads."""
    encoder, inputs = LeanEncoder(make()), dict(INPUTS)
    if not masked:
        inputs["attention_mask"] = torch.ones_like(MASK)
    for expected, found in zip(
        encoder.hidden_states(inputs, 2, ROWS), encoder.hidden_states(inputs, 2, ROWS, padded=masked), strict=True
    ):
        assert torch.equal(found, expected)
    if masked:
        assert not torch.equal(encoder.hidden_states(inputs, 2, ROWS, padded=False)[-1], found)


def test_the_fast_path_is_entered_once() -> None:
    """Within the context the model uses the fast modules. After it, it has its own modules with the trained weights."""
    model = bert().train()
    names, tokens = list(model.state_dict()), IDS.numpy()
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    embedding = model.get_input_embeddings()
    with fast_training(model, [tokens]) as encoder:
        assert len(model.get_input_embeddings().weight) == len(np.unique(tokens)) + 1
        assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
        encoder.output(INPUTS, CLS).logits.sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0 if parameter.grad is None else parameter.grad)
        learnt = encoder.hidden_states(INPUTS, 2)[0].shape
        state = {name: tensor.clone() for name, tensor in model.bert.encoder.state_dict().items()}
    assert learnt == (4, 12, 32)
    assert list(model.state_dict()) == names and model.get_input_embeddings() is embedding
    assert [module for module in model.modules() if isinstance(module, torch.nn.Dropout)] == dropouts
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.bert.encoder.state_dict().items())
