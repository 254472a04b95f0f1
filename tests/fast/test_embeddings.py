"""Training only the touched embedding rows changes nothing except the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from support.distill_lab import KINDS, Lab, StudentKind, arguments
from transformers import PreTrainedModel

from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.fast.embeddings import compact_embeddings
from hskd.spec import HSKSpec
from hskd.training import HeadModule


def table(student: PreTrainedModel) -> torch.Tensor:
    weight: torch.Tensor = student.get_input_embeddings().weight
    return weight.detach().clone()


def untouched(lab: Lab) -> torch.Tensor:
    rows = torch.ones(200, dtype=torch.bool)
    rows[np.unique(lab.train.input_ids)] = False
    rows[0] = False  # the padding row is also trained
    return rows


@contextmanager
def only_touched(student: PreTrainedModel, lab: Lab) -> Iterator[None]:
    with compact_embeddings(student, [lab.train.input_ids]):
        yield


def trained(lab: Lab, kind: StudentKind, stage: str, folder: Path, whole: bool) -> dict[str, torch.Tensor]:
    student = lab.student(kind)
    settings = arguments(folder, epochs=3, schedule="linear", weight_decay=0.1, learning_rate=5e-3)
    with nullcontext() if whole else only_touched(student, lab):
        if stage == "hsk":
            spec = HSKSpec.parse("all_3t_0.5w,precision=fp32")
            HSKTrainer(HSKModule(student, 32), settings, lab.train, lab.offline(spec)).train()
        else:
            PredictionTrainer(HeadModule(student, lab.task.head), settings, lab.train, lab.online(None)).train()
    return student.state_dict()


@pytest.mark.parametrize(("kind", "stage"), [("rosita", "prediction"), ("narrow", "prediction"), ("rosita", "hsk")])
def test_exact(lab: Lab, kind: StudentKind, stage: str, tmp_path: Path) -> None:
    before = table(lab.student(kind))
    assert before.shape[1] == (8 if kind == "rosita" else 16)  # factorised, or not
    expected = trained(lab, kind, stage, tmp_path, whole=True)
    found = trained(lab, kind, stage, tmp_path, whole=False)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")

    name = next(name for name in found if "word_embeddings.weight" in name)
    rows = untouched(lab)
    assert 0 < rows.sum() < 199
    share = found[name][rows] / before[rows]
    assert (share < 0.999).all() and torch.allclose(share, share[0, 0])  # all rows decay equally
    assert not torch.allclose(found[name][~rows][1:], before[~rows][1:] * share[0, 0], atol=1e-3)
    torch.testing.assert_close(found[name][0], before[0] * share[0, 0])  # no gradient reaches the padding row


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_same_within(lab: Lab, kind: StudentKind) -> None:
    student = lab.student(kind).eval()
    batch = {
        name: tensor for name, tensor in lab.train.collate([0, 5, 9]).items() if name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        expected = student(**batch).logits
        with only_touched(student, lab):
            rows = len(student.get_input_embeddings().weight)
            assert rows == 200 - int(untouched(lab).sum()) + 1  # and one row that shows the decay
            assert torch.equal(student(**batch).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unexpected_token_fails(lab: Lab, kind: StudentKind) -> None:
    student = lab.student(kind)
    token = int(untouched(lab).nonzero()[0])
    with pytest.raises(IndexError), only_touched(student, lab):
        student(input_ids=torch.tensor([[2, token, 3]]))
    student(input_ids=torch.tensor([[2, token, 3]]))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_again_after_an_error(lab: Lab, kind: StudentKind) -> None:
    student = lab.student(kind)
    embedding = student.get_input_embeddings()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    padding = embedding.padding_idx
    with pytest.raises(RuntimeError, match="stop"), only_touched(student, lab):
        raise RuntimeError("stop")
    assert student.get_input_embeddings() is embedding
    assert embedding.padding_idx == padding == 0
    assert embedding.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
