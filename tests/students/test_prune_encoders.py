"""Pruning every type of encoder that can be pruned keeps the right parts and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoders import TINY, inputs, tiny
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from hskd.encoders import ENCODERS
from hskd.errors import HskdError
from hskd.heads import SequenceClassification, TokenClassification
from hskd.students import Importance, load_student, prune_rosita, taylor_importance
from hskd.students.rosita.settings import RositaSettings

WHOLE: dict[str, Any] = {"layers": 3, "heads": 4, "ffn": 24, "rank": None}
types = pytest.mark.parametrize("model_type", TINY)


def test_every_type_is_tested() -> None:
    assert TINY.keys() == ENCODERS.keys()


def random_importance() -> Importance:
    generator = torch.Generator().manual_seed(3)
    return Importance(torch.rand(3, 4, generator=generator).double(), torch.rand(3, 24, generator=generator).double())


@torch.no_grad()
def states_and_logits(model: PreTrainedModel) -> list[Tensor]:
    """Return hidden states of real tokens, and logits."""
    given = inputs(model)
    output = model.eval()(**given, output_hidden_states=True)
    real = given["attention_mask"].bool()
    logits = output.logits[real] if output.logits.dim() == 3 else output.logits
    return [*(states[real] for states in output.hidden_states), logits]


@types
@pytest.mark.parametrize("tagger", [False, True])
def test_nothing_pruned_is_the_teacher(model_type: str, tagger: bool) -> None:
    teacher = tiny(model_type, tagger)
    student = prune_rosita(teacher, random_importance(), **WHOLE)
    assert (student.config.model_type == model_type) == (model_type != "bert"), "transformers loads what it can"
    torch.testing.assert_close(states_and_logits(student), states_and_logits(teacher), atol=1e-5, rtol=0)


@types
def test_nothing_pruned_in_our_own_types_is_the_teacher(model_type: str) -> None:
    teacher = tiny(model_type)
    rank = teacher.get_input_embeddings().embedding_dim
    student = prune_rosita(teacher, random_importance(), **WHOLE | {"rank": rank})
    assert student.config.model_type == ("rosita" if model_type == "bert" else f"rosita-{model_type}")
    torch.testing.assert_close(states_and_logits(student), states_and_logits(teacher), atol=1e-5, rtol=0)


def masked(teacher: PreTrainedModel, importance: Importance, heads: int, ffn: int) -> list[Tensor]:
    """Return states and logits of ``teacher`` with all but the most important heads and neurons set to zero."""

    def masking(mask: Tensor) -> Callable[..., tuple[Tensor]]:
        def hook(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0] * mask,)

        return hook

    parts = ENCODERS[teacher.config.model_type]
    for i, layer in enumerate(parts.of(teacher.base_model)):
        head_mask, neuron_mask = torch.zeros(4), torch.zeros(24)
        head_mask[sorted(range(4), key=lambda h: -importance.heads[i, h])[:heads]] = 1
        neuron_mask[sorted(range(24), key=lambda n: -importance.neurons[i, n])[:ffn]] = 1
        layer.get_submodule(parts.attended).register_forward_pre_hook(masking(head_mask.repeat_interleave(8)))
        layer.get_submodule(parts.output).register_forward_pre_hook(masking(neuron_mask))
    return states_and_logits(teacher)


@types
@pytest.mark.parametrize(("heads", "ffn"), [(1, 24), (4, 5), (3, 1), (2, 13)])
def test_pruning_is_zeroing(model_type: str, heads: int, ffn: int) -> None:
    importance = random_importance()
    student = prune_rosita(tiny(model_type), importance, layers=3, heads=heads, ffn=ffn, rank=None)
    expected = masked(tiny(model_type), importance, heads, ffn)
    assert (expected[-1] - states_and_logits(tiny(model_type))[-1]).abs().max() > 1e-3, "the case would show nothing"
    torch.testing.assert_close(states_and_logits(student), expected, atol=2e-5, rtol=0)


@types
def test_the_first_layers_are_kept(model_type: str) -> None:
    teacher = tiny(model_type)
    student = prune_rosita(teacher, random_importance(), **WHOLE | {"layers": 2})
    expected = states_and_logits(teacher)[:3]
    if model_type == "modernbert":  # A norm follows the last layer, whichever it is.
        norms = []
        hook = teacher.model.layers[1].register_forward_hook(
            lambda module, args, output: norms.append(teacher.model.final_norm(output))
        )
        states_and_logits(teacher)
        hook.remove()
        expected[2] = norms[0][inputs(teacher)["attention_mask"].bool()]
    torch.testing.assert_close(states_and_logits(student)[:3], expected, atol=1e-5, rtol=0)


@types
def test_importance_is_that_of_zeroing(model_type: str) -> None:
    """By definition: the sum of ``|dL/dw| |w|`` over the weights of a head or a neuron."""
    model, head = tiny(model_type), SequenceClassification(("no", "yes"))
    batch = inputs(model) | {"labels": torch.tensor([0, 1, 1, 0])}
    importance = taylor_importance(model, head, [batch])
    parts = ENCODERS[model_type]
    model(**batch).loss.backward()
    for i, layer in enumerate(parts.of(model.base_model)):
        grown = {
            path: (layer.get_submodule(path).weight.grad * layer.get_submodule(path).weight).abs().detach()
            for path in (parts.attended, parts.output, *parts.neurons)
        }
        for h in range(4):
            expected = grown[parts.attended][:, 8 * h : 8 * h + 8].sum()
            torch.testing.assert_close(importance.heads[i, h].float(), expected, rtol=1e-4, atol=1e-7)
        for n in range(24):
            rows = [n, n + 24] if model_type == "modernbert" else [n]
            expected = grown[parts.output][:, n].sum() + sum(grown[path][rows].sum() for path in parts.neurons)
            torch.testing.assert_close(importance.neurons[i, n].float(), expected, rtol=1e-4, atol=1e-7)


@types
@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("tagger", [False, True])
def test_a_saved_student_is_loaded_again(model_type: str, rank: int | None, tagger: bool, tmp_path: Path) -> None:
    teacher = tiny(model_type, tagger)
    student = prune_rosita(teacher, random_importance(), layers=2, heads=3, ffn=10, rank=rank)
    assert student.num_parameters() < teacher.num_parameters()
    student.save_pretrained(tmp_path)
    head = (TokenClassification if tagger else SequenceClassification)(("no", "yes"))
    for again in (load_student(tmp_path), load_student(tmp_path, head)):
        assert type(again) is type(student)
        for expected, given in zip(states_and_logits(student), states_and_logits(again), strict=True):
            assert torch.equal(given, expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (2, 3, 32)
    body = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = body(**inputs(student), output_hidden_states=True).hidden_states
    real = inputs(student)["attention_mask"].bool()
    torch.testing.assert_close([state[real] for state in states], states_and_logits(student)[:-1])


@types
def test_settings_make_the_same_shapes(model_type: str) -> None:
    """A grid estimates its cost with exactly the shapes that pruning makes."""
    teacher, sizes = tiny(model_type), {"layers": 2, "heads": 3, "ffn": 10, "rank": 6}
    student = prune_rosita(teacher, random_importance(), **sizes)  # type: ignore[arg-type]
    config = RositaSettings(**sizes).config(teacher.config, SequenceClassification(("no", "yes", "maybe")))
    assert config.num_labels == 3
    drawn = AutoModelForSequenceClassification.from_config(config)
    assert type(drawn) is type(student)
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (drawn, student)]
    different = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert shapes[0].keys() == shapes[1].keys()
    assert all(shapes[0][name][0] == 3 for name in different), "the outputs alone"


@types
def test_a_student_learns(model_type: str) -> None:
    """Every weight has a gradient, except those of tokens, types and distances that do not occur."""
    student = prune_rosita(tiny(model_type), random_importance(), layers=2, heads=3, ffn=10, rank=6).train()
    student(**inputs(student)).logits.square().sum().backward()
    without = [name for name, weight in student.named_parameters() if weight.grad is None]
    assert not without


def test_what_cannot_be_pruned_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    for model_type in ("albert", "deberta-v2"):
        teacher = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(model_type, vocab_size=50, **sizes)
        )
        with pytest.raises(HskdError, match=rf"types bert, .*, not {type(teacher).__name__}\. .*TinyBERT"):
            prune_rosita(teacher, random_importance(), **WHOLE)
        with pytest.raises(HskdError, match=f"not a {model_type} model"):
            RositaSettings().config(teacher.config, SequenceClassification(("no", "yes")))
    student = prune_rosita(tiny("mpnet"), random_importance(), layers=2, heads=3, ffn=10, rank=None)
    with pytest.raises(HskdError, match="already"):
        prune_rosita(student, random_importance(), **WHOLE)
    with pytest.raises(HskdError, match=r"rank: 17 .* 1 to 16"):
        prune_rosita(tiny("electra"), random_importance(), **WHOLE | {"rank": 17})
