"""Training from a store and training with the teacher give the same loss traces."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.distill_lab import KINDS, Lab, StudentKind, arguments, losses

from hskd.distill.source import KnowledgeSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.spec import HSKSpec

SPECS = (
    "2l_3t_0.2w,depth=reverse",
    "2l_3t_0.2w,depth=same,l_top=3",
    "all_all_all",
    "1l_3t_0.1w",
    "2l_2t_0.5w,length=random",
    "2l_4t_0.25w,width=uniform",
    "all_3t_0.5w,l_top=1",
    "all_3t_0.2w,length=attention,att_map=top",
    "all_3t_0.25w,width=pca",
    "2l_all_0.25w,width=projection",
)
STEPS = 20


def hsk_trace(lab: Lab, kind: StudentKind, source: KnowledgeSource, folder: Path) -> list[float]:
    module = HSKModule(lab.student(kind), lab.teacher.model.config.hidden_size)
    assert (module.projection is not None) == (kind == "narrow")
    return losses(HSKTrainer(module, arguments(folder), lab.train, source))


def learns(trace: list[float]) -> bool:
    epoch = STEPS // 5
    return len(trace) == STEPS and sum(trace[-epoch:]) < sum(trace[:epoch])


CASES: list[tuple[str, StudentKind]] = [(text, "rosita") for text in SPECS]
CASES += [("all_all_all", "narrow"), ("2l_2t_0.5w,length=random", "narrow"), ("2l_all_0.25w,width=pca", "narrow")]


@pytest.mark.parametrize(("text", "kind"), CASES)
def test_hsk_stage(lab: Lab, kind: StudentKind, text: str, tmp_path: Path) -> None:
    exact, rounded = HSKSpec.parse(f"{text},precision=fp32"), HSKSpec.parse(text)
    assert rounded.precision.selector == "fp16"
    online = hsk_trace(lab, kind, lab.online(exact), tmp_path)
    assert learns(online)
    assert hsk_trace(lab, kind, lab.offline(exact), tmp_path) == pytest.approx(online, rel=1e-5)

    offline_rounded = hsk_trace(lab, kind, lab.offline(rounded), tmp_path)
    # Rounding may swap two neurons of nearly equal magnitude, of which only one is kept.
    assert offline_rounded == pytest.approx(online, rel=1e-3 if exact.width.fixed(32) is not None else 2e-2)
    # The online source rounds as the store does, before ranking. A value between two fp16 numbers may still round to
    # the other one, because the teacher saw it in another batch.
    assert offline_rounded == pytest.approx(hsk_trace(lab, kind, lab.online(rounded), tmp_path), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_stage(lab: Lab, kind: StudentKind, tmp_path: Path) -> None:
    def trace(source: KnowledgeSource) -> list[float]:
        return losses(PredictionTrainer(lab.classifier(kind), arguments(tmp_path), lab.train, source, tau=2.0))

    online = trace(lab.online(None))
    assert learns(online)
    assert trace(lab.offline(HSKSpec.parse("1l_3t_0.1w"))) == pytest.approx(online, rel=1e-5)
    assert trace(lab.offline(HSKSpec())) == pytest.approx(online, rel=1e-5)


def test_the_traces_would_show_another_teacher_or_another_spec(lab: Lab, tmp_path: Path) -> None:
    one, other = (HSKSpec.parse(text) for text in ("1l_3t_0.5w", "1l_2t_0.5w"))
    assert hsk_trace(lab, "rosita", lab.offline(one), tmp_path) != pytest.approx(
        hsk_trace(lab, "rosita", lab.online(other), tmp_path), rel=1e-2
    )
