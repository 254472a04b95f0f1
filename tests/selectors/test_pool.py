"""Length as means of runs of tokens, for teacher and student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.distill_lab import Lab, arguments, losses

from hskd.distill.losses import hsk_loss
from hskd.distill.trainer import HSKModule, HSKTrainer
from hskd.knowledge import TeacherStates, select_hsk
from hskd.selectors import Tokens
from hskd.spec import HSKSpec, Shape

SHAPE = Shape(student_layers=2, teacher_layers=2, teacher_width=6, vocab_size=10)
SEP = 3


def make_states(lengths: list[int], seed: int) -> TeacherStates:
    """Return states and tokens with ``[SEP]`` at the end of each example, and inside longer ones."""
    generator = torch.Generator().manual_seed(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = torch.randint(SEP, 7, (int(offsets[-1]),), generator=generator).numpy()
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 2, SEP
    hidden = {layer: torch.randn(int(offsets[-1]), 6, generator=generator) for layer in (1, 2)}
    return TeacherStates(Tokens(np.arange(len(lengths)), offsets, ids, SEP), hidden, {})


@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(1, 13), st.integers(0, 99))
@settings(max_examples=50)
def test_means_and_loss_equal_plain_loops(lengths: list[int], k: int, seed: int) -> None:
    spec = HSKSpec.parse(f"2l_{k}t_all,length=pool,precision=fp32")
    states = make_states(lengths, seed)
    kept = select_hsk(spec, spec.layers(SHAPE), states)
    student = [torch.randn(len(lengths), 12, 6) for _ in range(3)]
    row, total = 0, 0.0
    for b, length in enumerate(lengths):
        start = int(states.tokens.offsets[b])
        places = [place for place in range(length) if states.tokens.input_ids[start + place] != SEP]
        runs = [[place for r, place in enumerate(places) if r * min(k, len(places)) // len(places) == run]
                for run in range(min(k, len(places)))]  # fmt: skip
        assert kept.counts[b] == len(runs) and max(map(len, runs)) - min(map(len, runs)) <= 1
        for run in runs:
            for i, layer in enumerate((1, 2)):
                expected = states.hidden[layer][[start + place for place in run]].double().mean(0)
                torch.testing.assert_close(kept.values[row, i].double(), expected, atol=1e-6, rtol=1e-5)
                assert kept.positions[row, i] == run[0]
                error = (student[layer][b, run].double().mean(0) - expected).square().mean()
                total += float(error) / len(runs) / len(lengths)
            row += 1
    assert row == len(kept.values)
    assert hsk_loss(student, kept).item() == pytest.approx(total, rel=1e-4)


def test_as_many_runs_as_tokens_are_the_tokens() -> None:
    states = make_states([5, 9], 0)
    hidden = [torch.randn(2, 12, 6) for _ in range(3)]
    pooled, tokens = (
        select_hsk(HSKSpec.parse(text), HSKSpec.parse(text).layers(SHAPE), states)
        for text in ("2l_20t_0.5w,length=pool", "2l_all_0.5w,length=attention_no_sep")
    )
    assert torch.equal(pooled.values, tokens.values)
    assert hsk_loss(hidden, pooled).item() == pytest.approx(hsk_loss(hidden, tokens).item(), rel=1e-6)


@pytest.mark.parametrize(
    "text", ["2l_2t_0.25w,length=pool", "1l_1t_all,length=pool", "2l_3t_0.25w,length=pool,width=pca"]
)
def test_a_store_and_the_teacher_train_alike(lab: Lab, tmp_path: Path, text: str) -> None:
    spec = HSKSpec.parse(text)
    traces = []
    for source in (lab.online(spec), lab.offline(spec)):
        module = HSKModule(lab.student("narrow"), 32)
        traces.append(losses(HSKTrainer(module, arguments(tmp_path, epochs=2), lab.train, source)))
    assert traces[1] == pytest.approx(traces[0], rel=1e-3)
    assert traces[0][-1] < traces[0][0]


def test_the_module_computes_what_the_loss_says(lab: Lab) -> None:
    source = lab.offline(HSKSpec.parse("2l_2t_all,length=pool"))
    student = lab.student("rosita").eval()
    batch = lab.train.collate(np.arange(8))
    kept = source.kept(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        states = student(**inputs, output_hidden_states=True).hidden_states
        assert HSKModule(student, 32)(kept, **inputs).item() == pytest.approx(hsk_loss(states, kept).item(), rel=1e-5)
        assert kept.members is not None
        moved = replace(kept).to(torch.device("meta"))
        assert moved.members is not None and moved.members.kept.device.type == "meta"
