"""The gradient importance of each token equals plain gradients, online and from a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert
from support.distill_lab import Lab

from hskd.distill.source import OnlineSource, StoreSource
from hskd.errors import HskdError
from hskd.heads import SequenceClassification, SequenceRegression
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.tasks import sequential_batches
from hskd.teachers.forward import ForwardOptions, teacher_forward


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_scores_are_what_a_small_step_changes(classes: int, lab: Lab) -> None:
    """``h . dL/dh`` of a token is the derivative of ``L`` by a factor on its state."""
    labels = tuple(f"class {i}" for i in range(classes))
    head = SequenceRegression(("pearson",)) if classes == 1 else SequenceClassification(labels, ("accuracy",))
    model = make_bert(
        num_labels=classes, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )
    batch = lab.train.collate(np.arange(3))
    found = teacher_forward(model, batch, 3, (0, 1, 2), (1,), head=head, options=ForwardOptions(gradients=(0, 1, 2)))
    plain = teacher_forward(model, batch, 3, (0, 1, 2), (1,), head=head)
    assert not plain.states.gradient and found.target is not None and not found.target.requires_grad
    for layer in (0, 1, 2):
        torch.testing.assert_close(found.states.hidden[layer], plain.states.hidden[layer])
    module = {0: model.bert.embeddings, 1: model.bert.encoder.layer[0], 2: model.bert.encoder.layer[1]}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    row, step = 1, 1e-3
    start, stop = found.states.tokens.offsets[row : row + 2]

    @torch.no_grad()
    def loss(layer: int, place: int, factor: float) -> float:
        def scale(_: object, __: object, output: object) -> object:
            states = output[0] if isinstance(output, tuple) else output
            assert isinstance(states, torch.Tensor)
            states = states.clone()
            states[row, place] *= factor
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = module[layer].register_forward_hook(scale)
        logits = model.double()(**inputs).logits[row]
        handle.remove()
        return float(logits[0] if classes == 1 else -logits.log_softmax(-1).max())

    for layer in (0, 1, 2):
        for place in (0, 2):
            change = (loss(layer, place, 1 + step) - loss(layer, place, 1 - step)) / (2 * step)
            assert found.states.gradient[layer][start + place] == pytest.approx(abs(change), rel=1e-3, abs=1e-6)
    top = found.states.gradient[2][start:stop]
    assert top[0] > 0 and not top[1:].any()  # the head reads only [CLS]
    assert (found.states.gradient[1][start:stop] > 0).all()


def test_a_teacher_without_a_head_is_refused(lab: Lab) -> None:
    with pytest.raises(HskdError, match="this teacher makes none"):
        options = ForwardOptions(gradients=(1,))
        teacher_forward(lab.teacher.model, lab.train.collate(np.arange(2)), 3, (1,), (), options=options)


def test_online_equals_offline(lab: Lab, tmp_path: Path) -> None:
    spec = HSKSpec.parse("2l_2t_0.25w,length=gradient,l_top=3")
    wanted = Superset.of([spec], lab.teacher.shape(2))
    assert wanted.gradient_layers == wanted.layers == (2, 3) and wanted.attention_layers == ()
    assert (
        "gradient_layers" not in Superset.of([HSKSpec.parse("1l_all_all,length=gradient")], lab.teacher.shape(2)).recipe
    )
    superset = extract(lab.teacher, lab.task, lab.train, wanted, tmp_path / "superset", ExtractOptions(batch_size=8))
    offline = StoreSource(derive(superset, spec, 2, tmp_path / "derived"), lab.train, 2)
    online = OnlineSource(lab.teacher, lab.train.sep_id, spec, 2)
    for order in sequential_batches(lab.train.lengths, 16):
        batch = lab.train.collate(order)
        one, other = online.kept(batch), offline.kept(batch)
        assert torch.equal(one.positions, other.positions)
        starts = np.concatenate([[0], np.cumsum(lab.train.lengths[order])])[one.example.numpy()]
        kept = lab.train.take(order).input_ids[starts[:, None] + one.positions.numpy()]
        assert (kept != lab.train.sep_id).all()


def test_a_superset_without_gradients_is_refused(lab: Lab, tmp_path: Path) -> None:
    spec = HSKSpec.parse("1l_2t_all,length=gradient,l_top=3,precision=fp32")
    with pytest.raises(HskdError, match=r"ranks tokens by the gradient in teacher layers 3, .*--gradient-layers 3\."):
        derive(lab.superset, spec, 2, tmp_path / "derived")
